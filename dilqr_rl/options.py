"""Settings of the solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dilqr_rl.checks import MOST, number, whole

__all__ = ["ILQROptions"]


@dataclass(frozen=True)
class ILQROptions:
    """Settings of `ILQR`; the defaults suit problems whose states and controls are of order one to a hundred.

    Attributes:
        max_iterations: iterations after which a problem is given up.
        tolerance: a problem has converged when its residual (see `Solution`) is below this, and its controls have come to
            rest. It is absolute, in units of cost per unit of control: scale it with the cost if the cost is tiny or huge.
        step_tolerance: controls have come to rest when Newton's step would change none of them by more than this, relative to 1
            + the largest of them. Where the Hessian has no such step (see `Solution.singular`) the residual alone decides.
        max_seconds: time for one call of the solver, by a monotonic clock, after which it hands back the best plans so far,
            with the status TIME_LIMIT; shared out evenly among the problems of a batch. It is looked at between iterations,
            with the time of the last one in mind; the compilation of new native code doesn't count. What comes before the first
            iteration is done whatever it takes: the rollouts of the starts, which of a large batch may take longer by
            themselves. Where no iteration fits, the plans are those rollouts. None: no limit.
        record: keep what happened in each iteration, as `Solution.history`.
        backend: "native" solves with machine code that is generated from the problem's functions: float64 on the CPU, 50 to
            1000 times faster for physics; what can't be turned into it raises a ValueError. "torch" is the readable reference
            and runs on any device. "auto" takes native code where it can, else PyTorch, with a line in the log that says why.
        sufficient_decrease: a step must bring at least this share of the decrease that the quadratic model expects (Armijo).
        line_search_steps: how often a step is halved before it is given up.
        regularisation_min: the first nonzero damping: what is added to the diagonal of Q_uu, relative to its largest element.
        regularisation_max: beyond this the line search has failed.
        regularisation_factor: by how much the regularisation rises after a failed step, and falls after a full one.

    Raises:
        ValueError: a value is out of its range.
    """

    max_iterations: int = 500
    tolerance: float = 1e-6
    step_tolerance: float = 1e-4
    max_seconds: float | None = None
    record: bool = False
    backend: Literal["auto", "native", "torch"] = "auto"
    sufficient_decrease: float = 1e-4
    line_search_steps: int = 10
    regularisation_min: float = 1e-3
    regularisation_max: float = 1e10
    regularisation_factor: float = 10.0

    def __post_init__(self) -> None:
        if self.backend not in ("auto", "native", "torch"):
            raise ValueError(f'backend: expected "auto", "native" or "torch", got {self.backend!r}.')
        if not isinstance(self.record, bool):
            raise ValueError(f"record: expected True or False, got {self.record!r}.")
        for name in ("max_iterations", "line_search_steps"):
            self._keep(name, whole(name, getattr(self, name), most=MOST))
        if self.max_seconds is not None:
            expected = "a number of seconds above 0, or None"
            self._keep("max_seconds", number("max_seconds", self.max_seconds, expected, _is_positive))
        for name in ("tolerance", "step_tolerance", "regularisation_min", "regularisation_max"):
            self._keep(name, number(name, getattr(self, name), "a number above 0", _is_positive))
        factor, share = self.regularisation_factor, self.sufficient_decrease
        factor = number("regularisation_factor", factor, "a number above 1", lambda value: value > 1)
        self._keep("regularisation_factor", factor)
        share = number("sufficient_decrease", share, "a number between 0 and 0.5", lambda value: 0 < value < 0.5)
        self._keep("sufficient_decrease", share)

    def _keep(self, name: str, value: float) -> None:
        """Python's own number, which a file can hold, in the place of another library's."""
        if value is not getattr(self, name):
            object.__setattr__(self, name, value)


def _is_positive(value: float) -> bool:
    return value > 0
