"""What a problem's functions depend on besides tensors: settings, closures, global names, classes, submodules.

Generated code has these built in. A planner compares the fingerprint at every call, so that `dynamics.time_step = 0.1`, or
`eval()`, or another function behind a global name, leads to other code rather than to a stale result. Only what the functions'
code names is looked at, so that a counter beside it changes nothing. Tensors are arguments of the generated code: of those a
module owns only the shapes count, of others the identity, and of integer ones the version.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (int, str, bytes, complex, type(None), torch.dtype, torch.device)
_INTERNAL = frozenset(vars(nn.Module()))  # attributes of every module
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_OPAQUE = frozenset(("torch", "numpy", "builtins"))
_LIBRARIES = _OPAQUE | sys.stdlib_module_names
_DEEPEST = 12
_MOST_CLASSES = 1024  # whose walks are remembered
_LARGEST_ARRAY = 10_000  # bytes; of a larger one only the identity counts

Names = frozenset[str]


class _Same:
    """An object as itself: equal to nothing else, and kept alive, so that no other one takes its place."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def fingerprint(function: Any) -> Hashable:
    """Of a module or a function: equal for two moments if nothing that generated code has built in has changed."""
    seen: set[int] = set()
    return _module(function, seen, 0, True) if isinstance(function, nn.Module) else _freeze(function, frozenset(), seen, 0)


def _module(module: nn.Module, seen: set[int], depth: int, owned: bool) -> Hashable:
    """A module; the tensors of one that is owned are arguments under their names, those of others are known by identity."""
    if id(module) in seen:
        return _Same(module) if not owned else None
    seen.add(id(module))
    own, kind = vars(module), type(module)
    parts: list[Hashable] = [_Same(kind), module.training]
    parts += [tuple(map(_Same, own[name].values())) for name in _HOOKS if own[name]]
    if "forward" in own or _is_library(kind):
        parts += [(name, _freeze(value, frozenset(), seen, depth + 1)) for name, value in own.items() if name not in _INTERNAL]
    else:
        parts.append(_object_part(own, kind, frozenset(("forward", "__call__")), seen, depth))
    for tensors in (own["_parameters"], own["_buffers"]):
        parts += [(name, _tensor(tensor, owned)) for name, tensor in tensors.items() if tensor is not None]
    parts += [(name, child and _module(child, seen, depth, owned)) for name, child in own["_modules"].items()]
    return tuple(parts)


def _tensor(tensor: Tensor, owned: bool) -> Hashable:
    if not tensor.is_floating_point():
        return (_Same(tensor), tensor._version)
    return tuple(tensor.shape) if owned else (_Same(tensor), tuple(tensor.shape))


def _freeze(value: Any, names: Names, seen: set[int], depth: int) -> Hashable:
    """A value as something hashable; `names` are those in the code that led to it."""
    kind = type(value)
    if kind is float:
        return value if value == value else "nan"
    if kind is bool or isinstance(value, np.generic):
        return (kind, value.item() if kind is not bool else value)
    if kind in _PLAIN:
        return value
    if isinstance(value, Tensor):
        return _tensor(value, owned=False)
    if depth > _DEEPEST or id(value) in seen:
        return _Same(value)
    if isinstance(value, tuple | list):
        return (kind, *(_freeze(part, names, seen, depth + 1) for part in value))
    if isinstance(value, set | frozenset):
        return frozenset(_freeze(part, names, seen, depth + 1) for part in value)
    if isinstance(value, Mapping):
        return tuple((_freeze(k, names, seen, depth + 1), _freeze(v, names, seen, depth + 1)) for k, v in value.items())
    if isinstance(value, np.ndarray):
        return (_Same(value), value.tobytes() if value.nbytes <= _LARGEST_ARRAY else None)
    return _freeze_code(value, names, seen, depth)


def _freeze_code(value: Any, names: Names, seen: set[int], depth: int) -> Hashable:
    """Modules, functions, classes and objects."""
    if isinstance(value, nn.Module):
        return _module(value, seen, depth + 1, owned=False)
    if isinstance(value, FunctionType):
        return _function(value, seen, depth + 1)
    if isinstance(value, MethodType):
        return (_freeze(value.__func__, names, seen, depth + 1), _freeze(value.__self__, names, seen, depth + 1))
    if isinstance(value, partial):
        return tuple(_freeze(part, names, seen, depth + 1) for part in (value.func, value.args, value.keywords))
    if isinstance(value, ModuleType):
        parts = {} if _root(value.__name__) in _LIBRARIES else vars(value)
        return (_Same(value), tuple((n, _freeze(parts[n], names, seen, depth + 1)) for n in sorted(names) if n in parts))
    kind = value if isinstance(value, type) else type(value)
    if _is_library(kind):
        own = {} if _root(kind.__module__) in _OPAQUE else getattr(value, "__dict__", {})
        return (_Same(value), tuple((n, _freeze(v, names, seen, depth + 1)) for n, v in own.items() if n in names))
    seen.add(id(value))
    own = {} if value is kind else {n: getattr(value, n) for n in _slots(kind) if hasattr(value, n)}
    own |= {} if value is kind else getattr(value, "__dict__", {})
    return (_Same(value), _object_part(own, kind, names | {"__call__"}, seen, depth))


