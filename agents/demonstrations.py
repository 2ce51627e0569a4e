"""Demonstrations: episodes of somebody acting, in memory and in .npz files that hold plain arrays only."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dilqr_rl.agents.archives import ArchiveError, read_arrays
from dilqr_rl.agents.episode import DemonstrationsError, Episode, check_episode, fingerprint, flags, numbers
from dilqr_rl.agents.files import write_whole
from dilqr_rl.agents.tensor_files import TensorFileError, parse_json

__all__ = ["Demonstrations", "DemonstrationsError", "Episode", "check_disjoint"]

_FORMAT, _VERSION = "dilqr_rl demonstrations", 1
_ARRAYS = ("observations", "actions", "rewards", "lengths", "terminated", "truncated")


@dataclass(frozen=True)
class Demonstrations:
    """Episodes in one environment.

    Attributes:
        env_id: its Gymnasium id.
        env_kwargs: what it was made with.
        episodes: one after the other.
        open_loop: whether each episode is one plan, made from its first observation and carried out as it was made; else each
            action answers the observation before it.

    Raises:
        DemonstrationsError: there are none, their sizes differ, or they hold NaN or infinity.
    """

    env_id: str
    env_kwargs: Mapping[str, Any]
    episodes: tuple[Episode, ...]
    open_loop: bool = False

    def __post_init__(self) -> None:
        if ":" in self.env_id:  # Gymnasium would import what stands before it, and a file must not choose what is imported
            raise DemonstrationsError(f"env_id: expected an id without a module in front, got {self.env_id!r}.")
        if not self.episodes:
            raise DemonstrationsError("episodes: expected at least one, got none.")
        for number, episode in enumerate(self.episodes):
            check_episode(number, episode, self.episodes[0])

    def __len__(self) -> int:
        return len(self.episodes)

    @property
    def num_steps(self) -> int:
        """Actions in all episodes."""
        return sum(len(episode) for episode in self.episodes)

    @property
    def returns(self) -> NDArray[np.float64]:
        """The sum of rewards of each episode."""
        return np.array([episode.rewards.sum(dtype=np.float64) for episode in self.episodes])

    @classmethod
    def from_arrays(
        cls,
        env_id: str,
        observations: Sequence[ArrayLike] | NDArray[Any],
        actions: Sequence[ArrayLike] | NDArray[Any],
        rewards: Sequence[ArrayLike] | NDArray[Any] | None = None,
        *,
        terminated: ArrayLike = False,
        truncated: ArrayLike | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        open_loop: bool = False,
    ) -> Demonstrations:
        """Demonstrations from arrays in memory, which are copied.

        Args:
            env_id: Gymnasium id of the environment that was acted in.
            observations: N arrays (T+1, k), or one (N, T+1, k): the last one of an episode is what its last action led to.
            actions: N arrays (T, m), or one (N, T, m).
            rewards: N arrays (T,), or one (N, T). Zeros if None: no learner here asks for them, but `returns` is 0 then.
            terminated: whether the environment ended an episode; (N,), or one for all.
            truncated: whether something else cut it off; (N,), or one for all. If None, wherever the environment didn't end it.
            env_kwargs: what the environment was made with.
            open_loop: see the class.

        Raises:
            DemonstrationsError: sizes that don't fit each other, or what is no number.
        """
        parts = _arrays_of({"observations": observations, "actions": actions, "rewards": rewards})
        count = len(parts["actions"])
        gains = parts.get("rewards") or [np.zeros(len(taken)) for taken in parts["actions"]]
        ended = flags("terminated", terminated, count)
        cut = ~ended if truncated is None else flags("truncated", truncated, count)
        rows = zip(parts["observations"], parts["actions"], gains, ended.tolist(), cut.tolist(), strict=True)
        return cls(env_id, dict(env_kwargs or {}), tuple(Episode(*row) for row in rows), open_loop)

    def split(
        self, seed: int = 0, sizes: tuple[int, int, int] | None = None
    ) -> tuple[Demonstrations, Demonstrations, Demonstrations]:
        """Training, validation and test episodes, drawn at random: whole ones, never steps.

        Args:
            seed: of the draw.
            sizes: how many of each. With equal seeds, another number for training changes neither of the others, and more
                training episodes hold the fewer ones. If None: all, a fifth each, one at least, for validation and test.

        Raises:
            DemonstrationsError: there are fewer than three episodes, or fewer than `sizes` asks for.
        """
        count = len(self)
        if count < 3:
            raise DemonstrationsError(
                f"demonstrations: expected at least 3 episodes, to train, validate and test on different ones, got {count}."
            )
        order = np.random.default_rng(seed).permutation(count)
        if sizes is None:
            held_out = max(1, count // 5)
            parts = np.split(order, [count - 2 * held_out, count - held_out])
        else:
            train, validation, test = _check_sizes(sizes, count)
            held_out = test + validation
            parts = [order[held_out : held_out + train], order[test:held_out], order[:test]]
        chosen = [replace(self, episodes=tuple(self.episodes[i] for i in part)) for part in parts]
        return chosen[0], chosen[1], chosen[2]

    def overlap(self, other: Demonstrations) -> list[tuple[int, int]]:
        """Pairs (i, j) where episode i here and episode j of `other` have the same observations and actions."""
        places: dict[bytes, list[int]] = {}
        for j, mark in enumerate(map(fingerprint, other.episodes)):
            places.setdefault(mark, []).append(j)
        return [(i, j) for i, mark in enumerate(map(fingerprint, self.episodes)) for j in places.get(mark, [])]

    def without_duplicates(self) -> Demonstrations:
        """The first of each group of episodes with the same observations and actions, in the old order."""
        first: dict[bytes, Episode] = {}
        for episode in self.episodes:
            first.setdefault(fingerprint(episode), episode)
        return replace(self, episodes=tuple(first.values()))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an .npz file, whole or not at all.

        Equal ones give equal bytes.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
            DemonstrationsError: somebody has written NaN or infinity into the arrays.
        """
        for number, episode in enumerate(self.episodes):
            check_episode(number, episode, self.episodes[0])
        header = {"format": _FORMAT, "version": _VERSION, "env_id": self.env_id, "env_kwargs": dict(self.env_kwargs)}
        header["open_loop"] = self.open_loop
        arrays = {
            "header": np.array(json.dumps(header, default=float)),
            "observations": np.concatenate([episode.observations for episode in self.episodes]),
            "actions": np.concatenate([episode.actions for episode in self.episodes]),
            "rewards": np.concatenate([episode.rewards for episode in self.episodes]),
            "lengths": np.array([len(episode) for episode in self.episodes]),
            "terminated": np.array([episode.terminated for episode in self.episodes]),
            "truncated": np.array([episode.truncated for episode in self.episodes]),
        }

        def write(file: Path) -> None:
            with file.open("wb") as stream:
                np.savez_compressed(stream, allow_pickle=False, **arrays)

        write_whole(path, write, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Demonstrations:
        """Read what `save` wrote; pickled objects are refused.

        Raises:
            FileNotFoundError: there is no such file.
            DemonstrationsError: the file is something else, is damaged, or of another version.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path}: there is no such file.")
        try:
            arrays = read_arrays(Path(path), ("header", *_ARRAYS))
            header = parse_json(str(arrays.pop("header")))
        except (ArchiveError, TensorFileError) as error:
            raise DemonstrationsError(
                f"{path}: expected an .npz file as `dilqr expert` writes it, got something else or a damaged one ({error}). "
                "Pickled objects are never read; make a file with `dilqr expert`."
            ) from error
        if not isinstance(header, dict) or header.get("format") != _FORMAT or header.get("version") != _VERSION:
            came = header if not isinstance(header, dict) else {key: header.get(key) for key in ("format", "version")}
            raise DemonstrationsError(f"{path}: expected format {_FORMAT!r}, version {_VERSION}, got {came}.")
        try:
            open_loop = header.get("open_loop", False)  # older files hold closed loops, and no such key
            if not isinstance(open_loop, bool):
                raise DemonstrationsError(f"open_loop: expected true or false, got {open_loop!r}.")
            if not isinstance(header["env_id"], str):
                raise DemonstrationsError(f"env_id: expected a text, got {header['env_id']!r}.")
            return cls(header["env_id"], dict(header["env_kwargs"]), _cut(arrays), open_loop)
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, MemoryError, RecursionError) as error:
            raise DemonstrationsError(f"{path}: damaged or made by hand: {error}") from error


def check_disjoint(**sets: Demonstrations) -> None:
    """Refuse sets of demonstrations that share an episode: what was trained on must not test.

    Args:
        **sets: by the names that an error calls them, as in check_disjoint(train=..., validation=..., test=...).

    Raises:
        DemonstrationsError: two of them hold an episode with the same observations and actions.
    """
    for (name, one), (other_name, other) in itertools.combinations(sets.items(), 2):
        shared = one.overlap(other)
        if shared:
            some = ", ".join(f"{name} {i} = {other_name} {j}" for i, j in shared[:5])
            more = f" and {len(shared) - 5} more" if len(shared) > 5 else ""
            raise DemonstrationsError(
                f"{name} and {other_name}: expected different episodes, but these are the same: {some}{more}. Merge the sets, "
                "remove what is in there twice with `without_duplicates()`, and divide them with `split`."
            )


def _arrays_of(columns: Mapping[str, Sequence[Any] | NDArray[Any] | None]) -> dict[str, list[NDArray[np.floating[Any]]]]:
    """The arrays of each column, one per episode, but none of a column that isn't there."""
    given = {name: column for name, column in columns.items() if column is not None}
    counts = {name: len(column) for name, column in given.items()}
    if len(set(counts.values())) > 1:
        raise DemonstrationsError(f"episodes: expected equally many in every argument, got {counts}.")
    return {
        name: [numbers(f"{name}[{i}]", part, ndim=1 if name == "rewards" else 2) for i, part in enumerate(column)]
        for name, column in given.items()
    }


def _check_sizes(sizes: tuple[int, int, int], count: int) -> tuple[int, int, int]:
    if len(sizes) != 3 or any(int(size) != size or size < 1 for size in sizes):
        raise DemonstrationsError(
            f"sizes: expected three numbers of episodes (train, validation, test), 1 or more, got {sizes}."
        )
    if sum(sizes) > count:
        raise DemonstrationsError(f"sizes: expected at most {count} episodes in all, as many as there are, got {sizes}.")
    return sizes


def _cut(arrays: Mapping[str, NDArray[Any]]) -> tuple[Episode, ...]:
    lengths = arrays["lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 1).any():
        raise DemonstrationsError(f"lengths: expected positive integers (episodes,), got {lengths!r}.")
    count, steps = len(lengths), sum(lengths.tolist())  # Python's integers don't overflow
    expected = {"observations": steps + count, "actions": steps, "rewards": steps, "terminated": count, "truncated": count}
    for name, rows in expected.items():
        if arrays[name].ndim == 0 or len(arrays[name]) != rows:
            raise DemonstrationsError(
                f"{name}: expected {rows} rows for {count} episodes of {steps} steps, got shape {arrays[name].shape}."
            )
    observations, actions, rewards = (numbers(name, arrays[name], arrays[name].ndim) for name in _ARRAYS[:3])
    terminated, truncated = (flags(name, arrays[name], count).tolist() for name in ("terminated", "truncated"))
    ends = itertools.accumulate(lengths.tolist())
    return tuple(
        Episode(
            observations=observations[end - length + i : end + i + 1],
            actions=actions[end - length : end],
            rewards=rewards[end - length : end],
            terminated=terminated[i],
            truncated=truncated[i],
        )
        for i, (length, end) in enumerate(zip(lengths.tolist(), ends, strict=True))
    )
