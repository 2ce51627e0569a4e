"""Derivatives of an instance's functions along trajectories, by forward mode over all steps of all problems at once.

Only `torch.func` is used: it also works under `torch.no_grad`, in which Stable-Baselines3 collects its rollouts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from dilqr_rl.instance import Instance


def dynamics_jacobian(instance: Instance, x: Tensor, u: Tensor) -> Tensor:
    """F_t = df/d(x, u) for x (B, T, n), u (B, T, m), as (B, T, n, n+m)."""
    n = x.shape[-1]
    z = torch.cat((x, u), dim=-1)

    def column(direction: Tensor) -> Tensor:
        return jvp(lambda z: instance.dynamics(z[..., :n], z[..., n:]), (z,), (direction.expand_as(z),))[1]

    return vmap(column)(_directions(z)).movedim(0, -1)


def stage_gradient(instance: Instance, x: Tensor, u: Tensor) -> Tensor:
    """Gradient of l with respect to (x, u), as (B, T, n+m)."""
    return grad(_of_pair(instance.stage_cost, x.shape[-1]))(torch.cat((x, u), dim=-1))


def stage_hessian(instance: Instance, x: Tensor, u: Tensor) -> Tensor:
    """Hessian of l with respect to (x, u), as (B, T, n+m, n+m)."""
    return _hessian(_of_pair(instance.stage_cost, x.shape[-1]), torch.cat((x, u), dim=-1))


def dynamics_hessian(instance: Instance, x: Tensor, u: Tensor, costates: Tensor) -> Tensor:
    """Hessian of lambda_{t+1}^T f with respect to (x, u), costates (B, T, n) being lambda_{1..T}, as (B, T, n+m, n+m)."""
    weighted = _of_pair(lambda x, u: costates * instance.dynamics(x, u), x.shape[-1])
    return _hessian(weighted, torch.cat((x, u), dim=-1))


def terminal_gradient(instance: Instance, x: Tensor) -> Tensor:
    """Gradient of the terminal cost at x (B, n), as (B, n)."""
    if instance.problem.terminal_cost is None:
        return torch.zeros_like(x)
    return grad(lambda x: instance.terminal_cost(x).sum())(x)


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

    def column(direction: Tensor) -> Tensor:
        return jvp(grad(function), (z,), (direction.expand_as(z),))[1]

    return vmap(column)(_directions(z)).movedim(0, -1)


def _directions(z: Tensor) -> Tensor:
    return torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
