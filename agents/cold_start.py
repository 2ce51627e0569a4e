"""Controls to start a plan from when nothing is known: swings of several periods, so that a pendulum finds its way up."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dilqr_rl.planner import ILQR
from dilqr_rl.problem import ControlProblem

__all__ = ["best_of_swings"]

_PERIODS = (0.4, 0.6, 0.8, 1.2)  # of the horizon
_PHASES = (0.0, 0.25, 0.5, 0.75)  # of the period


@torch.no_grad()
def best_of_swings(planner: ILQR, x0: Tensor, params: Mapping[str, Tensor] | None = None) -> Tensor:
    """Plan from x0 (B, n) once from each guess, and keep the controls (B, T, m) of the cheapest plan.

    The guesses are zero and, where all controls are bounded, rest at either bound and square waves between them. Several
    controls do so alike, or every second one the other way round, without which a body that its controls turn between them
    would never be turned. `params` are the planner's, with (B,) in front.
    """
    guesses = _guesses(planner.problem).to(x0.device)
    count, B = guesses.shape[0], x0.shape[0]
    repeated = {name: value.repeat_interleave(count, 0) for name, value in (params or {}).items()}
    solution = planner(x0.repeat_interleave(count, 0), repeated, guesses.repeat(B, 1, 1))
    cost = torch.where(solution.cost.isfinite(), solution.cost, torch.inf).view(B, count)
    best = cost.argmin(1) + count * torch.arange(B, device=x0.device)
    return solution.controls[best].to(torch.float64)


def _guesses(problem: ControlProblem) -> Tensor:
    """(guesses, T, m)."""
    T, m = problem.horizon, problem.control_size
    lower, upper = (bound.detach().to(torch.float64).expand(m) for bound in (problem.u_min, problem.u_max))
    zero = torch.zeros(1, T, m, dtype=torch.float64, device=lower.device)
    if not (lower.isfinite().all() and upper.isfinite().all()):
        return zero
    time = torch.arange(T, device=lower.device) + 0.5
    waves = [torch.ones(T, device=lower.device), -torch.ones(T, device=lower.device)]
    waves += [torch.sin(2 * torch.pi * (time / (period * T) + phase)) for period in _PERIODS for phase in _PHASES]
    together = torch.where(torch.stack(waves).unsqueeze(-1) > 0, upper, lower)
    if m == 1:
        return torch.cat((zero, together))
    opposed = together.clone()
    opposed[..., 1::2] = (lower + upper)[1::2] - together[..., 1::2]
    return torch.cat((zero, together, opposed))
