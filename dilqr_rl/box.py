"""The box-constrained quadratic program of one step: min_k 1/2 k^T Q k + q^T k, lower <= k <= upper, for a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MAX_ITERATIONS = 60
_STEP_LENGTHS = 12


class BoxStep(NamedTuple):
    """Solution of the program.

    Attributes:
        k: (B, m), the minimum.
        K: (B, m, n), its feedback -Q^-1 Q_ux on the free components, zero on the others.
        positive: (B,) bool, whether Q is positive definite on the components that were free.
    """

    k: Tensor
    K: Tensor
    positive: Tensor


def box_step(Q: Tensor, q: Tensor, Q_ux: Tensor, lower: Tensor, upper: Tensor) -> BoxStep:
    """Solve the program for Q (B, m, m), q (B, m), Q_ux (B, m, n), lower and upper (B, m).

    A component with lower == upper stays there, whatever Q. Where Q is not positive definite, k is the stationary point on the
    components free at the start, and `positive` says so.
    """
    if q.shape[-1] == 1:
        return _one_control(Q, q, Q_ux, lower, upper)
    k, free = _projected_newton(*(part.detach() for part in (Q, q, lower, upper)))
    bound = torch.where(k <= lower, lower, upper)
    return _on_free_components(Q, q, Q_ux, torch.where(free, torch.zeros_like(bound), bound), free)


def _one_control(Q: Tensor, q: Tensor, Q_ux: Tensor, lower: Tensor, upper: Tensor) -> BoxStep:
    unbounded = -q / Q[..., 0]
    held = ((q >= 0) & (lower >= 0)) | ((q <= 0) & (upper <= 0))  # at a bound that it presses against
    free = ~held & (lower < unbounded) & (unbounded < upper)
    k = torch.where(free, unbounded, torch.where(unbounded > lower, upper, lower))
    k = torch.where(held, torch.clamp(torch.zeros_like(k), lower, upper), k)
    K = torch.where(free.unsqueeze(-1), -Q_ux / Q, torch.zeros_like(Q_ux))
    return BoxStep(k, K, ((Q[..., 0] > 0) | held).squeeze(-1))


def _on_free_components(Q: Tensor, q: Tensor, Q_ux: Tensor, bound: Tensor, free: Tensor) -> BoxStep:
    """k and K with the components that are not free held at `bound`: one linear system for both."""
    masked, positive = _masked(Q, free)
    right = torch.cat((-(q + (Q @ bound.unsqueeze(-1)).squeeze(-1)).unsqueeze(-1), -Q_ux), dim=-1)
    solved = torch.linalg.solve_ex(masked, torch.where(free.unsqueeze(-1), right, torch.zeros_like(right))).result
    return BoxStep(torch.where(free, solved[..., 0], bound), solved[..., 1:], positive)


def _masked(Q: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Q on the free components, the identity on the others; and whether it is positive definite."""
    pairs = free.unsqueeze(-1) & free.unsqueeze(-2)
    masked = torch.where(pairs, Q, torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device).expand_as(Q))
    return masked, torch.linalg.cholesky_ex(masked.detach()).info == 0


def _projected_newton(Q: Tensor, q: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and free set by projected Newton steps (Bertsekas 1982) from the clipped origin; finite for positive definite Q."""
    k = torch.clamp(torch.zeros_like(q), lower, upper)
    free = torch.zeros_like(q, dtype=torch.bool)
    done = torch.zeros_like(q[:, 0], dtype=torch.bool)
    for _ in range(_MAX_ITERATIONS):
        gradient = q + (Q @ k.unsqueeze(-1)).squeeze(-1)
        now_free = ~(((k <= lower) & (gradient >= 0)) | ((k >= upper) & (gradient <= 0)))
        masked, _ = _masked(Q, now_free)
        right = torch.where(now_free, -gradient, torch.zeros_like(gradient)).unsqueeze(-1)
        direction = torch.linalg.solve_ex(masked, right).result.squeeze(-1)
        moved, whole = _projected_search(Q, gradient, k, direction, lower, upper)
        # A whole step within the bounds solves the program on its free set; the next pass shows whether that set stays.
        stays = (now_free == free).all(-1) & whole
        free = torch.where(done.unsqueeze(-1), free, now_free)
        k = torch.where(done.unsqueeze(-1), k, moved)
        done = done | stays
        if done.all():
            break
    return k, free


def _projected_search(
    Q: Tensor, gradient: Tensor, k: Tensor, direction: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """The first of k + direction, k + direction/2, ..., clipped, that lowers the program's value enough; and whether it is unclipped.

    Where none does, k is the minimum already, to rounding.
    """
    lengths = 0.5 ** torch.arange(_STEP_LENGTHS, dtype=k.dtype, device=k.device)
    trials = torch.clamp(k.unsqueeze(1) + lengths[:, None] * direction.unsqueeze(1), lower.unsqueeze(1), upper.unsqueeze(1))
    change = trials - k.unsqueeze(1)
    slope = (change * gradient.unsqueeze(1)).sum(-1)
    accepted = slope + 0.5 * (change * (change @ Q)).sum(-1) <= 0.1 * slope
    first = accepted.to(torch.uint8).argmax(-1)
    trial = trials.gather(1, first[:, None, None].expand(-1, 1, k.shape[-1])).squeeze(1)
    found = accepted.any(-1)
    unclipped = (first == 0) & (trial == k + direction).all(-1)
    return torch.where(found.unsqueeze(-1), trial, k), unclipped | ~found
