"""The box-constrained quadratic program of one step: min_k 1/2 k^T Q k + q^T k, lower <= k <= upper, for a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_MAX_ITERATIONS = 60
_ROUNDING = 64 * torch.finfo(torch.float64).eps  # of a derivative, relative to its terms: below it the sign means nothing

_LEAST = 1e-10  # of Q's largest eigenvalue: less counts as none


class BoxStep(NamedTuple):
    """Solution of the program.

    Attributes:
        k: (B, m), the minimum.
        K: (B, m, n), its feedback -Q^-1 Q_ux on the free components, zero on the others.
        positive: (B,) bool, whether Q is positive definite on the components that were free, so that k is a minimum.
        singular: (B,) bool, whether it is not, but would be if it were larger by its rounding.
    """

    k: Tensor
    K: Tensor
    positive: Tensor
    singular: Tensor


def box_step(Q: Tensor, q: Tensor, Q_ux: Tensor, lower: Tensor, upper: Tensor, rounding: Tensor | None = None) -> BoxStep:
    """Solve the program for Q (B, m, m), q (B, m), Q_ux (B, m, n), lower and upper (B, m).

    `rounding` (B, m) is what the diagonal of Q may have lost to rounding, zero by default.

    A component with lower == upper stays there, whatever Q, and so does one without any curvature (its row of Q is zero),
    at the clipped origin: it has no minimum, or no effect. Where Q is not positive definite on the components that are
    free at the clipped origin, or on those free later, k is the stationary point on these, and `positive` says so.
    """
    rounding = torch.zeros_like(q) if rounding is None else rounding
    flat = (Q == 0).all(-1)
    origin = torch.clamp(torch.zeros_like(q), lower, upper)
    lower, upper = torch.where(flat, origin, lower), torch.where(flat, origin, upper)
    if q.shape[-1] == 1:
        step = _one_control(Q + flat.unsqueeze(-1), q, Q_ux, lower, upper, rounding)
    else:
        k, free = _find_minimum(*(part.detach() for part in (Q, q, lower, upper, rounding)))
        bound = torch.where(k <= lower, lower, upper)
        step = _on_free_components(Q, q, Q_ux, torch.where(free, torch.zeros_like(bound), bound), free, rounding)
    missing = (flat & (q != 0)).any(-1)
    return step._replace(positive=step.positive & ~missing, singular=step.singular | (step.positive & missing))


def least_step(Q: Tensor, q: Tensor, Q_ux: Tensor, free: Tensor, rounding: Tensor) -> BoxStep:
    """The stationary point of least norm over the free components (B, m), the others at 0, whatever Q's definiteness.

    Directions in which Q's curvature is rounding, or less than 1e-10 of its largest, stay at 0: moving along them changes
    nothing, or has no end.
    """
    masked = torch.where((free.unsqueeze(-1) & free.unsqueeze(-2)) & Q.isfinite(), Q, 0.0)  # the rest of the sweep has the NaN
    lost = rounding.sum(-1).nan_to_num()
    inverse = torch.linalg.pinv(masked, atol=lost, rtol=torch.full_like(lost, _LEAST), hermitian=True)
    solved = inverse @ torch.cat((-q.unsqueeze(-1), -Q_ux), dim=-1)
    every = torch.ones_like(q[:, 0], dtype=torch.bool)
    return BoxStep(solved[..., 0], solved[..., 1:], every, ~every)


def _one_control(Q: Tensor, q: Tensor, Q_ux: Tensor, lower: Tensor, upper: Tensor, rounding: Tensor) -> BoxStep:
    unbounded = -q / Q[..., 0]
    down, up = (q >= 0) & (lower >= 0), (q <= 0) & (upper <= 0)  # at a bound that it presses against
    held = down | up
    free = ~held & (lower < unbounded) & (unbounded < upper)
    k = torch.where(free, unbounded, torch.where(down | (~up & (unbounded <= lower)), lower, upper))
    K = torch.where(free.unsqueeze(-1), -Q_ux / Q, torch.zeros_like(Q_ux))
    positive = (Q[..., 0] > rounding) | held
    return BoxStep(k, K, positive.squeeze(-1), (~positive & (Q[..., 0] >= -rounding)).squeeze(-1))


def _on_free_components(Q: Tensor, q: Tensor, Q_ux: Tensor, bound: Tensor, free: Tensor, rounding: Tensor) -> BoxStep:
    """k and K with the components that are not free held at `bound`: one linear system for both."""
    masked, positive = _masked(Q, free, rounding)
    larger = masked.detach() + torch.diag_embed(2 * rounding)
    singular = ~positive & (torch.linalg.cholesky_ex(larger).info == 0)
    right = torch.cat((-(q + product(Q, bound)).unsqueeze(-1), -Q_ux), dim=-1)
    solved = torch.linalg.solve_ex(masked, torch.where(free.unsqueeze(-1), right, torch.zeros_like(right))).result
    return BoxStep(torch.where(free, solved[..., 0], bound), solved[..., 1:], positive, singular)


def _masked(Q: Tensor, free: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """Q on the free components, the identity on the others; and whether it is positive definite by more than its rounding."""
    pairs = free.unsqueeze(-1) & free.unsqueeze(-2)
    masked = torch.where(pairs, Q, torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device).expand_as(Q))
    factor, info = torch.linalg.cholesky_ex(masked.detach())
    pivots = factor.diagonal(dim1=-2, dim2=-1).square()
    return masked, (info == 0) & (~free | (pivots > rounding)).all(-1)


def _find_minimum(Q: Tensor, q: Tensor, lower: Tensor, upper: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """The minimum and its free set, by Newton steps on the free components, each as far as the first bound in its way.

    The first step, from the clipped origin, is clipped instead: that brings most components to their place at once. Where
    the minimum over the free components is reached, those that don't press against their bound are freed. Each such
    minimum lies below the one before it, so none comes twice and the search ends. Where Q is not positive definite it ends
    at once.
    """
    k = torch.clamp(torch.zeros_like(q), lower, upper)
    free = ~_pressing(Q, q, k, lower, upper)
    direction, running = _newton_direction(Q, q, k, free, rounding)
    k = torch.where(running.unsqueeze(-1), torch.clamp(k + direction, lower, upper), k)
    free = torch.where(running.unsqueeze(-1), ~_pressing(Q, q, k, lower, upper), free)
    for _ in range(_MAX_ITERATIONS):
        direction, positive = _newton_direction(Q, q, k, free, rounding)
        running = running & positive
        moved, stopped = _move(k, direction, lower, upper)
        at_minimum = ~stopped.any(-1, keepdim=True)
        now_free = torch.where(at_minimum, ~_pressing(Q, q, moved, lower, upper), free & ~stopped)
        k = torch.where(running.unsqueeze(-1), moved, k)
        running, before = running & (now_free != free).any(-1), running
        free = torch.where(before.unsqueeze(-1), now_free, free)
        if not running.any():
            break
    return k, free


def _pressing(Q: Tensor, q: Tensor, k: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """(B, m) bool: the components at a bound that crossing it would not make worse."""
    gradient = q + product(Q, k)
    rounding = _ROUNDING * (q.abs() + product(Q.abs(), k.abs()))
    return ((k <= lower) & (gradient >= -rounding)) | ((k >= upper) & (gradient <= rounding))


def _newton_direction(Q: Tensor, q: Tensor, k: Tensor, free: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """The step to the minimum over the free components, and whether there is one."""
    masked, positive = _masked(Q, free, rounding)
    right = torch.where(free, -(q + product(Q, k)), 0.0)
    return torch.linalg.solve_ex(masked, right.unsqueeze(-1)).result.squeeze(-1), positive


def _move(k: Tensor, direction: Tensor, lower: Tensor, upper: Tensor) -> tuple[Tensor, Tensor]:
    """k + direction, or as far that way as the first bound, and the components (B, m) that this bound has stopped."""
    bound = torch.where(direction > 0, upper, lower)
    room = torch.where(direction == 0, torch.inf, (bound - k) / direction)
    length = room.amin(-1, keepdim=True).clamp(max=1.0)
    stopped = room <= length
    return torch.where(stopped, bound, k + length * direction), stopped


def product(matrix: Tensor, vector: Tensor) -> Tensor:
    """matrix (..., i, j) times vector (..., j), as (..., i)."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
