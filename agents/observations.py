"""Observations of an episode: one array, or named ones, as Gymnasium's `Dict` spaces give them: states, goals, frames."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dilqr_rl.checks import shown

__all__ = [
    "STATE",
    "DemonstrationsError",
    "Observations",
    "as_floats",
    "as_nested",
    "by_episode",
    "check_names",
    "checked_array",
    "checked_observations",
    "each_episode",
    "each_part",
    "fits_files",
    "in_chunks",
    "named_parts",
    "stacked",
    "state_in",
    "state_part",
]

STATE = "state"  # among named observations, what plans start from
Observations: TypeAlias = NDArray[Any] | dict[str, NDArray[Any]]

_BETWEEN = "/"  # the names of a dictionary within another
_KEPT = (np.float16, np.float32, np.float64)
_LONGEST = 250  # bytes of a name: a file has it, too, and an ending
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


def check_names(names: Iterable[Any]) -> None:
    """Raise `DemonstrationsError` for what can't be the names of parts, in memory and in every file."""
    known = dict.fromkeys(names)
    for name in known:
        if not isinstance(name, str) or not all(name.split(_BETWEEN)) or not _can_be_of_a_file(name):
            raise DemonstrationsError(
                f"observations: expected names of parts, texts of at most {_LONGEST} bytes with something before and after "
                f"each {_BETWEEN!r}, got {shown(name)}. Rename it."
            )
        group = next((group for group in _groups(name) if group in known), None)
        if group is not None:
            raise DemonstrationsError(
                f"observations: expected {group!r} as a part or as a group, got {name!r} beside it. Rename one."
            )


def _can_be_of_a_file(name: str) -> bool:
    try:
        return "\0" not in name and len(name.encode()) <= _LONGEST
    except UnicodeEncodeError:  # half a character
        return False


def _groups(name: str) -> Iterator[str]:
    return (name[:place] for place, letter in enumerate(name) if letter == _BETWEEN)


def state_part(observations: Observations, key: str | None = None) -> NDArray[Any]:
    """The array that the state is read from, (T+1, k), in floats: the part `key`, or of named ones without a key the "state".

    Raises:
        DemonstrationsError: there is no such part, or it isn't flat.
    """
    return as_floats(_chosen(observations, key))


def as_floats(array: NDArray[Any]) -> NDArray[Any]:
    """The array, or a copy in float64 of one of whole numbers or booleans."""
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _chosen(observations: Observations, key: str | None) -> NDArray[Any]:
    if not isinstance(observations, Mapping):
        if key is not None:
            raise DemonstrationsError(f"key: expected None, since the observations are arrays without names, got {key!r}.")
        return observations
    name = STATE if key is None else key
    if not isinstance(name, str) or name not in observations:
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


def stacked(steps: Sequence[Any], name: str = "") -> Any:
    """What was observed step by step, as arrays over the steps; dictionaries within dictionaries stay as they are.

    Raises:
        DemonstrationsError: a step has other parts than the first, or a part changes its shape.
    """
    where = f"observations[{name!r}]" if name else "observations"
    first = steps[0]
    if isinstance(first, Mapping):
        for number, step in enumerate(steps):
            if not isinstance(step, Mapping) or step.keys() != first.keys():
                came = list(step) if isinstance(step, Mapping) else type(step).__name__
                raise DemonstrationsError(
                    f"{where}: expected the same parts in every step, {list(first)} as in the first, got {came} in step "
                    f"{number}."
                )
        return {part: stacked([step[part] for step in steps], f"{name}{_BETWEEN}{part}" if name else part) for part in first}
    try:
        return np.array([np.asarray(step) for step in steps])
    except (ValueError, TypeError, RuntimeError) as error:
        raise DemonstrationsError(f"{where}: expected an array of one shape in every step: {error}") from error


def each_episode(name: str, given: Any) -> list[Any]:
    """What was given for each episode, as it came: the members of a sequence, or an array's along its first axis.

    Raises:
        DemonstrationsError: it is neither.
    """
    try:
        return [given[i] for i in range(len(given))]
    except (TypeError, LookupError) as error:
        raise DemonstrationsError(
            f"{name}: expected a list, with an array for each episode, or one array of them all, got {type(given).__name__}. "
            "For a single episode give [ ... ]."
        ) from error


