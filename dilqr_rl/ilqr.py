"""The algorithm: box-constrained iterative LQR with a Newton finish, for a batch of problems.

One iteration linearises around the trajectory, sweeps backwards (lqr.py), and rolls the nonlinear dynamics out under the policy
found, with a line search (Tassa, Mansard and Todorov 2014). The Hessian is the Lagrangian's, l + lambda^T f, wherever the
sweep stays positive definite with it: Newton's method, which converges quadratically. Elsewhere the part that comes from
the dynamics is weighted down in tenths, to zero if need be, which is the Gauss-Newton step of plain iLQR. Each problem
takes its own steps and leaves the batch when it has ended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dilqr_rl.box import product
from dilqr_rl.derivatives import (
    dynamics_hessian,
    dynamics_jacobian,
    stage_gradient,
    stage_hessian,
    terminal_gradient,
    terminal_hessian,
)
from dilqr_rl.instance import Instance
from dilqr_rl.lqr import Policy, Quadratic, backward_sweep, control_gradient, costates
from dilqr_rl.options import ILQROptions
from dilqr_rl.solution import Status

_RUNNING = -1
_WEIGHTS = 10  # of the dynamics' curvature: 1, then 9/10, ..., 0
_LARGEST_SWEEP = 2**24  # numbers in the Hessians of one sweep over all weights
_EPSILON = torch.finfo(torch.float64).eps
_ROUNDING = 64 * _EPSILON  # of a cost, relative: differences below it mean nothing


@dataclass(frozen=True)
class Iterate:
    """Trajectories of K problems of the batch.

    Attributes:
        index: (K,), their places in the batch.
        instance: the problems.
        lower, upper: (K, T, m), bounds.
        x: (K, T+1, n).
        u: (K, T, m).
        cost: (K,).
        regularisation: (K,), added to the diagonal of Q_uu.
        status: (K,), a `Status`, or -1 while running.
        iterations: (K,), steps tried.
        residual: (K,), norm of the projected gradient at this trajectory.
        gains: (K, T, m, n), feedback at this trajectory.
    """

    index: Tensor
    instance: Instance
    lower: Tensor
    upper: Tensor
    x: Tensor
    u: Tensor
    cost: Tensor
    regularisation: Tensor
    status: Tensor
    iterations: Tensor
    residual: Tensor
    gains: Tensor

    def select(self, positions: Tensor) -> Iterate:
        """Some of these problems."""
        tensors = {name: value[positions] for name, value in vars(self).items() if name != "instance"}
        return replace(self, instance=self.instance.select(positions), **tensors)


@dataclass(frozen=True)
class Decision:
    """What one iteration did, so that unroll.py can do it again with gradients on: for K problems, (K,) each.

    Attributes:
        index: their places in the batch.
        weight: the share of the dynamics' curvature in the Hessian: 1 in a Newton step, 0 in a Gauss-Newton step.
        regularisation: added to the diagonal of Q_uu.
        step_length: 0 where no step was taken.
    """

    index: Tensor
    weight: Tensor
    regularisation: Tensor
    step_length: Tensor


@torch.no_grad()
def solve(
    instance: Instance, x0: Tensor, u_init: Tensor, options: ILQROptions, decisions: list[Decision] | None = None
) -> Iterate:
    """Solve B problems.

    Args:
        instance: the problems, in float64.
        x0: start states (B, n).
        u_init: controls to start from (B, T, m), clipped to the bounds.
        options: settings.
        decisions: a list to append every iteration's decisions to, or None.

    Returns:
        The last trajectories of all problems, in the order of the batch, with their statuses.
    """
    running = _start(instance, x0, u_init)
    ended: list[Iterate] = []
    for _ in range(options.max_iterations + 1):
        model, costate = expand(running.instance, running.x, running.u)
        running = _measure(running, model, costate, options)
        policy, weight = _find_policy(running, model, costate)
        running = replace(running, gains=policy.K)
        stays = _positions(running.status == _RUNNING)
        ended.append(running.select(_positions(running.status != _RUNNING)))
        running, policy, weight = running.select(stays), policy.select(stays), weight[stays]
        if stays.numel() == 0:
            break
        regularisation = running.regularisation
        running, step_length = _search(running, policy, options)
        if decisions is not None:
            decisions.append(Decision(running.index, weight, regularisation, step_length))
        running = _adapt(running, step_length, options)
    return _in_order(ended)


def rollout(instance: Instance, x0: Tensor, u: Tensor) -> Tensor:
    """States (B, T+1, n) under controls u (B, T, m) from x0 (B, n)."""
    states = [x0]
    for t, u_t in enumerate(u.unbind(1)):
        states.append(instance.step(states[-1], u_t, t))
    return torch.stack(states, dim=1)


def expand(instance: Instance, x: Tensor, u: Tensor) -> tuple[Quadratic, Tensor]:
    """The Gauss-Newton model along a trajectory, whose Hessians are the costs', and the trajectory's costates (B, T+1, n)."""
    F = dynamics_jacobian(instance, x[:, :-1], u)
    g, g_T = stage_gradient(instance, x[:, :-1], u), terminal_gradient(instance, x[:, -1])
    H, H_T = stage_hessian(instance, x[:, :-1], u), terminal_hessian(instance, x[:, -1])
    return Quadratic(F, H, g, H_T, g_T), costates(F, g, g_T)


def with_curvature(model: Quadratic, curvature: Tensor, weight: Tensor) -> Quadratic:
    """The model with the dynamics' curvature (B, T, n+m, n+m) added to its Hessians, weighted by `weight` (B,)."""
    return model._replace(H=model.H + weight[:, None, None, None] * curvature)


