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
from typing import NamedTuple

import torch
from torch import Tensor

from dilqr_rl.box import box_step, product


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
    """

    k: Tensor
    K: Tensor
    slope: Tensor
    curvature: Tensor
    positive: Tensor

    def select(self, index: Tensor) -> Policy:
        """The policies of some problems of the batch."""
        return Policy(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def merge(self, index: Tensor, other: Policy) -> Policy:
        """This policy, with `other` (K,) in the place of the problems at `index` (K,)."""
        names = self.__dataclass_fields__
        return Policy(*(getattr(self, name).index_put((index,), getattr(other, name)) for name in names))


def backward_sweep(model: Quadratic, lower: Tensor, upper: Tensor, regularisation: Tensor) -> Policy:
    """Solve the linear-quadratic problem backwards in time; `regularisation` (B,) is added to the diagonal of Q_uu."""
    n = model.g_T.shape[-1]
    V, v = model.H_T, model.g_T
    slope = curvature = torch.zeros_like(regularisation)
    positive = torch.ones_like(regularisation, dtype=torch.bool)
    damping = regularisation[:, None, None] * torch.eye(lower.shape[-1], dtype=V.dtype, device=V.device)
    k_reversed, K_reversed = [], []
    steps = zip(*(part.unbind(1) for part in (model.F, model.H, model.g, lower, upper)), strict=True)
    for F, H, g, low, high in reversed(list(steps)):
        Q = H + F.mT @ V @ F
        q = g + product(F.mT, v)
        Q_uu, Q_ux = Q[:, n:, n:], Q[:, n:, :n]
        step = box_step(Q_uu + damping, q[:, n:], Q_ux, low, high)
        k, K = step.k, step.K
        Q_uu_k = product(Q_uu, k)
        slope = slope + (k * q[:, n:]).sum(-1)
        curvature = curvature + (k * Q_uu_k).sum(-1)
        V = Q[:, :n, :n] + K.mT @ Q_uu @ K + K.mT @ Q_ux + Q_ux.mT @ K
        V = 0.5 * (V + V.mT)
        v = q[:, :n] + product(K.mT, Q_uu_k + q[:, n:]) + product(Q_ux.mT, k)
        positive = positive & step.positive
        k_reversed.append(k)
        K_reversed.append(K)
    k, K = torch.stack(k_reversed[::-1], dim=1), torch.stack(K_reversed[::-1], dim=1)
    return Policy(k, K, slope, curvature, positive)


def linear_rollout(F: Tensor, policy: Policy) -> tuple[Tensor, Tensor]:
    """The step itself, from dx_0 = 0: dx (B, T+1, n) and du (B, T, m)."""
    dx = [F.new_zeros(F.shape[0], F.shape[2])]
    du = []
    for F_t, k, K in zip(F.unbind(1), policy.k.unbind(1), policy.K.unbind(1), strict=True):
        du.append(k + product(K, dx[-1]))
        dx.append(product(F_t, torch.cat((dx[-1], du[-1]), dim=-1)))
    return torch.stack(dx, dim=1), torch.stack(du, dim=1)


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
