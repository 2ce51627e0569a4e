"""One episode of somebody acting: its arrays, and what is none."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["DemonstrationsError", "Episode", "check_episode", "fingerprint", "flags", "numbers"]


class DemonstrationsError(ValueError):
    """A file holds no demonstrations of this format, or damaged ones, or demonstrations don't fit what they are used for."""


@dataclass(frozen=True)
class Episode:
    """One episode of T actions.

    Attributes:
        observations: (T+1, k).
        actions: (T, m), as the environment took them.
        rewards: (T,).
        terminated: whether the environment ended it.
        truncated: whether a time limit cut it off.
    """

    observations: NDArray[np.floating[Any]]
    actions: NDArray[np.floating[Any]]
    rewards: NDArray[np.floating[Any]]
    terminated: bool
    truncated: bool

    def __len__(self) -> int:
        return len(self.actions)


def fingerprint(episode: Episode) -> bytes:
    """What is equal for observations and actions that are equal as float32, whatever the sign of a zero."""
    digest = hashlib.sha256()
    for array in (episode.observations, episode.actions):
        digest.update(repr(array.shape).encode())
        digest.update((array.astype(np.float32) + 0.0).tobytes())
    return digest.digest()


def check_episode(number: int, episode: Episode, first: Episode) -> None:
    """Raise `DemonstrationsError` if an episode isn't of the sizes of the first one, or holds what isn't finite."""
    steps = len(episode)
    shapes = {
        "observations": (episode.observations.shape, (steps + 1, *first.observations.shape[1:])),
        "actions": (episode.actions.shape, (steps, *first.actions.shape[1:])),
        "rewards": (episode.rewards.shape, (steps,)),
    }
    for name, (came, expected) in shapes.items():
        if came != expected or (name != "rewards" and len(came) != 2):
            one_short = name == "observations" and came == (steps, *expected[1:])
            hint = " An episode has one observation more than actions: add the one after the last action." if one_short else ""
            raise DemonstrationsError(f"episode {number}: expected {name} of shape {expected}, got {came}.{hint}")
        if not np.isfinite(getattr(episode, name)).all():
            raise DemonstrationsError(f"episode {number}: {name} hold NaN or infinity.")
    if steps == 0:
        raise DemonstrationsError(f"episode {number}: expected at least one action, got none.")


def numbers(name: str, value: ArrayLike, ndim: int) -> NDArray[np.floating[Any]]:
    """A copy of an array of numbers, in a type that torch has; whole numbers become float64."""
    try:
        array = np.array(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise DemonstrationsError(f"{name}: expected an array of numbers: {error}") from error
    if array.dtype.kind not in "fiu":
        raise DemonstrationsError(
            f"{name}: expected an array of numbers, got {type(value).__name__} with elements of type {array.dtype}. "
            "Of dictionaries, give the part that the state can be read from."
        )
    if array.ndim != ndim:
        axes = "one axis, steps" if ndim == 1 else "two axes, steps and components"
        raise DemonstrationsError(f"{name}: expected {axes}, got shape {array.shape}.{_hint(array.ndim, ndim)}")
    return array if array.dtype in (np.float16, np.float32, np.float64) else array.astype(_native(array.dtype))


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The floating-point type for numbers of a type: the same in the machine's byte order, or float64."""
    same = dtype.newbyteorder("=")
    return same if same in (np.float16, np.float32, np.float64) else np.dtype(np.float64)


def flags(name: str, value: ArrayLike, count: int) -> NDArray[np.bool_]:
    """One boolean for each of `count` episodes, (count,); from as many, or from one for all."""
    array = np.asarray(value)
    if array.dtype != np.bool_ or array.shape not in {(), (count,)}:
        raise DemonstrationsError(f"{name}: expected booleans, one or {count}, got {array.dtype} of shape {array.shape}.")
    return np.broadcast_to(array, (count,))


def _hint(came: int, expected: int) -> str:
    if expected == 2 and came == 1:
        return " For one number per step give array[:, None], for a single episode [array]."
    return " Keep, of each step, the numbers that the state can be read from." if came > expected else ""
