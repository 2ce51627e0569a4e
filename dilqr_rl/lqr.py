"""The linear-quadratic problem of one iteration, and of the adjoint: one backward sweep for both.

Notation, for steps d = (dx, du) away from a trajectory, batch first:
    F (B, T, n, n+m)          dynamics d_x,t+1 = F_t d_t
    H (B, T, n+m, n+m), g     quadratic and linear cost of d_t
    H_T (B, n, n), g_T        the same of the last state
    lower, upper (B, T, m)    lower <= du <= upper
    V, v                      quadratic and linear part of the cost to go
    Q, q                      the same of (dx, du) at one step
The step is du_t = k_t + K_t dx_t: k minimises Q_uu within the bounds (Tassa, Mansard and Todorov 2014), K acts on free
controls only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from dilqr_rl.box import BoxStep, box_step, least_step, product

_LIFT = 1e-6  # what lifts a singular Q_uu, relative to the largest element of its diagonal
_ROUNDING = 64 * torch.finfo(torch.float64).eps  # of Q_uu, relative to its terms


class Quadratic(NamedTuple):
    """A linear-quadratic model around a trajectory; shapes as in the module's notation."""

    F: Tensor
    H: Tensor
    g: Tensor
    H_T: Tensor
    g_T: Tensor

    def select(self, index: Tensor) -> Quadratic:
        """The models of some problems of the batch."""
        return Quadratic(*(part[index] for part in self))