def _object_part(own: Mapping[str, Any], kind: type, names: Names, seen: set[int], depth: int) -> Hashable:
    """The attributes and methods of an object that the code reaches from some names on."""
    part = _class_part(kind, names)
    parts: list[Hashable] = [_function(function, seen, depth + 1) for function in part.functions]
    parts += [(name, _freeze(value, names, seen, depth + 1)) for name, value in part.values]
    reached = part.reached
    parts += [(n, _freeze(v, reached, seen, depth + 1)) for n, v in own.items() if n in reached and n not in _INTERNAL]
    return tuple(parts)


@dataclass(frozen=True)
class _ClassPart:
    """What the code of a class reaches from some names on, and how to tell that the class is still the same.

    Attributes:
        functions: methods, and what is behind properties.
        values: other class attributes.
        reached: all names.
        sizes: the classes it inherits from, with their numbers of members.
        members: (class, name, member) of those found.
    """

    functions: tuple[FunctionType, ...]
    values: tuple[tuple[str, Any], ...]
    reached: Names
    sizes: tuple[tuple[type, int], ...]
    members: tuple[tuple[type, str, Any], ...]

    @property
    def holds(self) -> bool:
        """Whether the class has not changed."""
        return all(len(base.__dict__) == size for base, size in self.sizes) and all(
            base.__dict__.get(name) is member for base, name, member in self.members
        )


_class_parts: dict[tuple[type, Names], _ClassPart] = {}


def _class_part(kind: type, names: Names) -> _ClassPart:
    part = _class_parts.get((kind, names))
    if part is None or not part.holds:
        if len(_class_parts) >= _MOST_CLASSES:
            _class_parts.clear()
        part = _class_parts[kind, names] = _walk_class(kind, names)
    return part


def _walk_class(kind: type, names: Names) -> _ClassPart:
    bases = [base for base in kind.__mro__ if not _is_library(base)]
    known: set[str] = set()
    waiting, functions, values, members = sorted(names), [], [], []
    while waiting:
        name = waiting.pop()
        found = [] if name in known else [(base, vars(base)[name]) for base in bases if name in vars(base)]
        known.add(name)
        for base, member in found:
            members.append((base, name, member))
            function = _behind(member)
            if isinstance(function, FunctionType):
                waiting += _names_in(function.__code__)
                functions.append(function)
            else:
                values.append((name, member))
    sizes = tuple((base, len(vars(base))) for base in bases)
    return _ClassPart(tuple(functions), tuple(values), frozenset(known), sizes, tuple(members))


def _function(function: FunctionType, seen: set[int], depth: int) -> Hashable:
    if _root(function.__module__) in _LIBRARIES or id(function) in seen:
        return _Same(function)
    seen.add(id(function))
    code = function.__code__
    names = _names_in(code)
    parts: list[Hashable] = [_Same(code)]
    for cell in function.__closure__ or ():
        try:
            parts.append(_freeze(cell.cell_contents, names, seen, depth))
        except ValueError:  # not filled yet
            parts.append(None)
    parts += [_freeze(extra, names, seen, depth) for extra in (function.__defaults__, function.__kwdefaults__) if extra]
    known = function.__globals__
    parts += [_freeze(known[name], names, seen, depth + 1) for name in names if name in known]
    return tuple(parts)


_names: dict[int, tuple[CodeType, Names]] = {}


def _names_in(code: CodeType) -> Names:
    """The names of globals and attributes in a function and the functions in it, and strings that may be names."""
    known = _names.get(id(code))
    if known is None or known[0] is not code:
        found = {*code.co_names, *(part for part in code.co_consts if isinstance(part, str) and part.isidentifier())}
        found |= {name for part in code.co_consts if isinstance(part, CodeType) for name in _names_in(part)}
        known = _names[id(code)] = (code, frozenset(found))
    return known[1]


def _behind(member: Any) -> Any:
    """The function of a method, a property, a class method or a static method."""
    if isinstance(member, property):
        return member.fget
    return member.__func__ if isinstance(member, classmethod | staticmethod) else member


def _slots(kind: type) -> Iterable[str]:
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def _is_library(kind: type) -> bool:
    return _root(kind.__module__) in _LIBRARIES


def _root(name: str | None) -> str:
    return (name or "").partition(".")[0]
