"""What a planner gives back: trajectories, and how the solve went."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["History", "Solution", "Status"]


class Status(IntEnum):
    """How the solve of one problem ended. `status.sentence` says it in words."""

    CONVERGED = 0
    MAX_ITERATIONS = 1
    LINE_SEARCH_FAILED = 2
    NONFINITE = 3
    TIME_LIMIT = 4
    NO_DERIVATIVE = 5

    @property
    def sentence(self) -> str:
        """What this status means and what to do about it."""
        return _SENTENCES[self]


_SENTENCES = {
    Status.CONVERGED: "The projected gradient is below the tolerance, and Newton's step would hardly move the controls.",
    Status.MAX_ITERATIONS: (
        "The projected gradient is still above the tolerance after max_iterations, or the controls still move; raise "
        "max_iterations or give a better u_init. At a kink, as of |u| or max, no solve ends: make the cost smooth, say "
        "sqrt(u^2 + eps^2) - eps."
    ),
    Status.LINE_SEARCH_FAILED: (
        "No step lowers the cost, however strong the regularisation; is the problem smooth, without kinks as of |u| or max, "
        "and the tolerance within reach of float64?"
    ),
    Status.NONFINITE: (
        "The dynamics or a cost gave NaN or infinity along the trajectory; look at x0, u_init and the parameters."
    ),
    Status.TIME_LIMIT: (
        "max_seconds were over; the plan is the best so far, and its controls can be carried out. Start the next call from it."
    ),
    Status.NO_DERIVATIVE: (
        "There are cheaper controls, but here no derivative leads to them: a dead band, a rounding, or a cost that is the same "
        "all around; start from another u_init, or make the model smooth."
    ),
}


@dataclass(frozen=True)
class History:
    """What happened in each iteration, (B, I+1) each, for at least the I iterations of the problem that took the most.

    Column k is about the trajectory after k iterations, the step that led there included; column 0 is the start, to which no
    step led. Where a problem had ended by then there is NaN. Of several starts it is about the one whose plan was kept.

    Attributes:
        cost: of the trajectory.
        residual: see `Solution`.
        step_size: length of the step, from 0 (no step lowered the cost) to 1.
        damping: added to the diagonal of Q_uu for this step, relative to its largest element.
        hessian: the share of the dynamics' curvature in the Hessian of this step: 1 is Newton's, 0 Gauss-Newton's; -1 where
            neither led to a policy.
    """

    cost: Tensor
    residual: Tensor
    step_size: Tensor
    damping: Tensor
    hessian: Tensor

    def widened(self, width: int) -> History:
        """The same with `width` columns, NaN in those after its own."""
        return _each(self, lambda part: pad(part, (0, width - part.shape[1]), value=torch.nan))


@dataclass(frozen=True)
class Solution:
    """The solutions of B problems (without the leading B where x0 had none), in x0's dtype and on its device.

    Gradients flow from `states`, `controls` and `cost`; the other fields carry none. Of a function of `gains`, `residual` or
    `history`, `torch.func` in reverse mode (`grad`, `jacrev`) raises a NotImplementedError, in forward mode (`jvp`, `jacfwd`)
    gives NaN, unless they are detached. A problem that did not converge passes a gradient of zero with gradient="implicit" and
    "diffmpc".

    Attributes:
        states: (B, T+1, n).
        controls: (B, T, m), within the bounds.
        cost: (B,), stage costs plus terminal cost.
        status: (B,) of `Status` values.
        num_iterations: (B,).
        residual: (B,), Euclidean norm of the projected gradient u - clip(u - dcost/du, u_min, u_max) over all controls;
            infinite where a time budget left no time to compute it.
        gains: (B, T, m, n), feedback du_t/dx_t of the last sweep; zero for a control at its bound.
        singular: (B,) bool, whether a problem converged where the Hessian of its free controls isn't positive definite: at a
            saddle, or where some controls, or combinations of them, cost nothing. Other controls may then do as well, and what
            derivatives there are depend on which were found.
        history: what happened in each iteration, with `ILQROptions(record=True)`.
    """

    states: Tensor
    controls: Tensor
    cost: Tensor
    status: Tensor
    num_iterations: Tensor
    residual: Tensor
    gains: Tensor
    singular: Tensor
    history: History | None = None

    @property
    def converged(self) -> Tensor:
        """(B,) bool: whether the status is CONVERGED."""
        return self.status == Status.CONVERGED

    def cast(self, dtype: torch.dtype) -> Solution:
        """The solution with its real numbers in `dtype`."""
        if self.cost.dtype == dtype:
            return self
        return _each(self, lambda part: part.to(dtype) if part.is_floating_point() else part)

    def squeeze(self) -> Solution:
        """The solution of a batch of one, without its batch dimension."""
        return _each(self, lambda part: part.squeeze(0))

    def select(self, index: Tensor) -> Solution:
        """The solutions of some problems of the batch, in the order of `index` (K,)."""
        return _each(self, lambda part: part[index])

    def merge(self, index: Tensor, other: Solution) -> Solution:
        """This solution, with `other` (K,) in the place of the problems at `index` (K,)."""
        history = None
        if self.history is not None and other.history is not None:
            width = max(self.history.cost.shape[1], other.history.cost.shape[1])
            ours, theirs = self.history.widened(width), other.history.widened(width)
            history = _both(ours, theirs, lambda one, two: one.index_put((index,), two))
        merged = _both(self, other, lambda one, two: one.index_put((index,), two))
        return replace(merged, history=history)

    def describe(self) -> str:
        """One line for a person: how many problems ended how, how many of them are singular, and in how many iterations."""
        status = self.status.reshape(-1)
        counts = [f"{int((status == value).sum())} {value.name}" for value in Status if (status == value).any()]
        if self.singular.any():
            counts[0] += f" ({int(self.singular.sum())} singular)"
        iterations = self.num_iterations.reshape(-1).to(torch.float64)
        return f"{', '.join(counts)}; iterations: median {iterations.median():.0f}, most {iterations.max():.0f}"


_Parts = TypeVar("_Parts", Solution, History)


def _each(parts: _Parts, change: Callable[[Tensor], Tensor]) -> _Parts:
    """All tensors changed, those of a history inside included."""
    changed: dict[str, Any] = {}
    for field in fields(parts):
        value = getattr(parts, field.name)
        changed[field.name] = change(value) if isinstance(value, Tensor) else value and _each(value, change)
    return replace(parts, **changed)


def _both(parts: _Parts, others: _Parts, join: Callable[[Tensor, Tensor], Tensor]) -> _Parts:
    """All tensors joined with those of another, but for a history inside."""
    pairs = {field.name: (getattr(parts, field.name), getattr(others, field.name)) for field in fields(parts)}
    joined: dict[str, Any] = {name: join(*pair) for name, pair in pairs.items() if isinstance(pair[0], Tensor)}
    return replace(parts, **joined)
