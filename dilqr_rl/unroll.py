"""The gradient by backpropagation through every iteration: the reference that the implicit gradient is measured against.

The solve runs without gradients and notes its decisions (share of curvature, damping, step length); then its steps are taken
again, with gradients on. Memory grows with the iterations. The derivative of an iterate lags one Newton step behind the
iterate itself, so each converged problem takes one whole step more.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dilqr_rl.adjoint import Adjoint
from dilqr_rl.fixed_point import attach
from dilqr_rl.guess import Guess
from dilqr_rl.ilqr import Decision, Iterate, begin, curvature_of, expand, made_convex, solve, take_step, with_curvature
from dilqr_rl.instance import Instance
from dilqr_rl.lqr import Lift, backward_sweep
from dilqr_rl.options import ILQROptions
from dilqr_rl.solution import Solution, Status


def unrolled(instance: Instance, x0: Tensor, guess: Guess, options: ILQROptions) -> Solution:
    """The solution from x0 (B, n) and a guess (B, ...), with the gradient of the iterations that led to it."""
    decisions: list[Decision] = []
    solved, history = solve(instance, x0, guess, options, decisions)
    solved = replace(solved, instance=instance)
    solution, passes = solved.solution(history), solved.status != Status.NONFINITE
    if passes.any():
        x, u = _replay(solved, decisions, x0, guess)
        cost = _cost(solved, x, u, passes)
    else:
        x, u, cost = attach(Adjoint(instance, solution, exact=True), solution, x0, instance.values)
    return replace(solution, states=x, controls=u, cost=cost)


def _cost(solved: Iterate, x: Tensor, u: Tensor, passes: Tensor) -> Tensor:
    """The cost (B,), a function of x, u and the values; of problems outside `passes` (B,) a number without a gradient."""
    index = passes.nonzero().squeeze(1)
    number = solved.cost + 0.0 * u.flatten(1).sum(1)  # a zero gradient, not none
    return number.index_put((index,), solved.instance.select(index).total_cost(x[index], u[index]))


def _replay(solved: Iterate, decisions: list[Decision], x0: Tensor, guess: Guess) -> tuple[Tensor, Tensor]:
    """The solve again, recorded by autograd.

    Args:
        solved: the solution, its instance that of the whole batch.
        decisions: what each iteration did.
        x0: (B, n).
        guess: where it began, (B, ...).

    Returns:
        States (B, T+1, n) and controls (B, T, m): the solver's numbers, with the gradient of the steps. Problems that ended
        NONFINITE are left out of the graph: their gradient is zero.
    """
    B = x0.shape[0]
    lower, upper = solved.instance.bounds(B)
    healthy = solved.status != Status.NONFINITE
    alive = healthy.nonzero().squeeze(1)
    x, u = begin(solved.instance.select(alive), x0[alive], guess.select(alive))
    place = torch.full((B,), -1, device=x0.device).index_put((alive,), torch.arange(alive.numel(), device=x0.device))
    steps = [(d.index, d.share, d.damping, d.step_length) for d in decisions]
    last = (solved.status == Status.CONVERGED).nonzero().squeeze(1)
    ones = torch.ones_like(solved.cost[last])
    for index, share, damping, length in [*steps, (last, ones, 0 * ones, ones)]:
        taken = (healthy[index] & (length > 0)).nonzero().squeeze(1)
        if taken.numel() == 0:
            continue
        at, where = place[index[taken]], index[taken]
        moved = _step(
            solved.instance.select(where),
            (lower[where], upper[where]),
            x[at],
            u[at],
            (share[taken], damping[taken], length[taken]),
        )
        x, u = x.index_put((at,), moved[0]), u.index_put((at,), moved[1])
    x, u = (value[alive] + (part - part.detach()) for value, part in ((solved.x, x), (solved.u, u)))
    return solved.x.index_put((alive,), x), solved.u.index_put((alive,), u)


def _step(
    instance: Instance, bounds: tuple[Tensor, Tensor], x: Tensor, u: Tensor, decision: tuple[Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """One iteration of ilqr.py with its decisions (share of curvature, damping, step length) given."""
    share, damping, length = decision
    model, costate = expand(instance, x, u)
    curvature = curvature_of(instance, x, u, costate)
    convex = (share == 0).nonzero().squeeze(1)
    if convex.numel() > 0:
        H, H_T = (part[convex] for part in (model.H, model.H_T))
        projected = made_convex(model._replace(H=H, H_T=H_T))
        model = model._replace(H=model.H.index_put((convex,), projected.H), H_T=model.H_T.index_put((convex,), projected.H_T))
    policy = backward_sweep(with_curvature(model, curvature, share), bounds[0] - u, bounds[1] - u, damping, Lift.ALL)
    return take_step(instance, bounds, x, u, policy, length)
