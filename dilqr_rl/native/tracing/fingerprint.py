"""What a problem's functions depend on besides tensors: settings, closures, global names, classes, submodules.

Generated code has these built in. A planner compares the fingerprint at every call, so that `dynamics.time_step = 0.1`, or
`eval()`, or another function behind a global name, leads to other code rather than to a stale result. Only what has a name in
the code that can be reached is looked at, so that a counter beside it changes nothing; where code finds attributes in other
ways (`getattr`, `vars`), everything is. Tensors are arguments of the generated code: of those a module owns only the shapes
count, of others the identity, and of integer ones the version.
"""

from __future__ import annotations

import os
import sys
import weakref
from argparse import Namespace
from array import array
from collections import UserDict, UserList, deque
from collections.abc import Hashable, Iterator, Mapping
from contextvars import ContextVar
from functools import partial, singledispatchmethod
from operator import attrgetter, methodcaller
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from dilqr_rl.native.tracing.reach import (
    ClassPart,
    Names,
    behind_proxy,
    can_be_written,
    class_part,
    data_names,
    is_distribution,
    is_foreign,
    is_library,
    names_in,
    root_of,
    slots_of,
)
from dilqr_rl.native.tracing.watch import Watch

_PLAIN = (int, str, bytes, complex, type(None), torch.dtype, torch.device)
_INTERNAL = frozenset(vars(nn.Module()))  # attributes of every module
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_START = frozenset(("forward", "__call__"))
_DYNAMIC = frozenset(  # with these in its names, code may read what it doesn't name
    ("getattr", "vars", "__dict__", "attrgetter", "astuple", "asdict", "fields", "locals", "globals", "eval", "exec")
) | {"__getattr__", "__getattribute__"}
_ENVIRONMENT = frozenset(("environ", "getenv"))
_TAKES_NUMBERS = frozenset(("tolist", "numpy", "array", "asarray"))  # with these, code may build in a tensor's numbers
_BASES = ("torch.nn.modules.module", "builtins", "abc", "typing")
_NAMESPACES = (SimpleNamespace, Namespace, UserDict, UserList)  # of the library, with attributes of a user's
_DEEPEST = 12
_FOREIGN_DEPTH = 3  # of a library's objects in each other
_UNSET = object()  # in a slot
_LARGEST_ARRAY = 100_000  # bytes, which take 5 µs to look at; of a larger one only the identity counts


