"""Demonstrations: episodes of somebody acting, from arrays, files and folders; divided, cut and compared."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dilqr_rl.agents.demonstration_files import FileContents, read_contents, write_archive, write_folder
from dilqr_rl.agents.episode import Episode, check_episode, fingerprint, flags
from dilqr_rl.agents.observations import (
    DemonstrationsError,
    by_episode,
    checked_array,
    checked_observations,
    each_episode,
    state_part,
)
from dilqr_rl.checks import MOST, number, whole

__all__ = ["Demonstrations", "DemonstrationsError", "Episode", "check_disjoint"]

_SETS = 3  # training, validation and test


@dataclass(frozen=True)
class Demonstrations:
    """Episodes in one environment.

    Attributes:
        env_id: its Gymnasium id.
        env_kwargs: what it was made with.
        episodes: one after the other, of equal sizes and with the same named observations, if they have names.
        open_loop: whether each episode is one plan, made from its first observation and carried out as it was made; else each
            action answers the observation before it.

    Raises:
        DemonstrationsError: there are none, their sizes or names differ, or they hold NaN, infinity or no numbers.
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
        for i, episode in enumerate(self.episodes):
            check_episode(i, episode, self.episodes[0])

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
        observations: Sequence[ArrayLike | Mapping[str, Any]] | NDArray[Any] | Mapping[str, Any],
        actions: Sequence[ArrayLike] | NDArray[Any],
        rewards: Sequence[ArrayLike] | NDArray[Any] | None = None,
        *,
        terminated: ArrayLike = False,
        truncated: ArrayLike | None = None,
        env_kwargs: Mapping[str, Any] | None = None,
        open_loop: bool = False,
        key: str | None = None,
    ) -> Demonstrations:
        """Demonstrations from arrays, which are copied unless they are read-only memory maps.

        Args:
            env_id: Gymnasium id of the environment that was acted in.
            observations: N arrays (T+1, k), or one (N, T+1, k): the last one of an episode is what its last action led to. Or
                named ones (T+1, ...), such as states, goals and frames: a dictionary for each episode or for each of its steps,
                or one dictionary for all. Learners read the state from the part "state", or from the one that `part` gives. A
                list or tuple of arrays is taken for one array of one axis more.
            actions: N arrays (T, m), or one (N, T, m).
            rewards: N arrays (T,), or one (N, T). Zeros if None: no learner here asks for them, but `returns` is 0 then.
            terminated: whether the environment ended an episode; (N,), or one for all.
            truncated: whether something else cut it off; (N,), or one for all. If None, wherever the environment didn't end it.
            env_kwargs: what the environment was made with.
            open_loop: see the class.
            key: the part of named observations to keep, as arrays without a name; None: all.

        Raises:
            DemonstrationsError: sizes that don't fit each other, names that collide, what is no number, or no such part.
        """
        columns = {"observations": by_episode(observations), "actions": each_episode("actions", actions)}
        columns |= {} if rewards is None else {"rewards": each_episode("rewards", rewards)}
        count = _common_count(columns)
        seen = [checked_observations(f"observations[{i}]", one, key) for i, one in enumerate(columns["observations"])]
        taken = [checked_array(f"actions[{i}]", one, ndim=2) for i, one in enumerate(columns["actions"])]
        given = columns.get("rewards", [np.zeros(len(one)) for one in taken])
        gains = [checked_array(f"rewards[{i}]", one, ndim=1) for i, one in enumerate(given)]
        ended = flags("terminated", terminated, count)
        cut = ~ended if truncated is None else flags("truncated", truncated, count)
        rows = zip(seen, taken, gains, ended.tolist(), cut.tolist(), strict=True)
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
        if count < _SETS:
            raise DemonstrationsError(
                f"demonstrations: expected at least 3 episodes, to train, validate and test on different ones, got {count}. "
                + ("Record more." if self.open_loop else "Cut a long one with `in_pieces`, or divide it with `split_in_time`.")
            )
        order = np.random.default_rng(seed).permutation(count)
        if sizes is None:
            held_out = max(1, count // 5)
            parts = np.split(order, [count - 2 * held_out, count - held_out])
        else:
            train, validation, test = _check_sizes(sizes, count)
            held_out = test + validation
            parts = [order[held_out : held_out + train], order[test:held_out], order[:test]]
        train_set, validation_set, test_set = map(self.select, parts)
        return train_set, validation_set, test_set

    def select(self, numbers: Iterable[int]) -> Demonstrations:
        """The episodes of these numbers, in this order.

        Raises:
            ValueError: one of them isn't there, or none is asked for.
        """
        chosen = [whole("numbers", i, "numbers of episodes, 0 or more", 0, most=len(self) - 1) for i in numbers]
        if not chosen:
            raise DemonstrationsError("numbers: expected at least one number of an episode, got none.")
        return self._with(self.episodes[i] for i in chosen)

    def overlap(self, other: Demonstrations) -> list[tuple[int, int]]:
        """Pairs (i, j) where episode i here and episode j of `other` have the same states and actions.

        The states are what learners read: observations without a name or the part "state"; without one, all flat parts. What
        lies beside them, such as frames, isn't looked at.
        """
        places: dict[bytes, list[int]] = {}
        for j, mark in enumerate(map(fingerprint, other.episodes)):
            places.setdefault(mark, []).append(j)
        return [(i, j) for i, mark in enumerate(map(fingerprint, self.episodes)) for j in places.get(mark, [])]

    def without_duplicates(self) -> Demonstrations:
        """The first of each group of episodes with the same states and actions, as `overlap` tells them, in the old order."""
        first: dict[bytes, Episode] = {}
        for episode in self.episodes:
            first.setdefault(fingerprint(episode), episode)
        return self._with(first.values())

    def part(self, key: str) -> Demonstrations:
        """The same with one part of named observations, as arrays without a name: what the state is read from.

        Raises:
            DemonstrationsError: there is no such part, or its steps don't hold flat numbers.
        """
        return self._with(replace(one, observations=state_part(one.observations, key)) for one in self.episodes)

    def in_pieces(self, steps: int) -> Demonstrations:
        """Each episode cut into one piece after the other: a long log as episodes that `split` can draw from.

        Neighbouring pieces are much alike where the log is slow, and a random split may put one to train and one to test. To
        hold out a stretch of time as a whole, use `split_in_time`.

        Args:
            steps: actions of each piece. What an episode's end leaves over goes to the last piece, which is longer, since fits
                compare no more actions at a time than the shortest piece has; a shorter episode stays as it is.

        Raises:
            DemonstrationsError: these are plans, of which pieces are none.
        """
        steps = whole("steps", steps, "at least 1", most=MOST)
        self._check_closed("in_pieces")
        return self._with(
            one.between(i * steps, (i + 1) * steps if i < last else len(one))
            for one, last in ((one, max(1, len(one) // steps) - 1) for one in self.episodes)
            for i in range(last + 1)
        )

    def split_in_time(
        self, validation: float = 0.2, test: float = 0.2
    ) -> tuple[Demonstrations, Demonstrations, Demonstrations]:
        """Training, validation and test parts of each episode, in the order of time: for one long log.

        Args:
            validation: share of each episode's actions, which come after those to train on.
            test: share of the last ones.

        Raises:
            DemonstrationsError: these are plans, of which parts are none; shares that leave a part without a step.
            ValueError: a share is no number.
        """
        validation, test = (number(name, share, "a share") for name, share in (("validation", validation), ("test", test)))
        if not (validation > 0 and test > 0 and validation + test < 1):
            raise DemonstrationsError(
                f"validation, test: expected two shares above 0 that leave some to train on, got {validation} and {test}."
            )
        return tuple(self.in_time([0.0, 1 - validation - test, 1 - test, 1.0]))  # type: ignore[return-value]

    def in_time(self, shares: Sequence[float]) -> list[Demonstrations]:
        """Each episode's actions between one share of them and the next, one set for each pair of neighbours.

        Args:
            shares: from 0 to 1, ascending, such as [0, 0.8, 1].

        Raises:
            DemonstrationsError: these are plans, of which parts are none; no such shares; an episode is too short.
            ValueError: a share is no number.
        """
        self._check_closed("a division in time")
        shares, parts = [number("shares", share, "numbers from 0 to 1") for share in shares], []
        if len(shares) < 2 or shares[0] < 0 or shares[-1] > 1 or any(a >= b for a, b in itertools.pairwise(shares)):
            raise DemonstrationsError(f"shares: expected two or more from 0 to 1, ascending, got {shares}.")
        for start, stop in itertools.pairwise(shares):
            ends = [(round(start * len(one)), round(stop * len(one))) for one in self.episodes]
            short = next((len(one) for one, (first, end) in zip(self.episodes, ends, strict=True) if first >= end), None)
            if short is not None:
                raise DemonstrationsError(
                    f"demonstrations: expected episodes long enough to be divided in time at shares of "
                    f"{', '.join(f'{share:g}' for share in shares)}, got one of {short} actions. "
                    + ("Leave it out, or divide whole episodes with `split`." if len(self) >= _SETS else "Record longer ones.")
                )
            parts.append(self._with(one.between(*cut) for one, cut in zip(self.episodes, ends, strict=True)))
        return parts

    def _check_closed(self, what: str) -> None:
        if self.open_loop:
            raise DemonstrationsError(
                f"demonstrations: {what} expects actions that answer observations, got plans that were carried out as made "
                f"(open_loop). {'Divide whole ones with `split`.' if len(self) >= _SETS else 'Record more, and use `split`.'}"
            )

    def _with(self, episodes: Iterable[Episode]) -> Demonstrations:
        """The same with parts of its episodes, which aren't checked again: a look at all numbers takes its time."""
        found = copy.copy(self)
        object.__setattr__(found, "episodes", tuple(episodes))
        return found

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a .npz file, whole or not at all.

        Equal ones give equal bytes.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
            DemonstrationsError: somebody has written NaN or infinity into the arrays, or `env_kwargs` holds what JSON doesn't.
        """
        write_archive(path, self._contents(), overwrite=overwrite)

    def save_folder(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a folder of .npy files, whole or not at all: for more than memory holds.

        `load` maps them into memory instead of reading them. Whole numbers that nobody looks at, such as frames of bytes, stay
        on the disk; floats are read once, some at a time, since NaN is refused. A process that is killed leaves a hidden folder
        beside `path`, whose name ends in .new.

        Raises:
            FileExistsError: the folder exists and `overwrite` is false, or it holds something else than demonstrations.
            DemonstrationsError: somebody has written NaN or infinity into the arrays, `env_kwargs` holds what JSON doesn't, or
                a part's name is none of a file.
        """
        write_folder(path, self._contents(), overwrite=overwrite)

    def _contents(self) -> FileContents:
        for i, episode in enumerate(self.episodes):
            check_episode(i, episode, self.episodes[0])
        return FileContents(self.env_id, dict(self.env_kwargs), self.open_loop, self.episodes)

    @classmethod
    def load(cls, path: str | Path) -> Demonstrations:
        """Read what `save` or `save_folder` wrote; pickled objects are refused. The arrays of a folder stay there, read-only.

        Raises:
            FileNotFoundError: there is no such file.
            DemonstrationsError: the file is something else, is damaged, or of another version.
        """
        found = read_contents(Path(path))
        try:
            return cls(found.env_id, found.env_kwargs, found.episodes, found.open_loop)
        except DemonstrationsError as error:
            raise DemonstrationsError(f"{path}: damaged or made by hand: {error}") from error


def check_disjoint(**sets: Demonstrations) -> None:
    """Refuse sets of demonstrations that share an episode: what was trained on must not test.

    Args:
        **sets: by the names that an error calls them, as in check_disjoint(train=..., validation=..., test=...).

    Raises:
        DemonstrationsError: two of them hold an episode with the same states and actions, as `overlap` tells them.
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


def _common_count(columns: Mapping[str, Sized]) -> int:
    """How many episodes every column has."""
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise DemonstrationsError(
            f"episodes: expected equally many in every argument, got {counts}. For a single episode give [ ... ] around each."
        )
    return counts["actions"]


def _check_sizes(sizes: tuple[int, int, int], count: int) -> tuple[int, int, int]:
    if len(sizes) != 3 or any(int(size) != size or size < 1 for size in sizes):
        raise DemonstrationsError(
            f"sizes: expected three numbers of episodes (train, validation, test), 1 or more, got {sizes}."
        )
    if sum(sizes) > count:
        raise DemonstrationsError(f"sizes: expected at most {count} episodes in all, as many as there are, got {sizes}.")
    return sizes