@dataclass(frozen=True)
class Policy:
    """What a sweep finds.

    Attributes:
        k: (B, T, m), open-loop step.
        K: (B, T, m, n), feedback gains.
        slope: (B,), expected change of the cost per unit of step length, to first order (negative).
        curvature: (B,), its second order: change = slope a + curvature a^2 / 2 for a step of length a.
        positive: (B,) bool, whether Q_uu was positive definite at every step, so that the step is a minimum.
        lifted: (B,) bool, whether it was so since it was lifted.
    """

    k: Tensor
    K: Tensor
    slope: Tensor
    curvature: Tensor
    positive: Tensor
    lifted: Tensor

    def select(self, index: Tensor) -> Policy:
        """The policies of some problems of the batch."""
        return Policy(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def merge(self, index: Tensor, other: Policy) -> Policy:
        """This policy, with `other` (K,) in the place of the problems at `index` (K,)."""
        names = self.__dataclass_fields__
        return Policy(*(getattr(self, name).index_put((index,), getattr(other, name)) for name in names))


class Lift(Enum):
    """Which Q_uu that isn't positive definite is lifted, by 1e-6 of the largest element of its diagonal.

    With LEAST none is: the step is the stationary point of least norm, for bounds of 0 or infinity; see `least_step`.
    """

    NONE = 0
    SINGULAR = 1
    ALL = 2
    LEAST = 3


def backward_sweep(
    model: Quadratic, lower: Tensor, upper: Tensor, damping: Tensor, lift: Lift = Lift.NONE, gaps: Tensor | None = None
) -> Policy:
    """Solve the linear-quadratic problem backwards in time.

    Args:
        model: the problem.
        lower: of the step.
        upper: of the step.
        damping: (B,), added to the diagonal of Q_uu, relative to its largest element.
        lift: which Q_uu is lifted. Where it isn't positive definite and isn't lifted, the step is a stationary point.
        gaps: (B, T, n), by which each next state lies off the trajectory: d_x,t+1 = F_t d_t + gaps_t. None: on it.
    """
    n, V, v = model.g_T.shape[-1], model.H_T, model.g_T
    slope = curvature = torch.zeros_like(damping)
    positive, lifted = torch.ones_like(damping, dtype=torch.bool), torch.zeros_like(damping, dtype=torch.bool)
    k_reversed, K_reversed = [], []
    gaps = torch.zeros_like(model.g[..., :n]) if gaps is None else gaps
    steps = zip(*(part.unbind(1) for part in (model.F, model.H, model.g, lower, upper, gaps)), strict=True)
    spread = _spread(V)
    for F, H, g, low, high, gap in reversed(list(steps)):
        Q = H + F.mT @ V @ F
        q = g + product(F.mT, v + product(V, gap))
        Q_uu, Q_ux, rounding = Q[:, n:, n:], Q[:, n:, :n], _rounding(F, H, spread)
        unit, lifting = _units(Q_uu, q[:, n:], high - low)
        if lift is Lift.LEAST:
            step = least_step(Q_uu, q[:, n:], Q_ux, high > low, rounding)
        else:
            step = box_step(_plus(Q_uu, damping * unit), q[:, n:], Q_ux, low, high, rounding)
        lifts = ~step.positive & (step.singular | (lift is Lift.ALL)) if lift is not Lift.NONE else torch.zeros_like(positive)
        if lifts.any():
            other = box_step(_plus(Q_uu, damping * unit + lifting), q[:, n:], Q_ux, low, high, rounding)
            step = BoxStep(*(torch.where(_like(lifts, new), new, old) for old, new in zip(step, other, strict=True)))
        k, K = step.k, step.K
        Q_uu_k = product(Q_uu, k)
        slope = slope + (k * q[:, n:]).sum(-1)
        curvature = curvature + (k * Q_uu_k).sum(-1)
        V = Q[:, :n, :n] + K.mT @ Q_uu @ K + K.mT @ Q_ux + Q_ux.mT @ K
        V = 0.5 * (V + V.mT)
        v = q[:, :n] + product(K.mT, Q_uu_k + q[:, n:]) + product(Q_ux.mT, k)
        positive, lifted, spread = positive & step.positive, lifted | lifts, _spread(Q[:, :n, :n])
        k_reversed.append(k)
        K_reversed.append(K)
    k, K = torch.stack(k_reversed[::-1], dim=1), torch.stack(K_reversed[::-1], dim=1)
    return Policy(k, K, slope, curvature, positive, lifted)


def _units(Q_uu: Tensor, q_u: Tensor, room: Tensor) -> tuple[Tensor, Tensor]:
    """What damping is relative to, the largest element of the diagonal, and what lifts it, (B,) each.

    Where there is no curvature at all, that is what makes a step as long as the bounds are apart; 1 without bounds.
    """
    unit = Q_uu.diagonal(dim1=-2, dim2=-1).abs().amax(-1)
    slope = torch.where(room > 0, q_u.abs() / room, 0.0).amax(-1)
    without = torch.where(slope > 0, slope, 1.0)
    return torch.where(unit > 0, unit, without), torch.where(unit > 0, _LIFT * unit, without)


def _plus(Q_uu: Tensor, added: Tensor) -> Tensor:
    """Q_uu (B, m, m) with `added` (B,) on its diagonal."""
    return Q_uu + added[:, None, None] * torch.eye(Q_uu.shape[-1], dtype=Q_uu.dtype, device=Q_uu.device)


def _spread(matrix: Tensor) -> Tensor:
    """The diagonal (B, n) of Q_xx, of which V is what is left when the later controls are minimised out."""
    return matrix.detach().diagonal(dim1=-2, dim2=-1).abs()


def _rounding(F: Tensor, H: Tensor, spread: Tensor) -> Tensor:
    """What the diagonal of Q_uu may have lost to rounding, (B, m): its terms by the inequality of Cauchy and Schwarz."""
    n = spread.shape[-1]
    size = product(F.detach()[..., n:].square().mT, n * spread)
    return _ROUNDING * (H.detach()[..., n:, n:].diagonal(dim1=-2, dim2=-1).abs() + size)


def _like(flags: Tensor, other: Tensor) -> Tensor:
    return flags.view(-1, *[1] * (other.ndim - 1))


def linear_rollout(F: Tensor, policy: Policy, first: Tensor | None = None, gaps: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The step itself: dx (B, T+1, n) and du (B, T, m), from dx_0 = `first` (B, n), or 0; for `gaps` see `backward_sweep`."""
    dx = [F.new_zeros(F.shape[0], F.shape[2]) if first is None else first]
    du = []
    for t, (F_t, k, K) in enumerate(zip(F.unbind(1), policy.k.unbind(1), policy.K.unbind(1), strict=True)):
        du.append(k + product(K, dx[-1]))
        following = product(F_t, torch.cat((dx[-1], du[-1]), dim=-1))
        dx.append(following if gaps is None else following + gaps[:, t])
    return torch.stack(dx, dim=1), torch.stack(du, dim=1)


def largest_change(F: Tensor, policy: Policy, lower: Tensor, upper: Tensor) -> Tensor:
    """The largest change (B,) of a control in the whole step, along the linearised dynamics, within the step's bounds."""
    dx = F.new_zeros(F.shape[0], F.shape[2])
    largest = torch.zeros_like(policy.slope)
    for F_t, k, K, low, high in zip(*(part.unbind(1) for part in (F, policy.k, policy.K, lower, upper)), strict=True):
        du = torch.clamp(k + product(K, dx), low, high)
        largest = torch.maximum(largest, du.abs().amax(-1))
        dx = product(F_t, torch.cat((dx, du), dim=-1))
    return largest


def costates(F: Tensor, g: Tensor, g_T: Tensor) -> Tensor:
    """lambda_t = g_x + F_x^T lambda_{t+1} for t = 0..T, with lambda_T = g_T, as (B, T+1, n)."""
    n = g_T.shape[-1]
    reversed_costates = [g_T]
    for F_t, g_t in zip(reversed(F.unbind(1)), reversed(g.unbind(1)), strict=True):
        reversed_costates.append(g_t[:, :n] + product(F_t[:, :, :n].mT, reversed_costates[-1]))
    return torch.stack(reversed_costates[::-1], dim=1)


def control_gradient(F: Tensor, g: Tensor, costate: Tensor) -> Tensor:
    """Gradient of the total cost with respect to the controls, g_u + F_u^T lambda_{t+1}, as (B, T, m)."""
    n = costate.shape[-1]
    return g[..., n:] + product(F[..., n:].mT, costate[:, 1:])
