"""Spaces as JSON, for policies whose environment nobody can make again from a checkpoint."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import numpy as np
from gymnasium import spaces

__all__ = ["space_from_json", "space_to_json"]

_MOST = 10**7  # numbers of a space: more than any observation has, less than what a hostile file would ask for


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """A Box, a Discrete space, or a Dict of such, as what JSON holds.

    Raises:
        ValueError: it is another one.
    """
    if isinstance(space, spaces.Dict):
        return {"kind": "dict", "spaces": {name: space_to_json(part) for name, part in space.spaces.items()}}
    if isinstance(space, spaces.Discrete):
        return {"kind": "discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.Box):
        ends = {name: _ends(getattr(space, name)) for name in ("low", "high")}
        return {"kind": "box", "shape": list(space.shape), "dtype": str(space.dtype), **ends}
    raise ValueError(f"policy: expected Box, Discrete or Dict spaces, got {space}, which a checkpoint has no words for.")


def _ends(numbers: Any) -> Any:
    """One number where all are the same."""
    first = numbers.flat[0] if numbers.size else 0.0
    return float(first) if (numbers == first).all() else np.asarray(numbers, dtype=np.float64).tolist()


def space_from_json(told: Any) -> spaces.Space[Any]:
    """The space that was told.

    Raises:
        ValueError: nothing like it was.
    """
    try:
        if _size(told) <= _MOST:
            return _made(told)
    except (KeyError, TypeError, AttributeError, AssertionError, OverflowError) as error:
        raise ValueError(f"no space that can be read: {error!r}") from error
    raise ValueError(f"no space that can be read: {str(told)[:100]}")


def _size(told: Any) -> int:
    """How many numbers a space has, with all its parts."""
    if told["kind"] == "dict":
        return sum(map(_size, told["spaces"].values()))
    return math.prod(told["shape"]) if told["kind"] == "box" else 1


def _made(told: Any) -> spaces.Space[Any]:
    if told["kind"] == "dict":
        parts = OrderedDict((str(name), _made(part)) for name, part in told["spaces"].items())
        return spaces.Dict(parts)  # in this order, in which features stand
    if told["kind"] == "discrete":
        return spaces.Discrete(int(told["n"]), start=int(told["start"]))
    if told["kind"] != "box":
        raise KeyError(told["kind"])
    dtype: Any = np.dtype(told["dtype"])
    low, high = (np.broadcast_to(np.asarray(told[name], dtype), told["shape"]) for name in ("low", "high"))
    return spaces.Box(low, high, tuple(told["shape"]), dtype)
