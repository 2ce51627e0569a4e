"""Derivatives of an instance's functions along trajectories, for all steps of all problems at once.

Every point is repeated once per row of the matrix that is asked for, and one reverse pass gives all rows: the functions
take any leading batch dimensions, so this needs no vmap, and it is several times faster than forward mode, which torch
implements in Python. It is plain autograd, since tensors that `torch.func` wraps end up in the caches of people's functions;
it also works under `torch.no_grad`, in which Stable-Baselines3 collects its rollouts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dilqr_rl.instance import Instance


def gradient(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Gradient of a sum with respect to z; itself differentiable where gradients are on.

    Raises:
        ValueError: autograd refuses, say since a value that it needs was written over.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        point = z if again and z.requires_grad else z.detach().requires_grad_()
        total = function(point)
        if not total.requires_grad:
            return torch.zeros_like(z)
        try:
            (found,) = torch.autograd.grad(total, point, create_graph=again, allow_unused=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise ValueError(f"a function of the problem can't be differentiated by PyTorch: {error}") from error
    return torch.zeros_like(z) if found is None else found


def dynamics_jacobian(instance: Instance, x: Tensor, u: Tensor) -> Tensor:
    """F_t = df/d(x, u) for x (B, T, n), u (B, T, m), as (B, T, n, n+m)."""
    n = x.shape[-1]
    if instance.simulator is not None:
        return instance.simulator.jacobian(x, u)

    def diagonal_sum(z: Tensor) -> Tensor:
        return instance.dynamics(z[..., :n], z[..., n:]).diagonal(dim1=-2, dim2=-1).sum()

    return gradient(diagonal_sum, _repeat(torch.cat((x, u), dim=-1), n))


def stage_gradient(instance: Instance, x: Tensor, u: Tensor) -> Tensor:
    """Gradient of l with respect to (x, u), as (B, T, n+m)."""
    return gradient(_of_pair(instance.stage_cost, x.shape[-1]), torch.cat((x, u), dim=-1))


def stage_hessian(instance: Instance, x: Tensor, u: Tensor) -> Tensor:
    """Hessian of l with respect to (x, u), as (B, T, n+m, n+m)."""
    return _hessian(_of_pair(instance.stage_cost, x.shape[-1]), torch.cat((x, u), dim=-1))


def dynamics_hessian(instance: Instance, x: Tensor, u: Tensor, costates: Tensor) -> Tensor:
    """Hessian of lambda_{t+1}^T f with respect to (x, u), costates (B, T, n) being lambda_{1..T}, as (B, T, n+m, n+m)."""
    weights = costates.unsqueeze(-2)
    weighted = _of_pair(lambda x, u: weights * instance.dynamics(x, u), x.shape[-1])
    return _hessian(weighted, torch.cat((x, u), dim=-1))


def terminal_gradient(instance: Instance, x: Tensor) -> Tensor:
    """Gradient of the terminal cost at x (B, n), as (B, n)."""
    if instance.problem.terminal_cost is None:
        return torch.zeros_like(x)
    return gradient(lambda x: instance.terminal_cost(x).sum(), x)


def terminal_hessian(instance: Instance, x: Tensor) -> Tensor:
    """Hessian of the terminal cost at x (B, n), as (B, n, n)."""
    if instance.problem.terminal_cost is None:
        return x.new_zeros((*x.shape, x.shape[-1]))
    return _hessian(lambda x: instance.terminal_cost(x).sum(), x)


def _of_pair(function: Callable[[Tensor, Tensor], Tensor], n: int) -> Callable[[Tensor], Tensor]:
    """The sum of a function's values as a function of z = (x, u); each value depends on its own z only."""
    return lambda z: function(z[..., :n], z[..., n:]).sum()


def _hessian(function: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """Hessian of a sum over independent points z (..., k), point by point, as (..., k, k)."""

    def diagonal_sum(z: Tensor) -> Tensor:
        return gradient(function, z).diagonal(dim1=-2, dim2=-1).sum()

    return gradient(diagonal_sum, _repeat(z, z.shape[-1]))


def _repeat(z: Tensor, rows: int) -> Tensor:
    """Points (..., k) as (..., rows, k)."""
    return z.unsqueeze(-2).expand(*z.shape[:-1], rows, z.shape[-1])
