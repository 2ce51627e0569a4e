"""The algorithm: box-constrained iterative LQR with a Newton finish, for a batch of problems.

One iteration linearises around the trajectory, sweeps backwards (lqr.py), and rolls the nonlinear dynamics out under the policy
found, with a line search (Tassa, Mansard and Todorov 2014). The Hessian is the Lagrangian's, l + lambda^T f, wherever every
Q_uu is positive definite with it: Newton's method, which converges quadratically. Else the part that comes from the dynamics is
weighted down in tenths. Where the whole of that step doesn't lower the cost, the Gauss-Newton step of plain iLQR is tried
beside it, with the costs' Hessians alone, made positive semidefinite, and the better of the two is taken. Each problem takes
its own steps and leaves the batch when its gradient is small and Newton's step would hardly move its controls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dilqr_rl.box import product
from dilqr_rl.convex import nearest_convex
from dilqr_rl.derivatives import (
    dynamics_hessian,
    dynamics_jacobian,
    stage_gradient,
    stage_hessian,
    terminal_gradient,
    terminal_hessian,
)
from dilqr_rl.guess import Guess
from dilqr_rl.instance import Instance
from dilqr_rl.lqr import Lift, Policy, Quadratic, backward_sweep, control_gradient, costates, largest_change
from dilqr_rl.options import ILQROptions
from dilqr_rl.solution import History, Solution, Status
from dilqr_rl.watching import Deadline, Recorder

_RUNNING = -1
_SHARES = 10  # of the dynamics' curvature: 1, then 9/10, ..., 0
_LARGEST_SWEEP = 2**24  # numbers in the Hessians of one sweep over all shares
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
        damping: (K,), added to the diagonal of Q_uu, relative to its largest element.
        status: (K,), a `Status`, or -1 while running.
        iterations: (K,), steps tried.
        residual: (K,), norm of the projected gradient at this trajectory.
        gains: (K, T, m, n), feedback at this trajectory.
        singular: (K,), see `Solution`.
    """

    index: Tensor
    instance: Instance
    lower: Tensor
    upper: Tensor
    x: Tensor
    u: Tensor
    cost: Tensor
    damping: Tensor
    status: Tensor
    iterations: Tensor
    residual: Tensor
    gains: Tensor
    singular: Tensor

    def select(self, positions: Tensor) -> Iterate:
        """Some of these problems."""
        tensors = {name: value[positions] for name, value in vars(self).items() if name != "instance"}
        return replace(self, instance=self.instance.select(positions), **tensors)

    def solution(self, history: History | None) -> Solution:
        """What the solver gives back."""
        return Solution(
            states=self.x,
            controls=self.u,
            cost=self.cost,
            status=self.status,
            num_iterations=self.iterations,
            residual=self.residual,
            gains=self.gains,
            singular=self.singular,
            history=history,
        )


@dataclass(frozen=True)
class Decision:
    """What one iteration did, so that it can be told, and done again with gradients on: for K problems, (K,) each.

    Attributes:
        index: their places in the batch.
        share: of the dynamics' curvature in the Hessian: 1 in a Newton step, 0 in a Gauss-Newton step; -1 where there was none.
        damping: added to the diagonal of Q_uu, relative to its largest element.
        step_length: 0 where no step was taken.
    """

    index: Tensor
    share: Tensor
    damping: Tensor
    step_length: Tensor


@torch.no_grad()
def solve(
    instance: Instance, x0: Tensor, guess: Guess, options: ILQROptions, decisions: list[Decision] | None = None
) -> tuple[Iterate, History | None]:
    """Solve B problems.

    Args:
        instance: the problems, in float64.
        x0: start states (B, n).
        guess: where to start, (B, ...); controls are clipped to the bounds.
        options: settings.
        decisions: a list to append every iteration's decisions to, or None.

    Returns:
        The last trajectories of all problems, in the order of the batch, with their statuses; and what happened, if asked for.
    """
    running, step = _start(instance, x0, guess), None
    ended: list[Iterate] = []
    recorder, deadline = Recorder(len(x0), options.record), Deadline(options.max_seconds)
    while True:
        model, costate = expand(running.instance, running.x, running.u)
        running = _measure(running, model, costate, options)
        recorder.add(running.index, (running.cost, running.residual), step)
        running, policy, share = _find_policy(running, model, costate, options)
        running = replace(running, gains=policy.K)
        ended.append(running.select(_positions(running.status != _RUNNING)))
        stays = _positions(running.status == _RUNNING)
        if stays.numel() == 0:
            return _in_order(ended), recorder.history()
        running, model, policy, share = running.select(stays), model.select(stays), policy.select(stays), share[stays]
        damping = running.damping
        running, share, step_length = _descend(running, model, policy, share, options)
        step = (step_length, damping, share)
        if decisions is not None:
            decisions.append(Decision(running.index, share, damping, step_length))
        running = _adapt(running, step_length, options)
        if deadline.is_near():
            running = replace(running, status=torch.where(running.status == _RUNNING, Status.TIME_LIMIT, running.status))


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


