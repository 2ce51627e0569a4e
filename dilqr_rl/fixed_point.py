"""The solution as an autograd node: the one place where autograd meets a solver, whichever it is."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from dilqr_rl.solution import Solution, Status


class LossGradient(NamedTuple):
    """A loss's gradient with respect to a solution: states (B, T+1, n), controls (B, T, m), cost (B,)."""

    states: Tensor
    controls: Tensor
    cost: Tensor


class Pullback(Protocol):
    """What a solver keeps to differentiate its solution."""

    def __call__(
        self, values: tuple[Tensor, ...], needed: tuple[bool, ...], loss: LossGradient
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The loss's gradient with respect to x0 (B, n), and to each of the problem's values that needs one.

        Problems that did not converge pass zeros.
        """
        ...


def attach(pullback: Pullback, solution: Solution, x0: Tensor, values: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The solution's states, controls and cost, differentiable in x0 (B, n) and in the values of the problem."""
    return _FixedPoint.apply(pullback, solution, x0, *values)


class _FixedPoint(torch.autograd.Function):
    """Identity on the solution; its backward pass is the adjoint."""

    @staticmethod
    def forward(ctx: Any, pullback: Pullback, solution: Solution, x0: Tensor, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.pullback, ctx.status = pullback, solution.status
        ctx.save_for_backward(*values)
        return solution.states.clone(), solution.controls.clone(), solution.cost.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                'second derivatives (create_graph=True) are not available for gradient="implicit" and "diffmpc"; '
                'use gradient="unroll".'
            )
        _refuse_nan(ctx.status, gradients)
        dx0, dvalues = ctx.pullback(ctx.saved_tensors, ctx.needs_input_grad[3:], LossGradient(*gradients))
        return None, None, dx0, *dvalues


def _refuse_nan(status: Tensor, gradients: tuple[Tensor, ...]) -> None:
    """Raise a ValueError where a problem that has a gradient gets NaN or infinity from the loss."""
    if all(bool(torch.isfinite(part).all()) for part in gradients):
        return
    finite = torch.stack([torch.isfinite(part).reshape(part.shape[0], -1).all(1) for part in gradients]).all(0)
    wrong = ((status == Status.CONVERGED) & ~finite).nonzero()
    if wrong.numel() > 0:
        raise ValueError(
            f"loss: its gradient with respect to the solution of problem {wrong[0].item()} is NaN or infinite. The "
            "solution itself is finite; look at what is computed from it."
        )
