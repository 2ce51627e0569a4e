"""The gradient by backpropagation through every iteration: the reference that the implicit gradient is measured against.

The solve runs without gradients and notes its decisions (step lengths, weights, regularisation); then its steps are taken
again, with gradients on. Memory grows with the iterations. The derivative of an iterate lags one Newton step behind the
iterate itself, so each converged problem takes one whole step more.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dilqr_rl.derivatives import dynamics_hessian
from dilqr_rl.ilqr import Decision, Iterate, expand, rollout, take_step, with_curvature
from dilqr_rl.instance import Instance
from dilqr_rl.lqr import backward_sweep
from dilqr_rl.solution import Status


def replay(solved: Iterate, decisions: list[Decision], x0: Tensor, u_init: Tensor) -> tuple[Tensor, Tensor]:
    """The solve again, recorded by autograd.

    Args:
        solved: the solution, its instance that of the whole batch.
        decisions: what each iteration did.
        x0: (B, n).
        u_init: (B, T, m).

    Returns:
        States (B, T+1, n) and controls (B, T, m): the solver's numbers, with the gradient of the steps. Problems that ended
        NONFINITE are left out of the graph: their gradient is zero.
    """
    B = x0.shape[0]
    lower, upper = solved.instance.bounds(B)
    healthy = solved.status != Status.NONFINITE
    alive = healthy.nonzero().squeeze(1)
    u = torch.clamp(u_init[alive], lower[alive], upper[alive])
    x = rollout(solved.instance.select(alive), x0[alive], u)
    place = torch.full((B,), -1, device=x0.device).index_put((alive,), torch.arange(alive.numel(), device=x0.device))
    steps = [(d.index, d.weight, d.regularisation, d.step_length) for d in decisions]
    last = (solved.status == Status.CONVERGED).nonzero().squeeze(1)
    ones = torch.ones_like(solved.cost[last])
    for index, weight, regularisation, length in [*steps, (last, ones, 0 * ones, ones)]:
        taken = (healthy[index] & (length > 0)).nonzero().squeeze(1)
        if taken.numel() == 0:
            continue
        at, where = place[index[taken]], index[taken]
        moved = _step(
            solved.instance.select(where),
            (lower[where], upper[where]),
            x[at],
            u[at],
            (weight[taken], regularisation[taken], length[taken]),
        )
        x, u = x.index_put((at,), moved[0]), u.index_put((at,), moved[1])
    x, u = (value[alive] + (part - part.detach()) for value, part in ((solved.x, x), (solved.u, u)))
    return solved.x.index_put((alive,), x), solved.u.index_put((alive,), u)


def _step(
    instance: Instance, bounds: tuple[Tensor, Tensor], x: Tensor, u: Tensor, decision: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """One iteration of ilqr.py with its decisions (weight, regularisation, step length) given."""
    weight, regularisation, length = decision
    model, costate = expand(instance, x, u)
    model = with_curvature(model, dynamics_hessian(instance, x[:, :-1], u, costate[:, 1:]), weight)
    policy = backward_sweep(model, bounds[0] - u, bounds[1] - u, regularisation)
    return take_step(instance, bounds, x, u, policy, length)