def by_episode(observations: Any) -> list[Any]:
    """An array, or a dictionary of arrays, for each episode, as they came.

    Args:
        observations: N arrays (T+1, k), or one (N, T+1, k); or N dictionaries of arrays (T+1, ...); or N lists of T+1
            dictionaries; or one dictionary of what would be right without one. Dictionaries may lie in others. A list or tuple
            of arrays is taken for one array of one axis more.

    Raises:
        DemonstrationsError: it is none of these, parts of unlike numbers of episodes, or names that are none.
    """
    if not isinstance(observations, Mapping):
        return [_named(one) for one in each_episode("observations", observations)]
    columns = {name: each_episode(f"observations[{name!r}]", column) for name, column in _flattened(observations).items()}
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise DemonstrationsError(
            f"observations: expected equally many episodes in every part, got {counts}. For a single episode give [ ... ]."
        )
    return [{name: column[i] for name, column in columns.items()} for i in range(next(iter(counts.values()), 0))]


def _named(episode: Any) -> Any:
    """An episode's dictionary, where it is one, or a list of those of its steps."""
    if hasattr(episode, "unwrap"):  # the DictObs of `imitation`
        episode = episode.unwrap()
    if isinstance(episode, list | tuple) and episode and isinstance(episode[0], Mapping):
        episode = stacked(episode)
    return _flattened(episode) if isinstance(episode, Mapping) else episode


def as_nested(observations: Observations) -> Any:
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


def _flattened(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of dictionaries within dictionaries, named by their paths."""
    pairs = list(_paths(parts, ""))
    found = dict(pairs)
    check_names(found)
    if len(found) < len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise DemonstrationsError(f"observations: expected every name once, got two parts {twice[0]!r}. Rename one.")
    return found


def _paths(parts: Mapping[str, Any], before: str) -> Iterator[tuple[Any, Any]]:
    if not parts:
        raise DemonstrationsError(
            f"observations: expected parts, got an empty dictionary{f' in {before!r}' if before else ''}."
        )
    for name, part in parts.items():
        path = f"{before}{_BETWEEN}{name}" if before and isinstance(name, str) else name
        if isinstance(part, Mapping):
            check_names([path])
            yield from _paths(part, path)
        else:
            yield path, part


def checked_observations(name: str, episode: Any, key: str | None = None) -> Observations:
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
            return {part: checked_array(f"{name}[{part!r}]", value) for part, value in episode.items()}
        if isinstance(key, str) and key in episode:
            episode = {key: checked_array(f"{name}[{key!r}]", episode[key])}
        return state_part(episode, key)
    return state_part(checked_array(name, episode, ndim=2), key)


def checked_array(name: str, value: ArrayLike, ndim: int | None = None) -> NDArray[Any]:
    """A copy of an array of numbers, in the machine's byte order; read-only memory maps in it stay where they are.

    Args:
        name: what errors call it.
        value: the array.
        ndim: its axes, and then its numbers become floats; None: one for each step, and any others, and then whole numbers and
            booleans stay what they are.

    Raises:
        DemonstrationsError: it is no such array.
    """
    try:
        array: NDArray[Any] = value if _stays(value) else np.array(value)  # type: ignore[assignment]
    except (ValueError, TypeError, RuntimeError) as error:
        raise DemonstrationsError(f"{name}: expected an array of numbers: {error}") from error
    if array.dtype.kind not in ("fiub" if ndim is None else "fiu"):
        raise DemonstrationsError(
            f"{name}: expected an array of numbers, got {type(value).__name__} with elements of type {array.dtype}."
        )
    if array.ndim != ndim if ndim is not None else array.ndim == 0:
        axes = {1: "one axis, steps", 2: "two axes, steps and components"}.get(ndim or 0, "an axis of steps")
        raise DemonstrationsError(f"{name}: expected {axes}, got shape {array.shape}.{_hint(array.ndim, ndim or 1)}")
    same = array.dtype.newbyteorder("=")
    kept = same in _KEPT or (ndim is None and same.kind != "f")
    return array.astype(same if kept else np.float64, copy=False)


def fits_files(array: Any) -> bool:
    """Whether it is an array of numbers of a type that files and maps keep as it is."""
    if not isinstance(array, np.ndarray):
        return False
    return array.dtype.isnative and (array.dtype in _KEPT if array.dtype.kind == "f" else array.dtype.kind in "iub")


def in_chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Some rows after the others, of few bytes, so that an array that lies in a file is never in memory as a whole."""
    row = array.nbytes // max(1, len(array))
    if row > _CHUNK and array.ndim > 1:
        for one in array:
            yield from in_chunks(one)
        return
    rows = max(1, _CHUNK // max(1, row))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def _stays(value: Any) -> bool:
    """Whether an array lies in a file, and nobody can change it through this array."""
    return isinstance(value, np.memmap) and not value.flags.writeable and value.dtype.isnative


def _hint(came: int, expected: int) -> str:
    if expected == 2 and came == 1:
        return " For one number per step give array[:, None], for a single episode [array]."
    if came > expected:
        return ' Keep the numbers that the state can be read from; frames go beside them: {"state": ..., "frames": ...}.'
    return ""
