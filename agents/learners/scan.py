"""A look around before the gradient: far from the truth most planned controls sit on bounds, or plans lead elsewhere.

The cross-entropy method over what a planner learns: draw around the best so far, plan with all draws in one batch, keep the
better ones, draw again more closely. Physics and costs have few numbers, so that some dozen draws for each find the valley in
which the gradient then works.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dilqr_rl.agents.learners.options import FitOptions
from dilqr_rl.agents.learners.segments import Segments

if TYPE_CHECKING:
    from dilqr_rl.agents.learners.planning import PlanningLearner

__all__ = ["scan"]

_PER_NUMBER = 8  # draws in a round for each number
_ELITES = 0.25
_SPREAD = math.log(3.0)  # of the first draw: a factor of three either way, or as much in the goal's unit
_LEAST_SPREAD = 0.05
_WATCHED = 128  # demonstrated numbers to judge by, about
_MOST = 32  # learnt numbers, beyond which draws find nothing


@torch.no_grad()
def scan(learner: PlanningLearner, segments: Segments, options: FitOptions) -> bool:
    """Move what the learner learns to the best of several draws; the values it has are among them.

    Args:
        learner: changed in place, whenever a better draw is found.
        segments: to judge by; some of them are drawn.
        options: `scan_rounds`, each narrower than the last, and the seed of the draws.

    Returns:
        Whether there was anything to scan: not where there are more than 32 numbers, as in a network.
    """
    learnt = learner.learnt_parameters()
    sizes = [parameter.numel() for parameter in learnt.values()]
    if sum(sizes) > _MOST:
        return False
    generator = torch.Generator().manual_seed(options.seed)
    count = -(-_WATCHED // segments.controls[0].numel())
    watched = segments[torch.randperm(len(segments), generator=generator)[:count]]
    start = torch.cat([parameter.detach().double().cpu().reshape(-1) for parameter in learnt.values()])
    draws = _PER_NUMBER * len(start)
    mean, spread = torch.zeros_like(start), torch.full_like(start, _SPREAD)
    best_loss = math.inf
    for _ in range(options.scan_rounds):
        moved = mean + spread * torch.randn(draws, len(start), generator=generator, dtype=torch.float64)
        moved[0] = mean
        candidates = start + moved
        losses = _losses(learner, candidates, sizes, watched)
        order = losses.argsort(stable=True)  # of equal ones the first, the values that it had
        if losses[order[0]] < best_loss:
            best_loss = float(losses[order[0]])
            for parameter, values in zip(learnt.values(), candidates[order[0]].split(sizes), strict=True):
                parameter.copy_(values.view_as(parameter))
        elites = moved[order[: int(_ELITES * draws)]]
        mean, spread = elites.mean(0), elites.std(0).clamp(min=_LEAST_SPREAD)
    return True


def _losses(learner: PlanningLearner, candidates: Tensor, sizes: list[int], segments: Segments) -> Tensor:
    """Mean squared error of each candidate (K,), all planned as one batch."""
    draws, samples = len(candidates), len(segments)
    params = {
        name: values.repeat_interleave(samples, 0).view(-1, *parameter.shape).to(parameter)
        for (name, parameter), values in zip(learner.learnt_parameters().items(), candidates.split(sizes, dim=1), strict=True)
    }
    repeated = Segments(segments.states.repeat(draws, 1, 1), segments.controls.repeat(draws, 1, 1))
    errors = learner.errors(repeated, params).square().mean(1).view(draws, samples).mean(1)
    return torch.where(errors.isfinite(), errors, torch.inf).double().cpu()
