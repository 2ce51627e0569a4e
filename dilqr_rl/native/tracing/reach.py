"""What names in code lead to: members of classes, attributes of objects; and whose code is a user's."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any

import numpy as np

__all__ = [
    "ClassPart",
    "Names",
    "behind_proxy",
    "can_be_written",
    "class_part",
    "data_names",
    "is_distribution",
    "is_foreign",
    "is_library",
    "names_in",
    "root_of",
    "slots_of",
]

Names = frozenset[str]

_LIBRARIES = frozenset(("torch", "numpy", "builtins")) | sys.stdlib_module_names
_MOST_CLASSES = 1024  # whose walks are remembered
# methods that Python calls by itself, but not where a function of torch tensors computes
_NOT_CALLED = frozenset(("__init__", "__del__", "__repr__", "__str__", "__dir__", "__sizeof__", "__post_init__"))
_NOT_CALLED |= frozenset(("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__", "__copy__", "__deepcopy__"))
_NOT_CALLED |= frozenset(("__getnewargs__", "__getnewargs_ex__", "__init_subclass__", "__subclasshook__", "__set_name__"))


@dataclass(frozen=True)
class ClassPart:
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


_class_parts: dict[tuple[type, Names], ClassPart] = {}


def class_part(kind: type, names: Names, everything: bool) -> ClassPart:
    """The members of a class that names lead to; with `everything`, all of its values."""
    part = _class_parts.get((kind, names))
    if part is None or not part.holds:
        if len(_class_parts) >= _MOST_CLASSES:
            _class_parts.clear()
        part = _class_parts[kind, names] = _walk_class(kind, names, everything)
    return part


def _walk_class(kind: type, names: Names, everything: bool) -> ClassPart:
    """Methods go by their names; with `everything`, the other members don't."""
    bases = [base for base in kind.__mro__ if not is_library(base)]
    found = [(base, name, member, _behind(member)) for base in bases for name, member in vars(base).items()]
    methods = [part for part in found if isinstance(part[3], FunctionType) and (part[1] in names or _is_called(part[1]))]
    others = [part for part in found if not isinstance(part[3], FunctionType) and not _is_internal(part[1])]
    others = [part for part in others if everything or part[1] in names]
    return ClassPart(
        tuple(function for *_, function in methods),
        tuple((name, value) for _, name, _, value in others),
        tuple((base, len(vars(base))) for base in bases),
        tuple((base, name, member) for base, name, member, _ in (*methods, *others)),
    )


_names: dict[int, tuple[CodeType, Names]] = {}


def names_in(code: CodeType) -> Names:
    """The names of globals and attributes in a function and the functions in it, and strings that may be names."""
    known = _names.get(id(code))
    if known is None or known[0] is not code:
        found = {*code.co_names, *(part for part in code.co_consts if isinstance(part, str) and part.isidentifier())}
        found |= {name for part in code.co_consts if isinstance(part, CodeType) for name in names_in(part)}
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


def _is_called(name: str) -> bool:
    """Whether Python calls a method of this name by itself: for x[i], x * y, x.a, x(), ..."""
    return _is_internal(name) and name not in _NOT_CALLED


def data_names(value: Any, names: Names) -> list[str]:
    """Those of the names under which an object holds data: in its dictionary, or as a descriptor of its class.

    All that a distribution of torch's has: its own code reads it under other names.
    """
    own, kind = getattr(value, "__dict__", {}), type(value)
    if is_distribution(kind):
        return sorted(own)
    described = (property, GetSetDescriptorType, MemberDescriptorType)
    return [n for n in sorted(names) if n in own or isinstance(getattr(kind, n, None), described)]


def slots_of(kind: type) -> Iterable[str]:
    """The names of a class's slots."""
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        yield from (slots,) if isinstance(slots, str) else slots


def is_distribution(kind: type) -> bool:
    """Whether a class is one of torch.distributions, or made from one."""
    return any(base.__module__.startswith("torch.distributions.") for base in kind.__mro__)


def behind_proxy(proxy: Any) -> Any:
    """What a weak proxy stands for; None once that is gone."""
    try:
        return proxy.__init__.__self__
    except ReferenceError:
        return None


def can_be_written(array: Any) -> bool:
    """Whether an array, or one whose memory it shows, is open to writing."""
    if not isinstance(array, np.ndarray):
        return not memoryview(array).readonly
    return array.flags.writeable or (isinstance(array.base, np.ndarray) and can_be_written(array.base))


def is_library(kind: type) -> bool:
    """Whether a class is Python's, or was installed."""
    return is_foreign(root_of(kind.__module__))


@lru_cache(maxsize=4096)
def is_foreign(root: str) -> bool:
    """Whether a package is Python's, or was installed: its code doesn't change while a program runs. Ours is a user's here."""
    file = getattr(sys.modules.get(root), "__file__", None) or ""
    installed = "site-packages" in file or "dist-packages" in file
    return root in _LIBRARIES or (installed and root != "dilqr_rl")


def root_of(name: str | None) -> str:
    """The package of a module's name."""
    return (name or "").partition(".")[0]
