"""What a planner gives back: trajectories, and how the solve went."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor

__all__ = ["Solution", "Status"]


class Status(IntEnum):
    """How the solve of one problem ended. `status.sentence` says it in words."""

    CONVERGED = 0
    MAX_ITERATIONS = 1
    LINE_SEARCH_FAILED = 2
    NONFINITE = 3

    @property
    def sentence(self) -> str:
        """What this status means and what to do about it."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.CONVERGED: "The projected gradient is below the tolerance.",
    Status.MAX_ITERATIONS: (
        "The projected gradient is still above the tolerance after max_iterations; raise max_iterations or give a better "
        "u_init."
    ),
    Status.LINE_SEARCH_FAILED: (
        "No step lowers the cost, however strong the regularisation; is the problem smooth, and the tolerance within reach "
        "of float64?"
    ),
    Status.NONFINITE: (
        "The dynamics or a cost gave NaN or infinity along the trajectory; look at x0, u_init and the parameters."
    ),
}


@dataclass(frozen=True)
class Solution:
    """The solutions of B problems (without the leading B where x0 had none), in x0's dtype and on its device.

    Gradients flow from `states`, `controls` and `cost`; the other fields carry none. A problem that did not converge passes a
    gradient of zero with gradient="implicit" and "diffmpc".

    Attributes:
        states: (B, T+1, n).
        controls: (B, T, m), within the bounds.
        cost: (B,), stage costs plus terminal cost.
        status: (B,) of `Status` values.
        num_iterations: (B,).
        residual: (B,), Euclidean norm of the projected gradient u - clip(u - dcost/du, u_min, u_max) over all controls.
        gains: (B, T, m, n), feedback du_t/dx_t of the last sweep; zero for a control at its bound.
    """

    states: Tensor
    controls: Tensor
    cost: Tensor
    status: Tensor
    num_iterations: Tensor
    residual: Tensor
    gains: Tensor

    @property
    def converged(self) -> Tensor:
        """(B,) bool: whether the residual is below the tolerance."""
        return self.status == Status.CONVERGED

    def cast(self, dtype: torch.dtype) -> Solution:
        """The solution with its real numbers in `dtype`."""
        parts = {field.name: getattr(self, field.name) for field in fields(self)}
        return Solution(**{name: part.to(dtype) if part.is_floating_point() else part for name, part in parts.items()})

    def squeeze(self) -> Solution:
        """The solution of a batch of one, without its batch dimension."""
        return Solution(**{field.name: getattr(self, field.name).squeeze(0) for field in fields(self)})

    def describe(self) -> str:
        """One line for a person: how many problems ended how, and in how many iterations."""
        status = self.status.reshape(-1)
        counts = [f"{int((status == value).sum())} {value.name}" for value in Status if (status == value).any()]
        iterations = self.num_iterations.reshape(-1).to(torch.float64)
        return f"{', '.join(counts)}; iterations: median {iterations.median():.0f}, most {iterations.max():.0f}"