def with_curvature(model: Quadratic, curvature: Tensor, share: Tensor) -> Quadratic:
    """The model with a share (B,) of the dynamics' curvature (B, T, n+m, n+m) added to its Hessians."""
    return model._replace(H=model.H + share[:, None, None, None] * curvature)


def curvature_of(instance: Instance, x: Tensor, u: Tensor, costate: Tensor) -> Tensor:
    """That of lambda^T f (B, T, n+m, n+m), for costates (B, T+1, n); a simulator's counts as none."""
    if instance.simulator is not None:
        size = x.shape[-1] + u.shape[-1]
        return u.new_zeros(*u.shape[:2], size, size)
    return dynamics_hessian(instance, x[:, :-1], u, costate[:, 1:])


def made_convex(model: Quadratic) -> Quadratic:
    """The model with positive semidefinite Hessians."""
    return model._replace(H=nearest_convex(model.H), H_T=nearest_convex(model.H_T))


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


def begin(instance: Instance, x0: Tensor, guess: Guess) -> tuple[Tensor, Tensor]:
    """The first trajectory: states (B, T+1, n) and controls (B, T, m) within the bounds, from x0 (B, n)."""
    lower, upper = instance.bounds(guess.controls.shape[0])
    if guess.states is None:
        u = torch.clamp(guess.controls, lower, upper)
        return rollout(instance, x0, u), u
    gains = policy_around(instance, guess).K if guess.gains is None else guess.gains
    states, controls = [x0], []
    parts = (guess.controls, gains, guess.states[:, :-1], lower, upper)
    for t, (u_t, K, x_t, low, high) in enumerate(zip(*(part.unbind(1) for part in parts), strict=True)):
        controls.append(torch.clamp(u_t + product(K, states[-1] - x_t), low, high))
        states.append(instance.step(states[-1], controls[-1], t))
    return torch.stack(states, dim=1), torch.stack(controls, dim=1)


def _start(instance: Instance, x0: Tensor, guess: Guess) -> Iterate:
    B, T, m = guess.controls.shape
    lower, upper = instance.bounds(B)
    x, u = begin(instance, x0, guess)
    zeros, counts = x0.new_zeros(B), torch.zeros(B, dtype=torch.int64, device=x0.device)
    return Iterate(
        index=torch.arange(B, device=x0.device),
        instance=instance,
        lower=lower,
        upper=upper,
        x=x,
        u=u,
        cost=instance.total_cost(x, u),
        damping=zeros,
        status=counts + _RUNNING,
        iterations=counts,
        residual=zeros,
        gains=x0.new_zeros(B, T, m, x0.shape[-1]),
        singular=zeros != 0,
    )


def policy_around(instance: Instance, guess: Guess, closing: bool = False) -> Policy:
    """Gauss-Newton's policy around a guess, whose states need not be those of its controls; `closing` counts these gaps."""
    controls, states = guess.controls, guess.states
    if states is None:
        raise ValueError("guess.states: expected states to find a policy around, got none.")
    model, _ = expand(instance, states, controls)
    gaps = instance.dynamics(states[:, :-1], controls) - states[:, 1:] if closing else None
    lower, upper = (bound - controls for bound in instance.bounds(len(controls)))
    return backward_sweep(made_convex(model), lower, upper, torch.zeros_like(states[:, 0, 0]), Lift.ALL, gaps)


def _measure(running: Iterate, model: Quadratic, costate: Tensor, options: ILQROptions) -> Iterate:
    """The iterate with its residual, and how it ends where it isn't finite or has had its iterations."""
    gradient = control_gradient(model.F, model.g, costate)
    residual = projected_gradient_norm(gradient, running.u, running.lower, running.upper)
    status = running.status
    status = torch.where((status == _RUNNING) & (running.iterations >= options.max_iterations), Status.MAX_ITERATIONS, status)
    finite = torch.isfinite(running.cost) & torch.isfinite(residual)
    finite = finite & torch.isfinite(model.F).flatten(1).all(1) & torch.isfinite(running.x).flatten(1).all(1)
    return replace(running, residual=residual, status=torch.where(finite, status, Status.NONFINITE))


