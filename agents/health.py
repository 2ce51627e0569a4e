"""How the solver fares inside a policy."""

from __future__ import annotations

import math
from typing import Any

from dilqr_rl.solution import Solution

__all__ = ["SolverHealth"]


class SolverHealth:
    """Counts how plans ended, since `clear`. Nothing that a policy does depends on it.

    Attributes:
        plans: how many there were.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.plans = 0
        self._converged = self._iterations = self._singular = 0
        self._residual = 0.0

    def add(self, solution: Solution) -> None:
        """Count the plans of a batch."""
        residual = solution.residual
        self.plans += residual.shape[0]
        self._converged += int(solution.converged.sum())
        self._iterations += int(solution.num_iterations.sum())
        self._singular += int(solution.singular.sum())
        self._residual = max(self._residual, float(residual.nan_to_num(nan=math.inf).max()))

    def summary(self) -> dict[str, float]:
        """The shares that converged and that are singular, the mean number of iterations and the largest residual.

        It is empty if there was no plan.
        """
        if self.plans == 0:
            return {}
        return {
            "converged": self._converged / self.plans,
            "iterations": self._iterations / self.plans,
            "singular": self._singular / self.plans,
            "residual": self._residual,
        }

    def __deepcopy__(self, memo: Any) -> SolverHealth:
        return SolverHealth()

    def __reduce__(self) -> tuple[Any, ...]:
        return SolverHealth, ()
