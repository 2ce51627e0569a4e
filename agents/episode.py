"""One episode of somebody acting: its arrays, and what is none."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dilqr_rl.agents.observations import DemonstrationsError, Observations, each_part, flat_part, named_parts

__all__ = ["Episode", "check_episode", "fingerprint", "flags"]

_ROWS = 4096  # of an array that may lie in a file, looked at at once


@dataclass(frozen=True)
class Episode:
    """One episode of T actions.

    Attributes:
        observations: (T+1, k), or named arrays (T+1, ...): states, goals, frames.
        actions: (T, m), as the environment took them.
        rewards: (T,).
        terminated: whether the environment ended it.
        truncated: whether a time limit, or a cut, ended it.
    """

    observations: Observations
    actions: NDArray[np.floating[Any]]
    rewards: NDArray[np.floating[Any]]
    terminated: bool
    truncated: bool

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def state_observations(self) -> NDArray[Any]:
        """What the state is read from, (T+1, k): of named observations the "state".

        Raises:
            DemonstrationsError: none of them has this name, or its steps don't hold flat numbers.
        """
        return flat_part(self.observations)

    def between(self, first: int, end: int) -> Episode:
        """The actions from `first` to before `end`, with the observations around them; truncated, unless that is its end."""
        last = end == len(self)
        return Episode(
            each_part(self.observations, lambda part: part[first : end + 1]),
            self.actions[first:end],
            self.rewards[first:end],
            self.terminated and last,
            self.truncated if last else True,
        )


def fingerprint(episode: Episode) -> bytes:
    """What is equal for observations and actions that are equal as float32, whatever the sign of a zero."""
    digest = hashlib.sha256()
    named = isinstance(episode.observations, dict)
    for name, array in (*sorted(named_parts(episode.observations).items()), ("actions", episode.actions)):
        digest.update(repr((name, array.shape) if named else array.shape).encode())
        for rows in _in_rows(array):
            digest.update((rows.astype(np.float32) + 0.0 if rows.dtype.kind == "f" else rows).tobytes())
    return digest.digest()


def check_episode(number: int, episode: Episode, first: Episode) -> None:
    """Raise `DemonstrationsError` if an episode isn't of the sizes of the first one, or holds what isn't finite."""
    steps, parts, alike = len(episode), named_parts(episode.observations), named_parts(first.observations)
    if parts.keys() != alike.keys() or not parts:
        raise DemonstrationsError(f"episode {number}: expected {sorted(alike)}, as the first one has, got {sorted(parts)}.")
    flat = {"actions"} if isinstance(episode.observations, dict) else {"actions", "observations"}
    expected = {name: (steps + 1, *part.shape[1:]) for name, part in alike.items()}
    expected |= {"actions": (steps, *first.actions.shape[1:]), "rewards": (steps,)}
    for name, part in {**parts, "actions": episode.actions, "rewards": episode.rewards}.items():
        if part.shape != expected[name] or (name in flat and part.ndim != 2):
            one_short = name in parts and part.shape == (steps, *expected[name][1:])
            hint = " An episode has one observation more than actions: add the one after the last action." if one_short else ""
            raise DemonstrationsError(f"episode {number}: expected {name} of shape {expected[name]}, got {part.shape}.{hint}")
        if part.dtype.kind == "f" and not all(np.isfinite(rows).all() for rows in _in_rows(part)):
            raise DemonstrationsError(f"episode {number}: {name} hold NaN or infinity.")
    if steps == 0:
        raise DemonstrationsError(f"episode {number}: expected at least one action, got none.")


def flags(name: str, value: ArrayLike, count: int) -> NDArray[np.bool_]:
    """One boolean for each of `count` episodes, (count,); from as many, or from one for all."""
    array = np.asarray(value)
    if array.dtype != np.bool_ or array.shape not in {(), (count,)}:
        raise DemonstrationsError(f"{name}: expected booleans, one or {count}, got {array.dtype} of shape {array.shape}.")
    return np.broadcast_to(array, (count,))


def _in_rows(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Some rows after the others, so that a file is never in memory as a whole."""
    return (array[start : start + _ROWS] for start in range(0, max(1, len(array)), _ROWS))
