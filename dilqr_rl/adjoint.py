"""The gradient of a solution: one LQR sweep and one directional derivative, whatever the number of iterations that led there.

At a solution, with z = (x, u), costates lambda and a loss phi(x, u), the Lagrangian's Hessian H = d2(l + lambda^T f)/dz2
and the loss's gradient define one more linear-quadratic problem, whose step d and costates mu give

    dphi/dx0    = mu_0
    dphi/dtheta = d/dtheta { sum_t [grad_z (l + lambda^T f)(z_t; theta) . d_t + mu_{t+1}^T f(z_t; theta)]
                                 + grad l_T(x_T; theta) . d_x,T }

with z, lambda, d and mu held fixed. It is the exact derivative of the solver's fixed point (the system of Wang et al. 2025,
eq. 10, has the same solution). DiffMPC (Amos et al. 2018) is the same with the dynamics' curvature left out of H, which is
exact for linear dynamics only. A loss that depends on the total cost itself adds its derivative times the costs in the braces,
and times their gradients to its own.

A control at its bound stays there: d_u = 0, and the derivative with respect to the bound takes its place. Where the control
would leave the bound for one sign of a change and not for the other, the solution has two one-sided derivatives; this is
the one of staying. A control without any curvature (its row of Q_uu is zero) stays where the solver left it, too.

Where a solution is singular (see `Solution`), some directions of the controls cost nothing, and nothing says how they follow a
change. They stay, and all others move as they must: the derivative of least norm. What a loss sees of states and costs is then
right however such controls share their work.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dilqr_rl.box import product
from dilqr_rl.consistency import ROUGH, disagreement, is_random
from dilqr_rl.derivatives import dynamics_hessian, gradient, terminal_gradient
from dilqr_rl.fixed_point import LossGradient
from dilqr_rl.ilqr import expand, with_curvature
from dilqr_rl.instance import Instance
from dilqr_rl.lqr import Lift, Policy, Quadratic, backward_sweep, control_gradient, costates, linear_rollout
from dilqr_rl.solution import Solution


class Adjoint:
    """A `Pullback` by torch operations.

    Args:
        instance: the problems.
        solution: theirs.
        exact: the gradient of the fixed point; else DiffMPC's.
    """

    def __init__(self, instance: Instance, solution: Solution, exact: bool) -> None:
        self._instance, self._solution, self._exact = instance.with_values(()), solution, exact

    def __call__(
        self, values: tuple[Tensor, ...], needed: tuple[bool, ...], loss: LossGradient
    ) -> tuple[Tensor, list[Tensor | None]]:
        """See `Pullback`."""
        instance = self._instance.with_values(values)
        point = point_of(instance, self._solution)
        dx0 = torch.zeros_like(self._solution.states[:, 0])
        if point.index.numel() == 0:
            return dx0, [torch.zeros_like(value) if need else None for value, need in zip(values, needed, strict=True)]
        step = solve_adjoint(point, LossGradient(*(part[point.index] for part in loss)), exact=self._exact)
        return dx0.index_put((point.index,), step.mu[:, 0]), _value_gradients(instance, needed, point, step)


@dataclass(frozen=True)
class Point:
    """The solutions that have derivatives, K of a batch: those that converged.

    Attributes:
        index: (K,), their places in the batch.
        instance: the problems.
        x: (K, T+1, n).
        u: (K, T, m).
        lower: (K, T, m).
        upper: (K, T, m).
        singular: (K,).
    """

    index: Tensor
    instance: Instance
    x: Tensor
    u: Tensor
    lower: Tensor
    upper: Tensor
    singular: Tensor


def point_of(instance: Instance, solution: Solution) -> Point:
    """The solutions of an instance that have derivatives.

    Raises:
        RuntimeError: the problem isn't the one that was solved any more.
    """
    role = disagreement(instance, solution, ROUGH)
    if role is not None and not is_random(instance, solution):
        raise RuntimeError(
            f"the problem's {role} changed between the solve and its gradient: a setting, or a tensor that isn't the "
            "problem's own. Take the gradient first, or solve again."
        )
    good = solution.converged.nonzero().squeeze(1)
    parts = (solution.states, solution.controls, *instance.bounds(len(solution.status)), solution.singular)
    return Point(good, instance.select(good), *(part[good] for part in parts))


@dataclass(frozen=True)
class Linearised:
    """The linear-quadratic problem around solutions, for B of them.

    Attributes:
        model: dynamics, costs' gradients, and Hessians of the Lagrangian (or of the costs alone, for DiffMPC's gradient).
        costate: lambda (B, T+1, n).
        at_lower: (B, T, m) bool, the controls that stay at their lower bound.
        at_upper: (B, T, m) bool.
    """

    model: Quadratic
    costate: Tensor
    at_lower: Tensor
    at_upper: Tensor


@dataclass(frozen=True)
class AdjointStep:
    """What the adjoint problem gives, for B problems.

    Attributes:
        costate: lambda (B, T+1, n).
        dx: (B, T+1, n).
        du: (B, T, m).
        mu: (B, T+1, n).
        dlower: (B, T, m), derivative of the loss with respect to each lower bound.
        dupper: (B, T, m), with respect to each upper bound.
        dcost: (B,), derivative of the loss with respect to the cost.
    """

    costate: Tensor
    dx: Tensor
    du: Tensor
    mu: Tensor
    dlower: Tensor
    dupper: Tensor
    dcost: Tensor


def linearised(point: Point, *, exact: bool) -> Linearised:
    """The linear-quadratic problem around solutions, with the dynamics' curvature if `exact`."""
    model, costate = expand(point.instance, point.x, point.u)
    if exact:
        curvature = dynamics_hessian(point.instance, point.x[:, :-1], point.u, costate[:, 1:])
        model = with_curvature(model, curvature, torch.ones_like(costate[:, 0, 0]))
    gradient = control_gradient(model.F, model.g, costate)
    at_lower = (point.u <= point.lower) | (point.u - gradient <= point.lower)
    at_upper = ~at_lower & ((point.u >= point.upper) | (point.u - gradient >= point.upper))
    return Linearised(model, costate, at_lower, at_upper)


