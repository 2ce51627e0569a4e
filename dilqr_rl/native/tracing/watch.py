"""Whether what a fingerprint was taken of is still as it was, told in a few microseconds.

A fingerprint is a walk through everything that generated code has built in. While it walks, it notes each thing that it looks
at; as long as every note holds, another walk would lead through the same objects to the same fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Watch"]

_MISSING = object()


class Watch:
    """Notes of what was looked at, each as cheap to look at again as can be.

    Attributes:
        blind: what was met that can't be looked at, as a reason; None if nothing was.
    """

    def __init__(self) -> None:
        self.blind: str | None = None
        self._entries: list[tuple[Any, Any, Any]] = []
        self._keys: list[tuple[Any, list[Any]]] = []
        self._items: list[tuple[Any, list[Any]]] = []
        self._kinds: list[tuple[Any, type]] = []
        self._shapes: list[tuple[Tensor, torch.Size]] = []
        self._versions: list[tuple[Tensor, int]] = []
        self._again: list[tuple[Callable[[], Hashable], Hashable]] = []

    def entry(self, mapping: Any, key: Any) -> None:
        """What stands under a key, or that nothing does."""
        self._entries.append((mapping, key, mapping.get(key, _MISSING)))

    def mapping(self, mapping: Mapping[Any, Any]) -> None:
        """Which keys there are, in order, and what stands under each."""
        self.keys(mapping)
        for key in list(mapping):  # another thread may be filling it
            self.entry(mapping, key)

    def keys(self, mapping: Mapping[Any, Any]) -> None:
        """Which keys there are, in order."""
        self._keys.append((mapping, list(mapping)))

    def items(self, sequence: Sequence[Any]) -> None:
        """What a sequence holds."""
        self._items.append((sequence, list(sequence)))

    def kind(self, value: Any) -> None:
        """The class of an object, which may be given another."""
        self._kinds.append((value, type(value)))

    def shape(self, tensor: Tensor) -> None:
        """A tensor's shape."""
        self._shapes.append((tensor, tensor.shape))

    def version(self, tensor: Tensor) -> None:
        """A tensor's numbers."""
        self._versions.append((tensor, tensor._version))

    def again(self, look: Callable[[], Hashable]) -> None:
        """Whatever else: what a function gives."""
        self._again.append((look, look()))

    def holds(self) -> bool:
        """Whether all is as it was."""
        return (
            all(mapping.get(key, _MISSING) is value for mapping, key, value in self._entries)
            and all(type(value) is kind for value, kind in self._kinds)
            and all(list(mapping) == keys for mapping, keys in self._keys)
            and all(_same(sequence, items) for sequence, items in self._items)
            and all(tensor.shape == shape for tensor, shape in self._shapes)
            and all(tensor._version == version for tensor, version in self._versions)
            and all(look() == value for look, value in self._again)
        )


def _same(sequence: Sequence[Any], items: list[Any]) -> bool:
    return len(sequence) == len(items) and all(one is other for one, other in zip(sequence, items, strict=True))
