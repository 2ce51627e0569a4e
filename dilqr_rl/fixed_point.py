"""The solution as an autograd node: the one place where autograd meets a solver, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor, is_legacy_batchedtensor

from dilqr_rl.solution import Solution, Status

_PullBack = Callable[..., tuple[Tensor, ...]]  # a loss's gradient -> that of x0, and those of the values that need one
SECOND_DERIVATIVES = (
    'second derivatives (create_graph=True) are not available for gradient="implicit" and "diffmpc"; use gradient="unroll".'
)


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
            raise NotImplementedError(SECOND_DERIVATIVES)
        needed = ctx.needs_input_grad[3:]

        def pull_back(*loss: Tensor) -> tuple[Tensor, ...]:
            refuse_nan(ctx.status, loss)
            dx0, dvalues = ctx.pullback(ctx.saved_tensors, needed, LossGradient(*loss))
            return dx0, *(part for part in dvalues if part is not None)

        if any(map(is_functorch_wrapped_tensor, gradients)):
            dx0, *found = _EachLoss.apply(pull_back, *gradients)
        elif any(map(is_legacy_batchedtensor, gradients)):
            dx0, *found = _of_each_row(pull_back, gradients)
        else:
            dx0, *found = pull_back(*gradients)
        dvalues = iter(found)
        return None, None, dx0, *(next(dvalues) if need else None for need in needed)


class _EachLoss(torch.autograd.Function):
    """Pulls back the gradients of several losses that `torch.func.vmap` holds as one."""

    @staticmethod
    def forward(pull_back: _PullBack, *gradients: Tensor) -> tuple[Tensor, ...]:
        return pull_back(*gradients)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, dims: tuple[Any, ...], pull_back: _PullBack, *gradients: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        pairs = zip(gradients, dims[1:], strict=True)
        rows = [part.expand(info.batch_size, *part.shape) if dim is None else part.movedim(dim, 0) for part, dim in pairs]
        found = _stacked(_EachLoss.apply(pull_back, *row) for row in zip(*rows, strict=True))
        return found, (0,) * len(found)


def _of_each_row(pull_back: _PullBack, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same for `autograd.grad(is_grads_batched=True)`, as `jacobian(vectorize=True)` has it, whose vmap is an older one."""
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    seen = [torch._remove_batch_dim(part, level, 1, 0) if is_legacy_batchedtensor(part) else None for part in gradients]
    size = max(len(part) for part in seen if part is not None)
    rows = [one.expand(size, *one.shape) if part is None else part for one, part in zip(gradients, seen, strict=True)]
    found = _stacked(pull_back(*row) for row in zip(*rows, strict=True))
    return tuple(torch._add_batch_dim(part, 0, level) for part in found)


def _stacked(rows: Iterable[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    return tuple(torch.stack(parts) for parts in zip(*rows, strict=True))


def refuse_nan(status: Tensor, gradients: tuple[Tensor, ...]) -> None:
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
