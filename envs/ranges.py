"""Where an episode's physics come from: fixed numbers, and ranges to draw from."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dilqr_rl.envs.checks import read_vector
from dilqr_rl.envs.physics import SystemDynamics

__all__ = ["PhysicsSource"]


@dataclass(frozen=True)
class PhysicsSource:
    """The physics of a system: each a number, or drawn anew for each episode from a range.

    Attributes:
        dynamics_class: whose physics.
        time_step: s.
        numbers: every name with its number, in the order of `physics_names()`.
        ranges: names that are drawn, with the lowest and the highest number.
        given: names that are not to be drawn after all, with their numbers. The draws happen nevertheless, so that what is
            drawn after them stays the same.
    """

    dynamics_class: type[SystemDynamics]
    time_step: float
    numbers: Mapping[str, float]
    ranges: Mapping[str, tuple[float, float]]
    given: Mapping[str, float]

    @classmethod
    def read(cls, dynamics: SystemDynamics, physics: Any, randomize: Any) -> Self:
        """The source for what a person asked for.

        Args:
            dynamics: with the numbers of all physics that the person says nothing of.
            physics: numbers by name, or None.
            randomize: each name with its range (lowest, highest), or None; none that has a number, too.

        Raises:
            ValueError: unknown names, impossible numbers, an empty or reversed range, impossible numbers within the ranges, a
                name that has both a number and a range.
        """
        kind = type(dynamics)
        given = kind.check_names("physics", physics)
        numbers = kind.check_numbers({**dynamics.physics, **given}, dynamics.time_step)
        wanted = kind.check_names("randomize", randomize, example=(0.5, 1.5))
        twice = [name for name in wanted if name in given]
        if twice:
            raise ValueError(f"randomize: {twice} have a number in physics, too. Keep one of the two.")
        ranges = {name: _read_range(name, wanted[name]) for name in kind.physics_names() if name in wanted}
        return cls(kind, dynamics.time_step, numbers, ranges, {})._checked()

    def with_given(self, physics: Any) -> Self:
        """The same source for one episode, with numbers for some of the physics.

        Raises:
            ValueError: no mapping, unknown names, or numbers that are impossible beside the others.
        """
        given = self.dynamics_class.check_names("physics", physics)
        return replace(self, given=given)._checked() if given else self

    def at(self, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Physics (N, p), in the order of their names.

        Args:
            shares: (N, r) in [0, 1], where each number lies in its range; the ranges are in the order of their names.
        """
        names = list(self.numbers)
        physics = np.empty((len(shares), len(names)))
        physics[:] = [*self.numbers.values()]
        for share, (name, (low, high)) in zip(shares.T, self.ranges.items(), strict=True):
            physics[:, names.index(name)] = low + (high - low) * share
        for name, number in self.given.items():
            physics[:, names.index(name)] = number
        return physics

    def _checked(self) -> Self:
        """Itself, with floats, if the numbers are possible at both ends of every range, and in all corners of coupled ones."""
        try:
            numbers = self._check_ends()
        except ValueError as error:
            if not self.ranges:
                raise
            raise ValueError(f"physics, at an end of the ranges {dict(self.ranges)}: {error}") from None
        return replace(self, given={name: numbers[name] for name in self.given})

    def _check_ends(self) -> dict[str, float]:
        """The numbers at one of the ends, which are all possible."""
        coupled = [name for name in self.ranges if name in self.dynamics_class.coupled]
        for end in (0, 1):
            ends = {name: limits[end] for name, limits in self.ranges.items()}
            for corner in itertools.product(*(self.ranges[name] for name in coupled)):
                drawn = {**ends, **dict(zip(coupled, corner, strict=True))}
                numbers = self.dynamics_class.check_numbers({**self.numbers, **drawn, **self.given}, self.time_step)
        return numbers


def _read_range(name: str, given: Any) -> tuple[float, float]:
    try:
        low, high = read_vector(f"randomize[{name!r}]", given, 2).tolist()
    except ValueError:
        low = high = math.nan
    if not low < high or high - low == math.inf:
        raise ValueError(
            f"randomize[{name!r}]: expected a range (lowest, highest), got {given!r}. A single number goes into physics."
        )
    return low, high
