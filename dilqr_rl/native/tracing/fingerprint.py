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
from argparse import Namespace
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from dilqr_rl.native.tracing.watch import Watch

_PLAIN = (int, str, bytes, complex, type(None), torch.dtype, torch.device)
_INTERNAL = frozenset(vars(nn.Module()))  # attributes of every module
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_LIBRARIES = frozenset(("torch", "numpy", "builtins")) | sys.stdlib_module_names
_START = frozenset(("forward", "__call__"))
_DYNAMIC = frozenset(  # with these in its names, code may read what it doesn't name
    ("getattr", "vars", "__dict__", "attrgetter", "astuple", "asdict", "fields", "locals", "globals", "eval", "exec")
) | {"__getattr__", "__getattribute__"}
_ENVIRONMENT = frozenset(("environ", "getenv"))
_TAKES_NUMBERS = frozenset(("tolist", "numpy", "array", "asarray"))  # with these, code may build in a tensor's numbers
_BASES = ("torch.nn.modules.module", "builtins", "abc", "typing")
_NAMESPACES = (SimpleNamespace, Namespace)
_DEEPEST = 12
_MOST_CLASSES = 1024  # whose walks are remembered
_UNSET = object()  # in a slot
_LARGEST_ARRAY = 10_000  # bytes; of a larger one only the identity counts


class _Same:
    """An object as itself: equal to nothing else, and kept alive, so that no other one takes its place."""

    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


Names = frozenset[str]
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
        whole = "forward" in own or any(_is_library(base) and base.__module__ not in _BASES for base in kind.__mro__)
        parts += [(n, self.freeze(v, depth + 1)) for n, v in own.items() if n not in _INTERNAL and (whole or self._follows(n))]
        for tensors in (own["_parameters"], own["_buffers"]):
            parts += [(name, self._tensor(tensor, owned)) for name, tensor in tensors.items() if tensor is not None]
        parts += [(name, child and self.module(child, depth, owned)) for name, child in own["_modules"].items()]
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
        if isinstance(value, Tensor):
            if self._names & _TAKES_NUMBERS:
                self.watch.version(value)
            return (self._tensor(value, owned=False), value._version if self._names & _TAKES_NUMBERS else None)
        if depth > _DEEPEST or id(value) in self._seen:
            return _Same(value)
        if isinstance(value, tuple | list | deque | set | frozenset | Mapping | ModuleType):
            self._seen.add(id(value))
        if isinstance(value, tuple | list | deque):
            self.watch.items(value)
            return (kind, *(self.freeze(part, depth + 1) for part in value))
        if isinstance(value, set | frozenset):
            self.watch.again(lambda: frozenset(value))
            return frozenset(self.freeze(part, depth + 1) for part in value)
        if isinstance(value, Mapping):
            self.watch.mapping(value)
            return tuple((self.freeze(k, depth + 1), self.freeze(v, depth + 1)) for k, v in value.items())
        if isinstance(value, np.ndarray):
            if value.nbytes <= _LARGEST_ARRAY:
                self.watch.again(value.tobytes)
            return (_Same(value), value.tobytes() if value.nbytes <= _LARGEST_ARRAY else None)
        return self._freeze_code(value, depth + 1)

    def _freeze_code(self, value: Any, depth: int) -> Hashable:
        """Modules, functions, classes and objects."""
        if isinstance(value, nn.Module):
            return self.module(value, depth, owned=False)
        if isinstance(value, FunctionType):
            return self._function(value, depth)
        if isinstance(value, MethodType):
            return (self.freeze(value.__func__, depth), self.freeze(value.__self__, depth))
        if isinstance(value, partial):
            return tuple(self.freeze(part, depth) for part in (value.func, value.args, value.keywords))
        if isinstance(value, ModuleType):
            parts = {} if _is_foreign(_root(value.__name__)) else vars(value)
            for name in self._names:
                self.watch.entry(parts, name)
            return (_Same(value), tuple((n, self.freeze(parts[n], depth)) for n in sorted(self._names) if n in parts))
        self._seen.add(id(value))
        if isinstance(value, type):
            return (_Same(value), self._class(value, depth))
        kind = type(value)
        self.watch.kind(value)
        slots = {} if _is_library(kind) else {name: getattr(value, name) for name in _slots(kind) if hasattr(value, name)}
        attributes = getattr(value, "__dict__", {}) if not _is_library(kind) or kind in _NAMESPACES else {}
        own = {**slots, **attributes} if isinstance(attributes, dict) else slots
        declared = () if _is_library(kind) else tuple(_slots(kind))
        if declared:
            self.watch.again(lambda: tuple(_Same(getattr(value, name, _UNSET)) for name in declared))
        if own is not slots:
            self.watch.mapping(attributes)
        held = tuple((name, self.freeze(part, depth)) for name, part in own.items() if self._follows(name))
        return (_Same(value), self._class(kind, depth), held)

    def _class(self, kind: type, depth: int) -> Hashable:
        """The members of a class that the names lead to."""
        part = _class_part(kind, self._names, self._everything)
        self._watch_class(part)
        if not part.functions and not part.values:
            return None
        functions = [self._function(function, depth + 1) for function in part.functions]
        return (*functions, *((name, self.freeze(value, depth + 1)) for name, value in part.values))

    def _function(self, function: FunctionType, depth: int) -> Hashable:
        if _is_foreign(_root(function.__module__)) or id(function) in self._seen:
            return _Same(function)
        self._seen.add(id(function))
        code, known = function.__code__, function.__globals__
        names = _names_in(code)
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
        return tuple(parts)

    def _follows(self, name: str) -> bool:
        return self._everything or name in self._names

    def _tensor(self, tensor: Tensor, owned: bool) -> Hashable:
        if not tensor.is_floating_point():
            self.watch.version(tensor)
            return (_Same(tensor), tensor._version)
        self.watch.shape(tensor)
        return tuple(tensor.shape) if owned else (_Same(tensor), tuple(tensor.shape))

    def _watch_module(self, module: nn.Module) -> None:
        own = vars(module)
        self.watch.kind(module)
        self.watch.mapping(own)
        for name in (*_HOOKS, "_parameters", "_buffers", "_modules"):
            self.watch.mapping(own[name])

    def _watch_class(self, part: _ClassPart) -> None:
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