def stationary(model: Quadratic, held: Tensor, singular: Tensor, gaps: Tensor | None = None) -> Policy:
    """The policy to the stationary point of a linear-quadratic problem whose controls `held` (B, T, m) don't move.

    Of problems that are `singular` (B,) it is the one of least norm. For `gaps` see `backward_sweep`.
    """
    limit = torch.where(held, 0.0, torch.inf).to(model.g)
    policy = backward_sweep(model, -limit, limit, torch.zeros_like(limit[:, 0, 0]), gaps=gaps)
    odd = singular.nonzero().squeeze(1)
    if odd.numel() == 0:
        return policy
    free, undamped = limit[odd], torch.zeros_like(limit[odd, 0, 0])
    least = backward_sweep(model.select(odd), -free, free, undamped, Lift.LEAST, None if gaps is None else gaps[odd])
    return policy.merge(odd, least)


def solve_adjoint(point: Point, gradient_of_loss: LossGradient, *, exact: bool) -> AdjointStep:
    """Solve the adjoint problem for a loss.

    A problem whose system is singular has no derivative; it gets zeros.
    """
    around = linearised(point, exact=exact)
    model = around.model
    loss_dx, loss_du, loss_dcost = gradient_of_loss
    loss_dz = torch.cat((loss_dx[:, :-1], loss_du), dim=-1) + loss_dcost[:, None, None] * model.g
    loss = Quadratic(model.F, model.H, loss_dz, model.H_T, loss_dx[:, -1] + loss_dcost[:, None] * model.g_T)
    dx, du = linear_rollout(model.F, stationary(loss, around.at_lower | around.at_upper, point.singular))
    g = loss.g + product(model.H, torch.cat((dx[:, :-1], du), dim=-1))
    mu = costates(model.F, g, loss.g_T + product(model.H_T, dx[:, -1]))
    dx, du, g, mu = if_finite(dx, du, mu, then=(dx, du, g, mu))
    multiplier = control_gradient(model.F, g, mu)
    dlower, dupper = (torch.where(active, multiplier, 0.0) for active in (around.at_lower, around.at_upper))
    return AdjointStep(around.costate, dx, du, mu, dlower, dupper, loss_dcost)


def _value_gradients(instance: Instance, needed: tuple[bool, ...], point: Point, step: AdjointStep) -> list[Tensor | None]:
    """The reverse pass: the derivative of the bracket in the module's docstring with respect to each value that needs it."""
    with torch.enable_grad():
        leaves = tuple(value.detach().requires_grad_(need) for value, need in zip(instance.values, needed, strict=True))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        if not wanted:
            return [None] * len(leaves)
        total = bracket(instance.with_values(leaves).select(point.index), point, step)
        if total.requires_grad:
            found = iter(torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True))
        else:
            found = iter(torch.zeros_like(leaf) for leaf in wanted)
    return [next(found) if need else None for need in needed]


def bracket(instance: Instance, point: Point, step: AdjointStep) -> Tensor:
    """What stands in braces in the module's docstring, with costs and bounds, as a function of the instance's values."""
    n = point.x.shape[-1]

    z = torch.cat((point.x[:, :-1], point.u), dim=-1).requires_grad_()
    f, cost = (function(z[..., :n], z[..., n:]) for function in (instance.dynamics, instance.stage_cost))
    slope = gradient(lambda _: cost.sum() + (step.costate[:, 1:] * f).sum(), z)
    directional = (slope * torch.cat((step.dx[:, :-1], step.du), dim=-1)).sum()
    last = (terminal_gradient(instance, point.x[:, -1]) * step.dx[:, -1]).sum()
    total = (step.dcost * (cost.sum(-1) + instance.terminal_cost(point.x[:, -1]))).sum()
    lower, upper = instance.bounds(point.u.shape[0])
    at_lower = torch.where(step.dlower != 0, step.dlower * lower, 0.0)
    at_upper = torch.where(step.dupper != 0, step.dupper * upper, 0.0)
    return directional + (step.mu[:, 1:] * f).sum() + last + total + (at_lower + at_upper).sum()


def if_finite(*parts: Tensor, then: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """`then`, (B, ...) each, with zeros for the problems in which one of the parts (B, ...) isn't finite."""
    finite = torch.stack([torch.isfinite(part).flatten(1).all(1) for part in parts]).all(0)
    return tuple(torch.where(finite.view(-1, *[1] * (part.ndim - 1)), part, 0.0) for part in then)
