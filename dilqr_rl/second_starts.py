"""Where a solve from zero controls can't be trusted, and where to start it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from dilqr_rl.guess import Guess
from dilqr_rl.ilqr import policy_around
from dilqr_rl.instance import Instance
from dilqr_rl.solution import Solution, Status

__all__ = ["between_bounds", "doubts", "feedback_start", "is_better"]

_MOVED = 1e-4  # of 1 + the largest control: less is no move
_CHEAPER = 1e-9  # relative: less is rounding
_MUCH_CHEAPER = 0.01  # relative: what has converged at once costs so much more that it is no solution


def doubts(solution: Solution, bounds: Callable[[], tuple[Tensor, Tensor]]) -> Tensor:
    """The problems (K,) that ended where they began, at zero controls or the `bounds` (B, T, m) next to them, perhaps in vain.

    The first rollout wasn't finite; or the projected gradient was zero at once where a control sits at a bound, where the
    Hessian isn't positive definite, or where a control never answers to the state: it has no effect there, as on a plateau.
    """
    iterations, status = solution.num_iterations.cpu().numpy(), solution.status.cpu().numpy()
    if iterations.min() > 1:
        return solution.status.new_empty(0)
    rows = len(iterations)
    u, lower, upper = (part.detach().cpu().numpy().reshape(rows, -1) for part in (solution.controls, *bounds()))
    start = np.maximum(np.minimum(0.0, upper), lower)
    stays = np.abs(u - start).max(1) <= _MOVED * (1.0 + np.abs(u).max(1))
    doubtful = (status == Status.NONFINITE) & (iterations == 0)
    early = np.flatnonzero((status == Status.CONVERGED) & (iterations <= 1) & stays)
    if early.size > 0:
        at_bound = ((u[early] <= lower[early]) | (u[early] >= upper[early])).any(1)
        gains, singular = (part.cpu().numpy()[early] for part in (solution.gains, solution.singular))
        doubtful[early] = (gains == 0.0).all((1, 3)).any(1) | at_bound | singular
    return torch.from_numpy(np.flatnonzero(doubtful)).to(solution.status.device)


@torch.no_grad()
def feedback_start(instance: Instance, x0: Tensor) -> Guess:
    """A start for K problems from x0 (K, n) where zero controls escape: the policy of their linear-quadratic model at x0."""
    lower, upper = instance.bounds(len(x0))
    held = Guess(_between(lower, upper, 0.5), x0.unsqueeze(1).expand(-1, lower.shape[1] + 1, -1))
    policy = policy_around(instance, held, closing=True)
    found = (policy.K.flatten(1).isfinite().all(1) & policy.k.flatten(1).isfinite().all(1))[:, None, None]
    controls = held.controls + torch.where(found, policy.k, 0.0)
    return Guess(controls, held.states, torch.where(found.unsqueeze(-1), policy.K, 0.0))


def between_bounds(lower: Tensor, upper: Tensor) -> Iterator[Guess]:
    """Starts between bounds (K, T, m): in the middle, and at either side of it."""
    return (Guess(_between(lower.detach(), upper.detach(), share)) for share in (0.5, 0.75, 0.25))


def is_better(other: Solution, solution: Solution) -> Tensor:
    """Which problems (K,) the other solution solves at a lower cost, or at all; or at a much lower one without an end."""
    gain, size = solution.cost - other.cost, 1.0 + solution.cost.abs()
    cheaper = (gain > _CHEAPER * size) & (other.converged | ~solution.converged | (gain > _MUCH_CHEAPER * size))
    return (other.status != Status.NONFINITE) & (cheaper | (solution.status == Status.NONFINITE))


def _between(lower: Tensor, upper: Tensor, share: float) -> Tensor:
    """Controls at a share of the way from the lower bound to the upper, one unit off zero where there are no such."""
    bounded = lower.isfinite() & upper.isfinite()
    inside = torch.clamp(torch.full_like(lower, 4.0 * share - 2.0), lower, upper)
    return torch.where(bounded, lower + share * (upper - lower), inside)