class _Same:
    """An object as itself: equal to nothing else, and kept alive, so that no other one takes its place."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


_reached: WeakKeyDictionary[Any, Names] = WeakKeyDictionary()  # the names in the code of each function seen before


def fingerprint(function: Any) -> Hashable:
    """Of a module or a function: equal for two moments if nothing that generated code has built in has changed."""
    return watched_fingerprint(function)[0]


def watched_fingerprint(function: Any) -> tuple[Hashable, Watch]:
    """The fingerprint, and a watch that tells whether it still is."""
    while True:
        names = _reached.get(function, _START)
        walk = _Walk(names)
        if isinstance(function, nn.Module):
            result = walk.module(function, 0, owned=True)
        else:
            result = walk.freeze(function, 0)
        if walk.met <= names:
            if not names & _ENVIRONMENT:
                return result, walk.watch
            walk.watch.again(_environment)
            return (result, _environment()), walk.watch
        _reached[function] = names | walk.met


def _environment() -> Hashable:
    return tuple(os.environ.items())


class _Walk:
    """A walk through what code can reach by some names.

    Args:
        names: what to follow.

    Attributes:
        met: names in the code on the way that were not among them.
        watch: what was looked at.
    """

    def __init__(self, names: Names) -> None:
        self.met: set[str] = set()
        self.watch = Watch()
        self._names, self._everything, self._seen = names, bool(names & _DYNAMIC), set[int]()

    def module(self, module: nn.Module, depth: int, owned: bool) -> Hashable:
        """A module; the tensors of one that is owned are arguments under their names, others are known by identity."""
        if id(module) in self._seen:
            return None if owned else _Same(module)
        self._seen.add(id(module))
        own, kind = vars(module), type(module)
        self._watch_module(module)
        parts: list[Hashable] = [_Same(kind), module.training]
        parts += [tuple(map(_Same, own[name].values())) for name in _HOOKS if own[name]]
        parts.append(self._class(kind, depth))
        whole = "forward" in own or any(is_library(base) and base.__module__ not in _BASES for base in kind.__mro__)
        held = [(name, value) for name, value in list(own.items()) if name not in _INTERNAL]
        parts += [(name, self.freeze(value, depth + 1)) for name, value in held if whole or self._follows(name)]
        for tensors in (own["_parameters"], own["_buffers"]):
            parts += [(name, self._tensor(tensor, owned)) for name, tensor in list(tensors.items()) if tensor is not None]
        children = list(own["_modules"].items())
        parts += [(name, None if child is None else self.module(child, depth, owned)) for name, child in children]
        return tuple(parts)

    def freeze(self, value: Any, depth: int) -> Hashable:
        """A value as something hashable."""
        kind = type(value)
        if kind is float:
            return value if value == value else "nan"
        if kind is bool or isinstance(value, np.generic):
            return (kind, value.item() if kind is not bool else value)
        if kind in _PLAIN:
            return value
        if kind in weakref.ProxyTypes:
            return (_Same(value), self.freeze(behind_proxy(value), depth + 1))
        if isinstance(value, Tensor):
            taken = value.is_floating_point() and self._names & _TAKES_NUMBERS
            return (self._tensor(value, owned=False), self._content(value) if taken else None)
        if depth > _DEEPEST or id(value) in self._seen:
            return _Same(value)
        if isinstance(value, tuple | list | deque | set | frozenset | Mapping | ModuleType):
            self._seen.add(id(value))
        if isinstance(value, tuple | list | deque):
            self.watch.items(value)
            return (kind, *(self.freeze(part, depth + 1) for part in list(value)))
        if isinstance(value, set | frozenset):
            self.watch.again(lambda: frozenset(value))
            return frozenset(self.freeze(part, depth + 1) for part in list(value))
        if isinstance(value, Mapping):
            self.watch.mapping(value)
            return tuple((self.freeze(k, depth + 1), self.freeze(v, depth + 1)) for k, v in list(value.items()))
        if isinstance(value, weakref.ref):
            self.watch.again(lambda: _Same(value()))
            return (_Same(value), self.freeze(value(), depth + 1))
        if isinstance(value, np.ndarray | array | bytearray | memoryview):
            return (_Same(value), self._numbers(value))
        if isinstance(value, ContextVar):
            self.watch.again(lambda: _Same(value.get(None)))
            return (_Same(value), self.freeze(value.get(None), depth + 1))
        return self._freeze_code(value, depth + 1)

    def _numbers(self, value: Any) -> Hashable:
        """The bytes of an array, but of a large one, which would take long to look at."""
        numbers = value if isinstance(value, np.ndarray) else memoryview(value)
        if numbers.nbytes <= _LARGEST_ARRAY:
            self.watch.again(numbers.tobytes)
            return numbers.tobytes()
        if can_be_written(value):
            self.watch.blind = (
                f"changes of an array of {numbers.nbytes} bytes that its functions read can't be noticed; hold it in a buffer "
                "of the module, or make it constant by array.setflags(write=False)"
            )
        return None

    def _freeze_code(self, value: Any, depth: int) -> Hashable:
        """Modules, functions, classes and objects."""
        if isinstance(value, nn.Module):
            return self.module(value, depth, owned=False)
        if isinstance(value, FunctionType):
            return self._function(value, depth)
        if isinstance(value, MethodType):
            return (self.freeze(value.__func__, depth), self.freeze(value.__self__, depth))
        if isinstance(value, attrgetter | methodcaller):
            names = {part for text in value.__reduce__()[1] if isinstance(text, str) for part in text.split(".")}
            self.met |= names - self._names
            return _Same(value)
        if isinstance(value, singledispatchmethod):
            return self.freeze(value.dispatcher, depth)
        if isinstance(value, partial):
            return tuple(self.freeze(part, depth) for part in (value.func, value.args, value.keywords))
        if isinstance(value, ModuleType):
            parts = {} if is_foreign(root_of(value.__name__)) else vars(value)
            for name in self._names:
                self.watch.entry(parts, name)
            return (_Same(value), tuple((n, self.freeze(parts[n], depth)) for n in sorted(self._names) if n in parts))
        self._seen.add(id(value))
        if isinstance(value, type):
            return (_Same(value), self._class(value, depth))
        kind = type(value)
        if isinstance(getattr(value, "__wrapped__", None), FunctionType):  # a cached function
            return (_Same(value), self.freeze(value.__wrapped__, depth))
        if isinstance(value, Iterator) and is_library(kind):
            self.watch.blind = (
                f"what an iterator or a file that its functions read ({kind.__name__}) gives next can't be noticed; hold its "
                "values in a list"
            )
        self.watch.kind(value)
        slots = {} if is_library(kind) else {name: getattr(value, name) for name in slots_of(kind) if hasattr(value, name)}
        attributes = getattr(value, "__dict__", {}) if not is_library(kind) or kind in _NAMESPACES else {}
        own = {**slots, **attributes} if isinstance(attributes, dict) else slots
        declared = () if is_library(kind) else tuple(slots_of(kind))
        if declared:
            self.watch.again(lambda: tuple(_Same(getattr(value, name, _UNSET)) for name in declared))
        if own is not slots:
            self.watch.mapping(attributes)
        whole = isinstance(value, UserDict | UserList) or is_distribution(kind)
        held = tuple((name, self.freeze(part, depth)) for name, part in own.items() if whole or self._follows(name))
        return (_Same(value), self._class(kind, depth), held, self._foreign(value) if is_library(kind) else None)

    def _foreign(self, value: Any) -> Hashable:
        """The numbers, texts and tensors of a library's object that names lead to, through its other objects, too."""
        names = self._names

        def look(part: Any, depth: int) -> Hashable:
            if type(part) in _PLAIN or isinstance(part, float | bool | np.generic):
                return part.item() if isinstance(part, np.generic) else part
            if isinstance(part, np.ndarray):
                return part.tobytes() if part.nbytes <= _LARGEST_ARRAY else None
            if isinstance(part, Tensor):
                return (_Same(part), None if part.is_floating_point() else part._version)
            if depth == _FOREIGN_DEPTH or callable(part) or not is_library(type(part)):
                return None
            if isinstance(part, list | tuple | Mapping):
                held = list(part.items() if isinstance(part, Mapping) else enumerate(part))
            else:
                held = [(name, getattr(part, name)) for name in data_names(part, names)]
            return tuple((name, look(value, depth + 1)) for name, value in held)

        found = look(value, 0)
        if found != ():
            self.watch.again(lambda: look(value, 0))
        return found

    def _class(self, kind: type, depth: int) -> Hashable:
        """The members of a class that the names lead to."""
        part = class_part(kind, self._names, self._everything)
        self._watch_class(part)
        meta = None if is_library(type(kind)) else self._class(type(kind), depth)
        if not part.functions and not part.values:
            return meta
        functions = [self._function(function, depth + 1) for function in part.functions]
        return (meta, *functions, *((name, self.freeze(value, depth + 1)) for name, value in part.values))

    def _function(self, function: FunctionType, depth: int) -> Hashable:
        if id(function) in self._seen or is_foreign(root_of(function.__globals__.get("__name__"))):
            return (_Same(function), self._behind_wrapper(function, depth))
        self._seen.add(id(function))
        code, known = function.__code__, function.__globals__
        names = names_in(code)
        self.watch.again(lambda: _parts_of(function))
        for name in names:
            self.watch.entry(known, name)
        if not names <= self._names:
            self.met |= names
        parts: list[Hashable] = [_Same(code)]
        for cell in function.__closure__ or ():
            try:
                parts.append(self.freeze(cell.cell_contents, depth))
            except ValueError:  # not filled yet
                parts.append(None)
        parts += [self.freeze(extra, depth) for extra in (function.__defaults__, function.__kwdefaults__) if extra]
        parts += [self.freeze(known[name], depth + 1) for name in names if name in known]
        imported = [
            name for name in sorted(names) if name not in known and name in sys.modules and not is_foreign(root_of(name))
        ]
        for name in imported:
            self.watch.entry(sys.modules, name)
        parts += [self.freeze(sys.modules[name], depth + 1) for name in imported]
        return tuple(parts)

    def _behind_wrapper(self, function: Any, depth: int) -> Hashable:
        """The functions that a library's decorator has put away: the wrapped one, and those of a generic function."""
        inner = getattr(function, "__wrapped__", None)
        registry = getattr(function, "registry", None)
        if id(function) in self._seen:
            return None
        self._seen.add(id(function))
        others = []
        if isinstance(registry, Mapping):
            self.watch.mapping(registry)
            others = list(registry.values())
        return tuple(self.freeze(part, depth + 1) for part in (inner, *others) if isinstance(part, FunctionType))

    def _follows(self, name: str) -> bool:
        return self._everything or name in self._names

    def _tensor(self, tensor: Tensor, owned: bool) -> Hashable:
        if not tensor.is_floating_point():
            return (_Same(tensor), self._content(tensor))
        self.watch.shape(tensor)
        return tuple(tensor.shape) if owned else (_Same(tensor), tuple(tensor.shape))

    def _content(self, tensor: Tensor) -> Hashable:
        """A tensor's numbers: its version, and, since `.data` can change them without it, those of a small one on the CPU."""
        self.watch.version(tensor)

        def look() -> Hashable:
            small = tensor.numel() * tensor.element_size() <= _LARGEST_ARRAY and tensor.layout == torch.strided
            return tensor.detach().numpy().tobytes() if small and tensor.device.type == "cpu" else None

        self.watch.again(look)
        return tensor._version, look()

    def _watch_module(self, module: nn.Module) -> None:
        own = vars(module)
        self.watch.kind(module)
        self.watch.mapping(own)
        for name in (*_HOOKS, "_parameters", "_buffers", "_modules"):
            self.watch.mapping(own[name])

    def _watch_class(self, part: ClassPart) -> None:
        for base, _ in part.sizes:
            self.watch.keys(base.__dict__)
        for base, name, _ in part.members:
            self.watch.entry(base.__dict__, name)


def _parts_of(function: FunctionType) -> Hashable:
    """What a function can be given anew: its code, defaults and the contents of its closure."""
    held = (
        function.__code__,
        function.__defaults__,
        function.__kwdefaults__,
        *(_content(c) for c in function.__closure__ or ()),
    )
    return tuple(map(_Same, held))


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None
