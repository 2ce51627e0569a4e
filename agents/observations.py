"""Observations of an episode: one array, or named ones, as Gymnasium's `Dict` spaces give them: states, goals, frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "STATE",
    "DemonstrationsError",
    "Observations",
    "by_episode",
    "checked",
    "each_part",
    "flat_part",
    "in_chunks",
    "named_parts",
    "nested",
    "numbers",
    "stacked",
    "state_in",
]

STATE = "state"  # among named observations, what plans start from
Observations: TypeAlias = NDArray[Any] | dict[str, NDArray[Any]]

_BETWEEN = "/"  # the names of a dictionary within another
_KEPT = (np.float16, np.float32, np.float64)
_CHUNK = 2**20  # bytes of an array that are looked at at once


class DemonstrationsError(ValueError):
    """A file holds no demonstrations of this format, or damaged ones, or demonstrations don't fit what they are used for."""


def named_parts(observations: Observations) -> dict[str, NDArray[Any]]:
    """The arrays by name, as errors and files call them: "observations", or "observations/state" and so on."""
    if isinstance(observations, Mapping):
        return {f"observations{_BETWEEN}{name}": part for name, part in observations.items()}
    return {"observations": observations}


def each_part(observations: Observations, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Observations:
    """The same with every array changed."""
    if isinstance(observations, Mapping):
        return {name: change(part) for name, part in observations.items()}
    return change(observations)


def flat_part(observations: Observations, key: str | None = None) -> NDArray[Any]:
    """The array that the state is read from, (T+1, k): the part `key`, or of named ones without a key the "state".

    Raises:
        DemonstrationsError: there is no such part, or it isn't flat.
    """
    if not isinstance(observations, Mapping):
        if key is not None:
            raise DemonstrationsError(f"key: expected None, since the observations are arrays without names, got {key!r}.")
        return observations
    name = STATE if key is None else key
    if name not in observations:
        how = f"no part {name!r}" if key is not None else f"none that is called {STATE!r}, and no key="
        raise DemonstrationsError(
            f"key: expected the part of the observations that the state is read from, one of {sorted(observations)}, got {how}."
        )
    if observations[name].ndim != 2:
        raise DemonstrationsError(
            f"key: expected a part whose steps hold flat numbers (k,), to read the state from, got {name!r} of shape "
            f"{observations[name].shape[1:]}. One of {_flat(observations)} may hold them."
        )
    return observations[name]


def state_in(observation: Any) -> Any:
    """One observation, or a batch, as an environment gives it: of a dictionary the "state".

    Raises:
        ValueError: there is none.
    """
    if not isinstance(observation, Mapping):
        return observation
    if STATE not in observation:
        raise ValueError(
            f'observation: expected a part "{STATE}", which a plan starts from, got {sorted(observation)}. Add it with an '
            "ObservationWrapper, or give the part that holds it."
        )
    return observation[STATE]


def _flat(observations: Mapping[str, NDArray[Any]]) -> list[str]:
    return sorted(name for name, part in observations.items() if part.ndim == 2)


def stacked(steps: Sequence[Any]) -> Any:
    """What was observed step by step, as arrays over the steps; dictionaries within dictionaries stay as they are."""
    if isinstance(steps[0], Mapping):
        return {name: stacked([step[name] for step in steps]) for name in steps[0]}
    return np.array([np.asarray(step) for step in steps])


def by_episode(observations: Any) -> list[Any]:
    """An array, or a dictionary of arrays, for each episode, as they came.

    Args:
        observations: N arrays (T+1, k), or one (N, T+1, k); or N dictionaries of arrays (T+1, ...); or N lists of T+1
            dictionaries; or one dictionary of what would be right without one. Dictionaries may lie in others.

    Raises:
        DemonstrationsError: parts of unlike numbers of episodes, or names that are none.
    """
    if not isinstance(observations, Mapping):
        return [_named(one) for one in observations]
    columns = _flattened(observations)
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise DemonstrationsError(f"observations: expected equally many episodes in every part, got {counts}.")
    return [{name: column[i] for name, column in columns.items()} for i in range(next(iter(counts.values()), 0))]


def _named(episode: Any) -> Any:
    """An episode's dictionary, where it is one, or a list of those of its steps."""
    if hasattr(episode, "unwrap"):  # the DictObs of `imitation`
        episode = episode.unwrap()
    if isinstance(episode, list | tuple) and episode and isinstance(episode[0], Mapping):
        try:
            episode = stacked(episode)
        except (KeyError, TypeError) as error:
            raise DemonstrationsError(f"observations: expected the same parts in every step: {error!r}.") from error
    return _flattened(episode) if isinstance(episode, Mapping) else episode


def nested(observations: Observations) -> Any:
    """Dictionaries within dictionaries again, as an environment has them and other formats want them."""
    if not isinstance(observations, Mapping):
        return observations
    found: dict[str, Any] = {}
    for name, part in observations.items():
        *groups, last = name.split(_BETWEEN)
        group = found
        for one in groups:
            group = group.setdefault(one, {})
        group[last] = part
    return found


def _flattened(parts: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, part in parts.items():
        if not isinstance(name, str) or not name:
            raise DemonstrationsError(f"observations: expected names of parts, got {name!r}.")
        if isinstance(part, Mapping):
            found.update(_flattened(part, f"{before}{name}{_BETWEEN}"))
        else:
            found[before + name] = part
    return found


def checked(name: str, episode: Any, key: str | None = None) -> Observations:
    """What an episode of `by_episode` observed, copied unless it lies in a read-only memory map.

    Args:
        name: what errors call it.
        episode: an array, or a dictionary of arrays.
        key: the part to keep, as an array without a name; None: all.

    Raises:
        DemonstrationsError: it holds something else than numbers, or there is no such part.
    """
    if isinstance(episode, Mapping):
        if key is None:
            return {part: numbers(f"{name}[{part!r}]", value) for part, value in episode.items()}
        if key in episode:
            episode = {key: numbers(f"{name}[{key!r}]", episode[key])}
        return flat_part(episode, key)
    return flat_part(numbers(name, episode, ndim=2), key)


def numbers(name: str, value: ArrayLike, ndim: int | None = None) -> NDArray[Any]:
    """A copy of an array of numbers, in a type that torch has; read-only memory maps of such a type stay where they are.

    Args:
        name: what errors call it.
        value: the array.
        ndim: its axes; None: one for each step, and any others. Then bytes and booleans stay what they are; other whole numbers
            become float64.

    Raises:
        DemonstrationsError: it is no such array.
    """
    try:
        array: NDArray[Any] = value if _stays(value) else np.array(value)  # type: ignore[assignment]
    except (ValueError, TypeError, RuntimeError) as error:
        raise DemonstrationsError(f"{name}: expected an array of numbers: {error}") from error
    frames = ndim is None and array.dtype in (np.uint8, np.bool_)
    if array.dtype.kind not in "fiu" and not frames:
        raise DemonstrationsError(
            f"{name}: expected an array of numbers, got {type(value).__name__} with elements of type {array.dtype}."
        )
    if array.ndim != ndim if ndim is not None else array.ndim == 0:
        axes = {1: "one axis, steps", 2: "two axes, steps and components"}.get(ndim or 0, "an axis of steps")
        raise DemonstrationsError(f"{name}: expected {axes}, got shape {array.shape}.{_hint(array.ndim, ndim or 1)}")
    return array if frames or array.dtype in _KEPT else array.astype(_native(array.dtype))


def in_chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Some rows after the others, of few bytes, so that an array that lies in a file is never in memory as a whole."""
    rows = max(1, _CHUNK * len(array) // max(1, array.nbytes))
    return (array[start : start + rows] for start in range(0, len(array), rows))


def _stays(value: Any) -> bool:
    """Whether an array lies in a file, and nobody can change it through this array."""
    return isinstance(value, np.memmap) and not value.flags.writeable and value.dtype.isnative


def _native(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The floating-point type for numbers of a type: the same in the machine's byte order, or float64."""
    same = dtype.newbyteorder("=")
    return same if same in _KEPT else np.dtype(np.float64)


def _hint(came: int, expected: int) -> str:
    if expected == 2 and came == 1:
        return " For one number per step give array[:, None], for a single episode [array]."
    if came > expected:
        return ' Keep the numbers that the state can be read from; frames go beside them: {"state": ..., "frames": ...}.'
    return ""