def _find_policy(running: Iterate, model: Quadratic, costate: Tensor, options: ILQROptions) -> tuple[Iterate, Policy, Tensor]:
    """Each problem's policy, and the share (K,) of the dynamics' curvature in it; those that have converged end.

    Near a solution, damping would hide how far it is, so there is none.
    """
    curvature = curvature_of(running.instance, running.x, running.u, costate)
    near = (running.residual <= options.tolerance) & (running.status != Status.NONFINITE)
    policy, share = _sweep(replace(running, damping=torch.where(near, 0.0, running.damping)), model, curvature)
    newton = (share == 1) & ~policy.lifted
    change = largest_change(model.F, policy, running.lower - running.u, running.upper - running.u)
    rests = change <= options.step_tolerance * (1.0 + running.u.abs().flatten(1).amax(1))
    converged = near & (rests | ~newton | (running.status == Status.LINE_SEARCH_FAILED))
    again = _positions(near & ~converged & (running.damping > 0) & (running.status == _RUNNING))
    if again.numel() > 0:
        damped, other = _sweep(running.select(again), model.select(again), curvature[again])
        policy, share = policy.merge(again, damped), share.index_put((again,), other)
    status = torch.where(converged, Status.CONVERGED, running.status)
    return replace(running, status=status, singular=converged & ~newton), policy, share


def _sweep(running: Iterate, model: Quadratic, curvature: Tensor) -> tuple[Policy, Tensor]:
    """Newton's policy where every Q_uu is positive definite; else that of the largest share of curvature, or Gauss-Newton's."""
    share = torch.ones_like(running.cost)
    policy = _swept(running, with_curvature(model, curvature, share), Lift.SINGULAR)
    lighter = torch.arange(_SHARES - 1, 0, -1, dtype=share.dtype, device=share.device) / _SHARES
    most = max(1, _LARGEST_SWEEP // (_SHARES * curvature[0].numel()))
    for failed in filter(len, _positions(~policy.positive).split(most)):
        repeated = failed.repeat_interleave(len(lighter))
        trial = with_curvature(model.select(repeated), curvature[repeated], lighter.repeat(failed.numel()))
        trials = _swept(running.select(repeated), trial, Lift.NONE)
        first = trials.positive.view(-1, len(lighter)).to(torch.uint8).argmax(1)
        best = torch.arange(failed.numel(), device=first.device) * len(lighter) + first
        policy = policy.merge(failed, trials.select(best))
        share = share.index_put((failed,), lighter[first])
    failed = _positions(~policy.positive)
    if failed.numel() > 0:
        policy = policy.merge(failed, _gauss_newton(running.select(failed), model.select(failed)))
        share = share.index_put((failed,), torch.zeros_like(share[failed]))
    none = torch.zeros((), dtype=policy.K.dtype, device=policy.K.device)
    policy = replace(policy, K=torch.where(policy.positive[:, None, None, None], policy.K, none))
    return policy, torch.where(policy.positive, share, -1.0)


def _gauss_newton(running: Iterate, model: Quadratic) -> Policy:
    return _swept(running, made_convex(model), Lift.ALL)


def _swept(running: Iterate, model: Quadratic, lift: Lift) -> Policy:
    return backward_sweep(model, running.lower - running.u, running.upper - running.u, running.damping, lift)


def _descend(
    running: Iterate, model: Quadratic, policy: Policy, share: Tensor, options: ILQROptions
) -> tuple[Iterate, Tensor, Tensor]:
    """A step along each policy, the share (K,) of curvature that it was found with, and its length (K,), 0 for no step.

    Where the policy has a part of the curvature only, and its whole step is too long, Gauss-Newton's is tried as well.
    """
    moved, length = _search(running, policy, options)
    short = _positions((length < 1) & (share > 0) & (share < 1))
    if short.numel() == 0:
        return moved, share, length
    before = running.select(short)
    other, other_length = _search(before, _gauss_newton(before, model.select(short)), options)
    better = (other_length > 0) & ((length[short] == 0) | (other.cost < moved.cost[short]))
    taken, place = _positions(better), short[better]
    parts = {name: getattr(moved, name).index_put((place,), getattr(other, name)[taken]) for name in ("x", "u", "cost")}
    length = length.index_put((place,), other_length[taken])
    return replace(moved, **parts), share.index_put((place,), torch.zeros_like(share[place])), length


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
    """Count the iteration and set the next one's damping: less after a whole step, more after none."""
    factor, least = options.regularisation_factor, options.regularisation_min
    lower = running.damping / factor
    lower = torch.where(lower < least, 0.0, lower)
    higher = (running.damping * factor).clamp(min=least)
    damping = torch.where(step_length == 1, lower, running.damping)
    damping = torch.where(step_length == 0, higher, damping)
    status = torch.where(damping > options.regularisation_max, Status.LINE_SEARCH_FAILED, running.status)
    return replace(running, damping=damping, status=status, iterations=running.iterations + 1)


def _positions(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(1)


def _in_order(ended: list[Iterate]) -> Iterate:
    """All problems of the batch, each at its place; the instance is that of the first part and no longer fits."""
    order = torch.argsort(torch.cat([part.index for part in ended]))
    names = [name for name in vars(ended[0]) if name != "instance"]
    tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in ended])[order] for name in names}
    return replace(ended[0], **tensors)
