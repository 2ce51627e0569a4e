"""Demonstrations: episodes of somebody acting, in memory and in .npz files that hold plain arrays only."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dilqr_rl.agents.files import write_whole

__all__ = ["Demonstrations", "DemonstrationsError", "Episode"]

_FORMAT, _VERSION = "dilqr_rl demonstrations", 1
# What reading a damaged archive raises, by experience.
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
_ARRAYS = ("observations", "actions", "rewards", "lengths", "terminated", "truncated")


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


@dataclass(frozen=True)
class Demonstrations:
    """Episodes in one environment.

    Attributes:
        env_id: its Gymnasium id.
        env_kwargs: what it was made with.
        episodes: one after the other.

    Raises:
        DemonstrationsError: there are none, their sizes differ, or they hold NaN or infinity.
    """

    env_id: str
    env_kwargs: Mapping[str, Any]
    episodes: tuple[Episode, ...]

    def __post_init__(self) -> None:
        if ":" in self.env_id:  # Gymnasium would import what stands before it, and a file must not choose what is imported
            raise DemonstrationsError(f"env_id: expected an id without a module in front, got {self.env_id!r}.")
        if not self.episodes:
            raise DemonstrationsError("episodes: expected at least one, got none.")
        first = self.episodes[0]
        for number, episode in enumerate(self.episodes):
            steps = len(episode)
            shapes = {
                "observations": (episode.observations.shape, (steps + 1, *first.observations.shape[1:])),
                "actions": (episode.actions.shape, (steps, *first.actions.shape[1:])),
                "rewards": (episode.rewards.shape, (steps,)),
            }
            for name, (came, expected) in shapes.items():
                if came != expected or (name != "rewards" and len(came) != 2):
                    raise DemonstrationsError(f"episode {number}: expected {name} of shape {expected}, got {came}.")
                if not np.isfinite(getattr(episode, name)).all():
                    raise DemonstrationsError(f"episode {number}: {name} hold NaN or infinity.")
            if steps == 0:
                raise DemonstrationsError(f"episode {number}: expected at least one action, got none.")

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

    def split(self, seed: int = 0) -> tuple[Demonstrations, Demonstrations, Demonstrations]:
        """Training, validation and test episodes, drawn at random; a fifth each, one at least, for the latter two.

        Raises:
            DemonstrationsError: there are fewer than three episodes.
        """
        count = len(self)
        if count < 3:
            raise DemonstrationsError(
                f"demonstrations: expected at least 3 episodes, to train, validate and test on different ones, got {count}."
            )
        held_out = max(1, count // 5)
        order = np.random.default_rng(seed).permutation(count)
        parts = np.split(order, [count - 2 * held_out, count - held_out])
        train, validation, test = (tuple(self.episodes[i] for i in part) for part in parts)
        make = lambda episodes: Demonstrations(self.env_id, self.env_kwargs, episodes)  # noqa: E731
        return make(train), make(validation), make(test)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write an .npz file, whole or not at all.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
        """
        header = {"format": _FORMAT, "version": _VERSION, "env_id": self.env_id, "env_kwargs": dict(self.env_kwargs)}
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
            # NumPy leaves a damaged file open if it has opened it itself.
            with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                header, arrays = json.loads(str(file["header"])), {name: file[name] for name in _ARRAYS}
        except _UNREADABLE as error:
            what = error if isinstance(error, KeyError) else type(error).__name__  # NumPy's own words recommend allow_pickle
            raise DemonstrationsError(
                f"{path}: expected an .npz file as `dilqr expert` writes it, got something else or a damaged one ({what}). "
                "Pickled objects are never read; make a file with `dilqr expert`."
            ) from error
        if not isinstance(header, dict) or header.get("format") != _FORMAT or header.get("version") != _VERSION:
            came = header if not isinstance(header, dict) else {key: header.get(key) for key in ("format", "version")}
            raise DemonstrationsError(f"{path}: expected format {_FORMAT!r}, version {_VERSION}, got {came}.")
        try:
            return cls(str(header["env_id"]), dict(header["env_kwargs"]), _cut(arrays))
        except (DemonstrationsError, KeyError, TypeError, ValueError, IndexError) as error:
            raise DemonstrationsError(f"{path}: damaged or made by hand: {error}") from error


def _cut(arrays: Mapping[str, NDArray[Any]]) -> tuple[Episode, ...]:
    lengths = arrays["lengths"]
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 1).any():
        raise DemonstrationsError(f"lengths: expected positive integers (episodes,), got {lengths!r}.")
    count, steps = len(lengths), int(lengths.sum())
    expected = {"observations": steps + count, "actions": steps, "rewards": steps, "terminated": count, "truncated": count}
    for name, rows in expected.items():
        if arrays[name].ndim == 0 or len(arrays[name]) != rows:
            raise DemonstrationsError(
                f"{name}: expected {rows} rows for {count} episodes of {steps} steps, got shape {arrays[name].shape}."
            )
    ends = np.cumsum(lengths)
    return tuple(
        Episode(
            observations=arrays["observations"][end - length + i : end + i + 1],
            actions=arrays["actions"][end - length : end],
            rewards=arrays["rewards"][end - length : end],
            terminated=bool(arrays["terminated"][i]),
            truncated=bool(arrays["truncated"][i]),
        )
        for i, (length, end) in enumerate(zip(lengths.tolist(), ends.tolist(), strict=True))
    )
