"""A look around before the gradient: where physics are far off, most planned controls sit on bounds and pass no gradient.

The cross-entropy method over the learnt scalar physics: draw factors around the best so far, plan with all of them in one
batch, keep the better ones, draw again more closely. Physics are few, so a few dozen draws find the valley in which the
gradient then works.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dilqr_rl.agents.learnable import Positive
from dilqr_rl.agents.policy import MPCPolicy

__all__ = ["scan_physics"]

_CANDIDATES = 24
_ELITES = 6
_SPREAD = math.log(3.0)  # of the first draw: a factor of three either way
_LEAST_SPREAD = 0.05


@torch.no_grad()
def scan_physics(policy: MPCPolicy, observations: Tensor, actions: Tensor, rounds: int, seed: int) -> None:
    """Move the policy's learnt scalar physics to the best of several draws; the values it has are among them.

    Args:
        policy: changed in place, whenever a better draw is found; left alone if it learns no scalar physics.
        observations: (S, k), to judge by.
        actions: (S, m), demonstrated there.
        rounds: of draws, each narrower than the last.
        seed: of the draws.
    """
    problem = policy.problem
    learnt = [
        (name, p) for name, p in problem.named_parameters() if p.requires_grad and p.ndim == 0 and name.startswith("dynamics.")
    ]
    if not learnt:
        return
    generator = torch.Generator().manual_seed(seed)
    names = [name for name, _ in learnt]
    start = torch.stack([parameter.detach().double().cpu() for _, parameter in learnt])
    additive = torch.tensor([_is_logarithm(problem, name) for name in names])
    mean, spread = torch.zeros(len(names), dtype=torch.float64), torch.full((len(names),), _SPREAD, dtype=torch.float64)
    best_loss = float("inf")
    for _ in range(rounds):
        factors = mean + spread * torch.randn(_CANDIDATES, len(names), generator=generator, dtype=torch.float64)
        factors[0] = mean
        candidates = torch.where(additive, start + factors, start * factors.exp())
        losses = _losses(policy, dict(zip(names, candidates.T, strict=True)), observations, actions)
        order = losses.argsort()
        if losses[order[0]] < best_loss:
            best_loss = float(losses[order[0]])
            for (_, parameter), value in zip(learnt, candidates[order[0]], strict=True):
                parameter.fill_(value)
        elites = factors[order[:_ELITES]]
        mean, spread = elites.mean(0), elites.std(0).clamp(min=_LEAST_SPREAD)


def _losses(policy: MPCPolicy, values: dict[str, Tensor], observations: Tensor, actions: Tensor) -> Tensor:
    """Mean squared error of each candidate (K,), all planned as one batch."""
    count, samples = _CANDIDATES, len(observations)
    params = {name: value.to(observations.device).repeat_interleave(samples) for name, value in values.items()}
    planned = policy.plan(observations.repeat(count, 1), params).controls[:, 0] / policy.task.control_per_action
    errors = (planned - actions.repeat(count, 1)).square().mean(-1).view(count, samples).mean(1)
    return torch.where(errors.isfinite(), errors, torch.inf).double().cpu()


def _is_logarithm(problem: nn.Module, name: str) -> bool:
    """Whether the parameter is the raw tensor of a positive one, to which factors are added rather than multiplied."""
    parametrisation = name.removesuffix(".original")
    return parametrisation != name and isinstance(problem.get_submodule(parametrisation)[0], Positive)  # type: ignore[index]