def take_step(
    instance: Instance, bounds: tuple[Tensor, Tensor], x: Tensor, u: Tensor, policy: Policy, step_length: Tensor
) -> tuple[Tensor, Tensor]:
    """Roll the dynamics out under u_t + a k_t + K_t (x'_t - x_t), clipped; a is step_length (B,). Returns new x and u.

    u + (bound - u) may differ from the bound by rounding; such a control is put on the bound, so that it counts as held.
    """
    states, controls = [x[:, 0]], []
    open_loop = u + step_length[:, None, None] * policy.k
    parts = (u, open_loop, policy.K, x[:, :-1], *bounds)
    for t, (before, u_t, K, x_t, low, high) in enumerate(zip(*(part.unbind(1) for part in parts), strict=True)):
        control = u_t + product(K, states[-1] - x_t)
        rounding = 4 * _EPSILON * (control.abs() + before.abs())
        control = torch.where(high - control <= rounding, high, control)
        controls.append(torch.where(control - low <= rounding, low, control))
        states.append(instance.step(states[-1], controls[-1], t))
    return torch.stack(states, dim=1), torch.stack(controls, dim=1)


def projected_gradient_norm(gradient: Tensor, u: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Norm (B,) of u - clip(u - gradient), zero exactly where no control can be moved within the bounds to lower the cost."""
    return (u - torch.clamp(u - gradient, lower, upper)).flatten(1).norm(dim=1)


def _start(instance: Instance, x0: Tensor, u_init: Tensor) -> Iterate:
    B, T, m = u_init.shape
    lower, upper = instance.bounds(B)
    u = torch.clamp(u_init, lower, upper)
    x = rollout(instance, x0, u)
    zeros, counts = x0.new_zeros(B), torch.zeros(B, dtype=torch.int64, device=x0.device)
    return Iterate(
        index=torch.arange(B, device=x0.device),
        instance=instance,
        lower=lower,
        upper=upper,
        x=x,
        u=u,
        cost=instance.total_cost(x, u),
        regularisation=zeros,
        status=counts + _RUNNING,
        iterations=counts,
        residual=zeros,
        gains=x0.new_zeros(B, T, m, x0.shape[-1]),
    )


def _measure(running: Iterate, model: Quadratic, costate: Tensor, options: ILQROptions) -> Iterate:
    """The iterate with its residual, and the statuses that follow from it."""
    gradient = control_gradient(model.F, model.g, costate)
    residual = projected_gradient_norm(gradient, running.u, running.lower, running.upper)
    status = running.status
    status = torch.where((status == _RUNNING) & (running.iterations >= options.max_iterations), Status.MAX_ITERATIONS, status)
    status = torch.where(residual <= options.tolerance, Status.CONVERGED, status)
    finite = torch.isfinite(running.cost) & torch.isfinite(residual)
    finite = finite & torch.isfinite(model.F).flatten(1).all(1) & torch.isfinite(running.x).flatten(1).all(1)
    return replace(running, residual=residual, status=torch.where(finite, status, Status.NONFINITE))


def _find_policy(running: Iterate, model: Quadratic, costate: Tensor) -> tuple[Policy, Tensor]:
    """Each problem's policy, and the largest weight (K,) of the dynamics' curvature that keeps it positive definite."""
    curvature = dynamics_hessian(running.instance, running.x[:, :-1], running.u, costate[:, 1:])
    weight = torch.ones_like(running.cost)
    policy = _sweep(running, with_curvature(model, curvature, weight))
    lighter = torch.arange(_WEIGHTS - 1, -1, -1, dtype=weight.dtype, device=weight.device) / _WEIGHTS
    most = max(1, _LARGEST_SWEEP // (_WEIGHTS * curvature[0].numel()))
    for failed in filter(len, _positions(~policy.positive).split(most)):
        repeated = failed.repeat_interleave(_WEIGHTS)
        trial = with_curvature(model.select(repeated), curvature[repeated], lighter.repeat(failed.numel()))
        trials = _sweep(running.select(repeated), trial)
        first = trials.positive.view(-1, _WEIGHTS).to(torch.uint8).argmax(1)
        best = torch.arange(failed.numel(), device=first.device) * _WEIGHTS + first
        policy = policy.merge(failed, trials.select(best))
        weight = weight.index_put((failed,), lighter[first])
    return policy, weight


def _sweep(running: Iterate, model: Quadratic) -> Policy:
    return backward_sweep(model, running.lower - running.u, running.upper - running.u, running.regularisation)


def _search(running: Iterate, policy: Policy, options: ILQROptions) -> tuple[Iterate, Tensor]:
    """The whole step where it lowers the cost enough, else the longest of its halvings that does; length 0 where none does."""
    whole = torch.ones_like(running.cost)
    x, u, cost, accepted = _try(running, policy, whole, options)
    step_length = torch.where(accepted, whole, 0.0)
    failed = _positions(~accepted & policy.positive)
    if failed.numel() > 0:
        count = options.line_search_steps
        halvings = 0.5 ** torch.arange(1, count + 1, dtype=cost.dtype, device=cost.device)
        repeated = failed.repeat_interleave(count)
        trials = _try(running.select(repeated), policy.select(repeated), halvings.repeat(failed.numel()), options)
        fits = trials[3].view(-1, count)
        first = fits.to(torch.uint8).argmax(1)
        best = torch.arange(failed.numel(), device=first.device) * count + first
        x, u, cost = (old.index_put((failed,), new[best]) for old, new in zip((x, u, cost), trials[:3], strict=True))
        step_length = step_length.index_put((failed,), torch.where(fits.any(1), halvings[first], 0.0))
    moved = step_length > 0
    x = torch.where(moved[:, None, None], x, running.x)
    u = torch.where(moved[:, None, None], u, running.u)
    return replace(running, x=x, u=u, cost=torch.where(moved, cost, running.cost)), step_length


def _try(running: Iterate, policy: Policy, step_length: Tensor, options: ILQROptions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step length each: x, u, cost, and whether the cost falls by enough of what the model expects."""
    bounds = (running.lower, running.upper)
    x, u = take_step(running.instance, bounds, running.x, running.u, policy, step_length)
    cost = running.instance.total_cost(x, u)
    expected = policy.slope * step_length + 0.5 * policy.curvature * step_length**2
    limit = running.cost + options.sufficient_decrease * expected + _ROUNDING * (1.0 + running.cost.abs())
    return x, u, cost, policy.positive & (cost <= limit)


def _adapt(running: Iterate, step_length: Tensor, options: ILQROptions) -> Iterate:
    """Count the iteration and set the next one's regularisation: less after a whole step, more after none."""
    factor, least = options.regularisation_factor, options.regularisation_min
    lower = running.regularisation / factor
    lower = torch.where(lower < least, 0.0, lower)
    higher = (running.regularisation * factor).clamp(min=least)
    regularisation = torch.where(step_length == 1, lower, running.regularisation)
    regularisation = torch.where(step_length == 0, higher, regularisation)
    status = torch.where(regularisation > options.regularisation_max, Status.LINE_SEARCH_FAILED, running.status)
    return replace(running, regularisation=regularisation, status=status, iterations=running.iterations + 1)


def _positions(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)


def _in_order(ended: list[Iterate]) -> Iterate:
    """All problems of the batch, each at its place; the instance is that of the first part and no longer fits."""
    order = torch.argsort(torch.cat([part.index for part in ended]))
    names = [name for name in vars(ended[0]) if name != "instance"]
    tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in ended])[order] for name in names}
    return replace(ended[0], **tensors)
