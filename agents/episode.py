"""One episode of somebody acting: its arrays, and what is none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dilqr_rl.agents.observations import (
    STATE,
    DemonstrationsError,
    Observations,
    check_names,
    each_part,
    fits_files,
    in_chunks,
    named_parts,
    state_part,
)
from dilqr_rl.checks import whole

__all__ = ["Episode", "check_episode", "fingerprint", "flags"]

_FLAT = 2  # axes of an array of vectors: steps and components


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
        return state_part(self.observations)

    def between(self, first: int, end: int) -> Episode:
        """The actions from `first` to before `end`, with the observations around them; truncated, unless that is its end.

        Raises:
            ValueError: there are no such actions.
        """
        first = whole("first", first, "0 or more", 0, most=len(self) - 1)
        end = whole("end", end, f"at least {first + 1}, one more than first", first + 1, most=len(self))
        last = end == len(self)
        return Episode(
            each_part(self.observations, lambda part: part[first : end + 1]),
            self.actions[first:end],
            self.rewards[first:end],
            self.terminated and last,
            self.truncated if last else True,
        )


def fingerprint(episode: Episode) -> bytes:
    """What is equal for episodes of equal actions and states, both as float32, whatever the sign of a zero.

    The states are what learners read: an array without a name, or the part "state". Where there is no such part they are all
    flat parts with their names, and where none is flat, all parts.
    """
    digest = hashlib.sha256()
    for name, array in (*_read_by_learners(episode.observations), ("", episode.actions)):
        digest.update(repr((name, array.shape)).encode())
        rounded = not name or array.dtype.kind == "f"
        for rows in in_chunks(array):
            digest.update((rows.astype(np.float32) + 0.0 if rounded else rows).tobytes())
    return digest.digest()


def _read_by_learners(observations: Observations) -> list[tuple[str, NDArray[Any]]]:
    parts = dict(observations) if isinstance(observations, Mapping) else {STATE: observations}
    if STATE in parts and parts[STATE].ndim == _FLAT:
        return [("", parts[STATE])]
    flat = {name: part for name, part in parts.items() if part.ndim <= _FLAT}
    return sorted((flat or parts).items())


def check_episode(number: int, episode: Episode, first: Episode) -> None:
    """Raise `DemonstrationsError` if an episode isn't of the sizes of the first one, or holds what is no finite number."""
    parts, alike = named_parts(episode.observations), named_parts(first.observations)
    if episode is first and isinstance(episode.observations, Mapping):
        check_names(episode.observations)
    if not parts:
        raise DemonstrationsError(f"episode {number}: expected at least one part of the observations, got none.")
    if parts.keys() != alike.keys():
        raise DemonstrationsError(f"episode {number}: expected {sorted(alike)}, as the first one has, got {sorted(parts)}.")
    for name, part in {**parts, "actions": episode.actions, "rewards": episode.rewards}.items():
        if not fits_files(part) or (name not in parts and part.dtype.kind == "b"):
            came = part.dtype if isinstance(part, np.ndarray) else type(part).__name__
            raise DemonstrationsError(
                f"episode {number}: expected {name} as an array of numbers, of 64 bits at most and in this machine's byte "
                f"order, got {came}. Demonstrations.from_arrays makes such ones."
            )
    _check_shapes(number, episode, first)
    for name, part in {**parts, "actions": episode.actions, "rewards": episode.rewards}.items():
        if part.dtype.kind == "f" and not all(np.isfinite(rows).all() for rows in in_chunks(part)):
            raise DemonstrationsError(f"episode {number}: {name} hold NaN or infinity.")
    if len(episode) == 0:
        raise DemonstrationsError(f"episode {number}: expected at least one action, got none.")


def _check_shapes(number: int, episode: Episode, first: Episode) -> None:
    steps, parts, alike = len(episode), named_parts(episode.observations), named_parts(first.observations)
    flat = {"actions"} if isinstance(episode.observations, Mapping) else {"actions", "observations"}
    rows = dict.fromkeys(parts, steps + 1) | {"actions": steps, "rewards": steps}
    beyond = {name: part.shape[1:] for name, part in alike.items()} | {"actions": first.actions.shape[1:], "rewards": ()}
    for name, part in {**parts, "actions": episode.actions, "rewards": episode.rewards}.items():
        expected = (rows[name], *beyond[name])
        if name in flat and part.ndim != _FLAT:
            letter = "m" if name == "actions" else "k"
            hint = ' Frames go beside the state: {"state": ..., "frames": ...}.' if part.ndim > _FLAT and name in parts else ""
            raise DemonstrationsError(
                f"episode {number}: expected {name} of shape ({rows[name]}, {letter}), got {part.shape}.{hint}"
            )
        if part.shape != expected:
            one_short = name in parts and part.shape == (steps, *expected[1:])
            hint = " An episode has one observation more than actions: add the one after the last action." if one_short else ""
            raise DemonstrationsError(f"episode {number}: expected {name} of shape {expected}, got {part.shape}.{hint}")


def flags(name: str, value: ArrayLike, count: int) -> NDArray[np.bool_]:
    """One boolean for each of `count` episodes, (count,); from as many, or from one for all."""
    array = np.asarray(value)
    if array.dtype != np.bool_ or array.shape not in {(), (count,)}:
        raise DemonstrationsError(f"{name}: expected booleans, one or {count}, got {array.dtype} of shape {array.shape}.")
    return np.broadcast_to(array, (count,))
