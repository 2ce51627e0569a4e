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
from dilqr_rl.lqr import Lift, Quadratic, backward_sweep, control_gradient, costates, linear_rollout
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
        solution, instance = self._solution, self._instance.with_values(values)
        role = disagreement(instance, solution, ROUGH)
        if role is not None and not is_random(instance, solution):
            raise RuntimeError(
                f"the problem's {role} changed between the solve and its gradient: a setting, or a tensor that isn't the "
                "problem's own. Take the gradient first, or solve again."
            )
        good = solution.converged.nonzero().squeeze(1)
        dx0 = torch.zeros_like(solution.states[:, 0])
        if good.numel() == 0:
            return dx0, [torch.zeros_like(value) if need else None for value, need in zip(values, needed, strict=True)]
        bounds = instance.bounds(dx0.shape[0])
        parts = (solution.states, solution.controls, *bounds, solution.singular)
        point = Point(instance.select(good), *(part[good] for part in parts))
        step = solve_adjoint(point, LossGradient(*(part[good] for part in loss)), exact=self._exact)
        return dx0.index_put((good,), step.mu[:, 0]), _value_gradients(instance, needed, good, point, step)


@dataclass(frozen=True)
class Point:
    """Solutions of B problems: x (B, T+1, n), u, lower and upper (B, T, m), and whether they are singular (B,)."""

    instance: Instance
    x: Tensor
    u: Tensor
    lower: Tensor
    upper: Tensor
    singular: Tensor


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


def solve_adjoint(point: Point, gradient_of_loss: LossGradient, *, exact: bool) -> AdjointStep:
    """Solve the adjoint problem for a loss.

    A problem whose system is singular has no derivative; it gets zeros.
    """
    model, costate = expand(point.instance, point.x, point.u)
    if exact:
        curvature = dynamics_hessian(point.instance, point.x[:, :-1], point.u, costate[:, 1:])
        model = with_curvature(model, curvature, torch.ones_like(costate[:, 0, 0]))
    gradient = control_gradient(model.F, model.g, costate)
    at_lower = (point.u <= point.lower) | (point.u - gradient <= point.lower)
    at_upper = ~at_lower & ((point.u >= point.upper) | (point.u - gradient >= point.upper))
    limit = torch.where(at_lower | at_upper, 0.0, torch.inf).to(point.u)
    loss_dx, loss_du, loss_dcost = gradient_of_loss
    loss_dz = torch.cat((loss_dx[:, :-1], loss_du), dim=-1) + loss_dcost[:, None, None] * model.g
    loss = Quadratic(model.F, model.H, loss_dz, model.H_T, loss_dx[:, -1] + loss_dcost[:, None] * model.g_T)
    policy = backward_sweep(loss, -limit, limit, torch.zeros_like(limit[:, 0, 0]))
    odd = point.singular.nonzero().squeeze(1)
    if odd.numel() > 0:
        free, undamped = limit[odd], torch.zeros_like(limit[odd, 0, 0])
        policy = policy.merge(odd, backward_sweep(loss.select(odd), -free, free, undamped, Lift.LEAST))
    dx, du = linear_rollout(model.F, policy)
    g = loss.g + product(model.H, torch.cat((dx[:, :-1], du), dim=-1))
    mu = costates(model.F, g, loss.g_T + product(model.H_T, dx[:, -1]))
    finite = _finite(dx, du, mu)
    dx, du, g, mu = (torch.where(finite[:, None, None], part, 0.0) for part in (dx, du, g, mu))
    multiplier = control_gradient(model.F, g, mu)
    dlower, dupper = (torch.where(active, multiplier, 0.0) for active in (at_lower, at_upper))
    return AdjointStep(costate, dx, du, mu, dlower, dupper, loss_dcost)


def _value_gradients(
    instance: Instance, needed: tuple[bool, ...], good: Tensor, point: Point, step: AdjointStep
) -> list[Tensor | None]:
    """The reverse pass: the derivative of the bracket in the module's docstring with respect to each value that needs it."""
    with torch.enable_grad():
        leaves = tuple(value.detach().requires_grad_(need) for value, need in zip(instance.values, needed, strict=True))
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        if not wanted:
            return [None] * len(leaves)
        bracket = _bracket(instance.with_values(leaves).select(good), point, step)
        if bracket.requires_grad:
            found = iter(torch.autograd.grad(bracket, wanted, allow_unused=True, materialize_grads=True))
        else:
            found = iter(torch.zeros_like(leaf) for leaf in wanted)
    return [next(found) if need else None for need in needed]


def _bracket(instance: Instance, point: Point, step: AdjointStep) -> Tensor:
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


def _finite(*parts: Tensor) -> Tensor:
    """(B,) bool: whether all numbers of a problem are finite."""
    return torch.stack([torch.isfinite(part).flatten(1).all(1) for part in parts]).all(0)
