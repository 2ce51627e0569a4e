"""What a problem's functions depend on besides tensors: settings, closures, global names, submodules.

Generated code has these built in. A planner compares the fingerprint at every call, so that `dynamics.time_step = 0.1`, or
`eval()`, or another function behind a global name, leads to other code rather than to a stale result. Tensors are arguments of
the generated code: of these only the identity counts, and of integer tensors their version.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (int, str, bool, bytes, complex, type(None), torch.dtype, torch.device)
_INTERNAL = frozenset(vars(nn.Module()))  # attributes of every module
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_LIBRARIES = ("torch", "numpy", "math")
_DEEPEST = 8
_LARGEST_ARRAY = 10_000  # bytes; of a larger one only the identity counts


def fingerprint(function: Any) -> Hashable:
    """Of a module or a function: equal for two moments if nothing that generated code has built in has changed."""
    return _freeze(function, set(), 0)


def _module(module: nn.Module, seen: set[int], depth: int) -> Hashable:
    if id(module) in seen:
        return id(module)
    seen.add(id(module))
    own = vars(module)
    parts: list[Hashable] = [id(type(module)), module.training]
    parts += [(name, _freeze(value, seen, depth)) for name, value in own.items() if name not in _INTERNAL]
    parts += [tuple(map(id, own[name].values())) for name in _HOOKS if own[name]]
    if "forward" not in own:
        parts += [_global(*place, seen, depth) for place in _names_of_class(type(module))]  # type: ignore[arg-type]
    parts += [(name, child is not None and _module(child, seen, depth)) for name, child in own["_modules"].items()]
    return tuple(parts)


def _freeze(value: Any, seen: set[int], depth: int) -> Hashable:
    kind = type(value)
    if kind is float:
        return value if value == value else "nan"
    if kind in _PLAIN:
        return (kind, value) if kind is bool else value
    if isinstance(value, Tensor):
        return (id(value), -1 if value.is_floating_point() else value._version)
    if depth > _DEEPEST or id(value) in seen:
        return id(value)
    if isinstance(value, tuple | list):
        return (kind, *(_freeze(part, seen, depth + 1) for part in value))
    if isinstance(value, dict):
        return tuple((_freeze(k, seen, depth + 1), _freeze(v, seen, depth + 1)) for k, v in value.items())
    if isinstance(value, nn.Module):
        return _module(value, seen, depth + 1)
    if isinstance(value, np.ndarray):
        return (id(value), value.tobytes() if value.nbytes <= _LARGEST_ARRAY else None)
    if isinstance(value, FunctionType):
        return _function(value, seen, depth + 1)
    if isinstance(value, MethodType):
        return (_freeze(value.__func__, seen, depth + 1), _freeze(value.__self__, seen, depth + 1))
    if isinstance(value, partial):
        return tuple(_freeze(part, seen, depth + 1) for part in (value.func, value.args, value.keywords))
    if isinstance(value, type) or not hasattr(value, "__dict__") or (kind.__module__ or "").startswith(_LIBRARIES):
        return id(value)
    seen.add(id(value))
    return (id(value), tuple((name, _freeze(part, seen, depth + 1)) for name, part in vars(value).items()))


def _function(function: FunctionType, seen: set[int], depth: int) -> Hashable:
    if _is_library(function) or id(function) in seen:
        return id(function)
    seen.add(id(function))
    parts: list[Hashable] = [id(function.__code__)]
    for cell in function.__closure__ or ():
        try:
            parts.append(_freeze(cell.cell_contents, seen, depth))
        except ValueError:  # not filled yet
            parts.append(None)
    parts += [_freeze(extra, seen, depth) for extra in (function.__defaults__, function.__kwdefaults__) if extra]
    parts += [_global(function, name, seen, depth) for name in _names_in(function.__code__) if name in function.__globals__]
    return tuple(parts)


def _global(function: FunctionType, name: str, seen: set[int], depth: int) -> Hashable:
    value = function.__globals__.get(name)
    return id(value) if type(value).__name__ == "module" else _freeze(value, seen, depth + 1)


@lru_cache(maxsize=1024)
def _names_of_class(kind: type) -> tuple[tuple[FunctionType, str], ...]:
    """The global names that a module's forward and the methods it uses refer to, each with a function that sees it."""
    waiting, known, found = ["forward", "__call__"], set(), []
    while waiting:
        name = waiting.pop()
        method = getattr(kind, name, None)
        function = method.fget if isinstance(method, property) else method
        if name in known or not isinstance(function, FunctionType) or _is_library(function):
            continue
        known.add(name)
        names = _names_in(function.__code__)
        waiting += names
        found += [(function, name) for name in names if name in function.__globals__]
    return tuple(found)


@lru_cache(maxsize=4096)
def _names_in(code: CodeType) -> tuple[str, ...]:
    """The names, of globals and of attributes, in a function and the functions defined in it."""
    inner = [name for part in code.co_consts if isinstance(part, CodeType) for name in _names_in(part)]
    return tuple(dict.fromkeys((*code.co_names, *inner)))


def _is_library(function: Callable[..., Any]) -> bool:
    return (function.__module__ or "").partition(".")[0] in _LIBRARIES