@dataclass(frozen=True)
class _ClassPart:
    """The members of a class that names lead to, and how to tell that the class is still the same.

    Attributes:
        functions: methods, and what is behind properties.
        values: other class attributes.
        sizes: the classes it inherits from, with their numbers of members.
        members: (class, name, member) of those found.
    """

    functions: tuple[FunctionType, ...]
    values: tuple[tuple[str, Any], ...]
    sizes: tuple[tuple[type, int], ...]
    members: tuple[tuple[type, str, Any], ...]

    @property
    def holds(self) -> bool:
        """Whether the class has not changed."""
        return all(len(base.__dict__) == size for base, size in self.sizes) and all(
            base.__dict__.get(name) is member for base, name, member in self.members
        )


_class_parts: dict[tuple[type, Names], _ClassPart] = {}


def _class_part(kind: type, names: Names, everything: bool) -> _ClassPart:
    part = _class_parts.get((kind, names))
    if part is None or not part.holds:
        if len(_class_parts) >= _MOST_CLASSES:
            _class_parts.clear()
        part = _class_parts[kind, names] = _walk_class(kind, names, everything)
    return part


def _walk_class(kind: type, names: Names, everything: bool) -> _ClassPart:
    """Methods go by their names; with `everything`, the other members don't."""
    bases = [base for base in kind.__mro__ if not _is_library(base)]
    found = [(base, name, member, _behind(member)) for base in bases for name, member in vars(base).items()]
    methods = [part for part in found if isinstance(part[3], FunctionType) and part[1] in names]
    others = [part for part in found if not isinstance(part[3], FunctionType) and not _is_internal(part[1])]
    others = [part for part in others if everything or part[1] in names]
    return _ClassPart(
        tuple(function for *_, function in methods),
        tuple((name, value) for _, name, _, value in others),
        tuple((base, len(vars(base))) for base in bases),
        tuple((base, name, member) for base, name, member, _ in (*methods, *others)),
    )


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
    if isinstance(member, cached_property):
        return member.func
    return member.__func__ if isinstance(member, classmethod | staticmethod) else member


def _is_internal(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _slots(kind: type) -> Iterable[str]:
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def _is_library(kind: type) -> bool:
    return _is_foreign(_root(kind.__module__))


@lru_cache(maxsize=4096)
def _is_foreign(root: str) -> bool:
    """Whether a package is Python's, or was installed: its code doesn't change while a program runs. Ours is a user's here."""
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    installed = "site-packages" in file or "dist-packages" in file
    return root in _LIBRARIES or (installed and root != "dilqr_rl")


def _root(name: str | None) -> str:
    return (name or "").partition(".")[0]
