"""A solution's derivative along directions of its start and of its problem's values: forward mode, by one more sweep.

In the notation of adjoint.py, directions dx0 and dtheta move a solution by the step d that is stationary for

    sum_t [d_t^T H_t d_t / 2 + r_t^T d_t] + d_x,T^T H_T d_x,T / 2 + r_T^T d_x,T
    with d_x,0 = dx0 and d_x,t+1 = F_t d_t + c_t,

where r = (d/dtheta grad_z [l + lambda^T f]) dtheta and c = (df/dtheta) dtheta, at fixed z and lambda. A control at its bound
moves with the bound. `Solution.gains` are the special case of a change of x0 alone. The adjoint's braces are linear in its d
and mu, with r and c as what these are multiplied by: so r and c are derivatives of the braces, first along dtheta, then by d
and mu.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dilqr_rl.adjoint import AdjointStep, Linearised, Point, bracket, if_finite, linearised, point_of, stationary
from dilqr_rl.box import product
from dilqr_rl.instance import Instance
from dilqr_rl.lqr import linear_rollout
from dilqr_rl.solution import Solution


def push_forward(
    instance: Instance, solution: Solution, dx0: Tensor, dvalues: tuple[Tensor, ...], *, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """How states (B, T+1, n), controls (B, T, m) and cost (B,) of solutions change along directions.

    Args:
        instance: the problems.
        solution: theirs. Problems that did not converge give zeros.
        dx0: (B, n).
        dvalues: of the shapes of the instance's values.
        exact: the derivative of the fixed point; else with DiffMPC's approximation.

    Raises:
        RuntimeError: the problem isn't the one that was solved any more.
    """
    states, controls, cost = (torch.zeros_like(part) for part in (solution.states, solution.controls, solution.cost))
    point = point_of(instance, solution)
    if point.index.numel() == 0:
        return states, controls, cost
    around = linearised(point, exact=exact)
    dx, du, dcost = _step(around, point, dx0[point.index], _along(instance, point, around, dvalues))
    where = (point.index,)
    return states.index_put(where, dx), controls.index_put(where, du), cost.index_put(where, dcost)


def _along(instance: Instance, point: Point, around: Linearised, dvalues: tuple[Tensor, ...]) -> AdjointStep:
    """The derivative along dtheta of what each of the braces' factors is multiplied by, under that factor's name.

    `du` and `dx` are the parts of r, `mu` is c, `dlower` and `dupper` are the changes of the bounds that hold a control, and
    `dcost` is that of the cost itself.
    """
    names = ("dx", "du", "mu", "dlower", "dupper", "dcost")
    sizes = (point.x, point.u, point.x, around.at_lower, around.at_upper, point.x[:, 0, 0])
    with torch.enable_grad():
        factors = [torch.ones_like(size, dtype=point.x.dtype) * (size if size.dtype == torch.bool else 1) for size in sizes]
        step = AdjointStep(around.costate, **{n: factor.requires_grad_() for n, factor in zip(names, factors, strict=True)})
        leaves = tuple(value.detach().requires_grad_(value.is_floating_point()) for value in instance.values)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        total = bracket(instance.with_values(leaves).select(point.index), point, step)
        slopes = torch.autograd.grad(total, wanted, create_graph=True, allow_unused=True, materialize_grads=True)
        pairs = zip(slopes, (d for d, leaf in zip(dvalues, leaves, strict=True) if leaf.requires_grad), strict=True)
        along = torch.stack([(slope * change).sum() for slope, change in pairs] or [point.x.new_zeros(())]).sum()
        if not along.requires_grad:
            return AdjointStep(around.costate, **{n: torch.zeros_like(f) for n, f in zip(names, factors, strict=True)})
        found = torch.autograd.grad(along, factors, allow_unused=True, materialize_grads=True)
    return AdjointStep(around.costate, **dict(zip(names, found, strict=True)))


def _step(around: Linearised, point: Point, dx0: Tensor, along: AdjointStep) -> tuple[Tensor, Tensor, Tensor]:
    """The step d and the change of the cost. Held controls are moved with their bounds first, and held there."""
    model, n = around.model, dx0.shape[-1]
    moved = along.dlower + along.dupper
    gaps = along.mu[:, 1:] + product(model.F[..., n:], moved)
    r = torch.cat((along.dx[:, :-1], along.du), dim=-1) + product(model.H[..., n:], moved)
    held = around.at_lower | around.at_upper
    policy = stationary(model._replace(g=r, g_T=along.dx[:, -1]), held, point.singular, gaps)
    dx, du = linear_rollout(model.F, policy, dx0, gaps)
    du = du + moved
    dcost = (model.g * torch.cat((dx[:, :-1], du), dim=-1)).sum((1, 2)) + (model.g_T * dx[:, -1]).sum(-1) + along.dcost
    dx, du, dcost = if_finite(dx, du, then=(dx, du, dcost))
    return dx, du, dcost
