"""Whether trajectories are those of a problem's own functions."""

from __future__ import annotations

import torch
from torch import Tensor

from dilqr_rl.instance import Instance
from dilqr_rl.solution import Solution

__all__ = ["ROUGH", "agree", "disagreement", "is_random"]

_NATIVE = 1e-8  # relative and absolute: rounding of float64 leaves less, a function that was misread more
ROUGH = 1e-5  # the same of functions that may compute in float32 inside, whose sums depend on the size of a batch


def agree(found: Tensor, expected: Tensor, tolerance: float = _NATIVE) -> bool:
    """Whether numbers agree, or aren't finite in the same places."""
    close = torch.isclose(found, expected, rtol=tolerance, atol=tolerance)
    return bool((close | ~(found.isfinite() | expected.isfinite())).all())


@torch.no_grad()
def disagreement(instance: Instance, solution: Solution, tolerance: float = _NATIVE) -> str | None:
    """Which of a problem's functions don't lead to a solution, in float64, if there are such: "dynamics" or "costs"."""
    x, u = solution.states, solution.controls
    reached = x[:, :-1].isfinite().all(-1, keepdim=True)
    if not agree(x[:, 1:], torch.where(reached, instance.dynamics(x[:, :-1], u), x[:, 1:]), tolerance):
        return "dynamics"
    whole = x.isfinite().flatten(1).all(1)
    return None if agree(solution.cost, torch.where(whole, instance.total_cost(x, u), solution.cost), tolerance) else "costs"


@torch.no_grad()
def is_random(instance: Instance, solution: Solution) -> bool:
    """Whether a problem's functions give other results when they are called again."""
    x, u = solution.states, solution.controls
    first, second = ((instance.dynamics(x[:, :-1], u), instance.total_cost(x, u)) for _ in range(2))
    return not all(agree(one, other) for one, other in zip(first, second, strict=True))
