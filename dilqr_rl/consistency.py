"""Whether trajectories are those of a problem's own functions."""

from __future__ import annotations

import torch
from torch import Tensor

from dilqr_rl.instance import Instance
from dilqr_rl.solution import Solution

__all__ = ["agree", "disagreement"]

_AGREEMENT = 1e-8  # relative and absolute: rounding leaves less, a function that was misread or has changed more


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether numbers agree, or aren't finite in the same places."""
    close = torch.isclose(found, expected, rtol=_AGREEMENT, atol=_AGREEMENT)
    return bool((close | ~(found.isfinite() | expected.isfinite())).all())


@torch.no_grad()
def disagreement(instance: Instance, solution: Solution) -> str | None:
    """Which of a problem's functions don't lead to a solution, in float64, if there are such: "dynamics" or "costs"."""
    x, u = solution.states, solution.controls
    reached = x[:, :-1].isfinite().all(-1, keepdim=True)
    if not agree(x[:, 1:], torch.where(reached, instance.dynamics(x[:, :-1], u), x[:, 1:])):
        return "dynamics"
    whole = x.isfinite().flatten(1).all(1)
    return None if agree(solution.cost, torch.where(whole, instance.total_cost(x, u), solution.cost)) else "costs"
