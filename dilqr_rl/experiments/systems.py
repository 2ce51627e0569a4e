"""The systems of the published experiments: their problems, start states, true physics, and what learners start from.

Sources: Amos et al. 2018, section 5; Wang et al. 2025, section 5. The pendulums have n = 3, the cart-pole n = 5, all m = 1. The
cost is summed over T states and T controls, without a terminal cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dilqr_rl import ControlProblem, QuadraticCost
from dilqr_rl.agents import LinearDynamics
from dilqr_rl.envs import CartPoleDynamics, PendulumDynamics, PublishedPendulumDynamics, SystemDynamics

__all__ = [
    "SYSTEMS",
    "QuarticTerminalCost",
    "System",
    "closed_problem",
    "linear_problem",
    "linear_starts",
    "problem",
    "starts",
]

Floats = NDArray[np.float64]
Ranges = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class System:
    """A published system: minimise the sum of 1/2 sum_i weights_i (tau_i - goal_i)^2 over tau = (x, u), |u| <= bound.

    Attributes:
        dynamics: its class; the defaults are the true physics.
        physics: names of what is learnt of the true physics.
        learner: physics that the published learners start from.
        weights, goal: (n+1,), of the true cost.
        bound: N m, N.
        ranges: of the start states' coordinates, uniform: (angle, rate), or (position, speed, angle, rate); m, m/s, rad, rad/s.
    """

    dynamics: type[SystemDynamics]
    physics: tuple[str, ...]
    learner: Mapping[str, float]
    weights: tuple[float, ...]
    goal: tuple[float, ...]
    bound: float
    ranges: Ranges

    @property
    def truth(self) -> dict[str, float]:
        """The true physics that are learnt."""
        true = self.dynamics.from_physics().physics
        return {name: true[name] for name in self.physics}


_PENDULUM = System(
    dynamics=PendulumDynamics,
    physics=("gravity", "mass", "length"),
    learner={"gravity": 15.0, "mass": 3.0, "length": 0.5},
    weights=(1.0, 1.0, 0.1, 0.001),
    goal=(1.0, 0.0, 0.0, 0.0),
    bound=2.0,
    ranges=((-math.pi / 2, math.pi / 2), (-1.0, 1.0)),
)
_CARTPOLE = System(
    dynamics=CartPoleDynamics,
    physics=("gravity", "cart_mass", "pole_mass", "length"),
    learner={"gravity": 9.8, "cart_mass": 3.0, "pole_mass": 0.1, "length": 1.0},
    weights=(0.1, 0.1, 1.0, 1.0, 0.1, 0.001),
    goal=(0.0, 0.0, 1.0, 0.0, 0.0, 0.0),
    bound=100.0,
    ranges=((-0.5, 0.5), (-0.5, 0.5), (-math.pi, math.pi), (-1.0, 1.0)),
)
SYSTEMS = {
    "pendulum": _PENDULUM,
    "pendulum-upright": replace(_PENDULUM, ranges=((-0.1, 0.1), (-0.1, 0.1))),
    # The expert of section 5.4; its learner's physics are drawn anew for each seed.
    "pendulum-complex": replace(_PENDULUM, dynamics=PublishedPendulumDynamics, learner={}),
    "cartpole": _CARTPOLE,
    "cartpole-upright": replace(_CARTPOLE, ranges=((-0.5, 0.5), (-0.5, 0.5), (-0.1, 0.1), (-0.1, 0.1))),
}


def problem(system: str, horizon: int, physics: Mapping[str, float] | None = None) -> ControlProblem:
    """The control problem of a system.

    Args:
        system: one of SYSTEMS.
        horizon: T.
        physics: those that differ from the true ones, by name.

    Raises:
        ValueError: an unknown system or name, or an impossible value.
    """
    chosen = _find(system)
    return ControlProblem(
        chosen.dynamics.from_physics(physics),
        QuadraticCost(chosen.weights, chosen.goal),
        horizon=horizon,
        state_size=chosen.dynamics.state_size,
        control_size=1,
        u_min=-chosen.bound,
        u_max=chosen.bound,
    )


def starts(system: str, count: int, seed: int) -> Tensor:
    """Start states (count, n), float64, always the same for the same seed.

    Raises:
        ValueError: an unknown system.
    """
    low, high = np.array(_find(system).ranges).T
    coordinates = np.random.default_rng(seed).uniform(low, high, (count, len(low)))
    *rest, angle, rate = coordinates.T
    return torch.from_numpy(np.stack((*rest, np.cos(angle), np.sin(angle), rate), axis=1))


def linear_problem(horizon: int, seed: int, bound: float | None = None) -> ControlProblem:
    """The published LQR, n = m = 3: A = I + 0.2 N(0, 1), B ~ N(0, 1), cost 1/2 |tau|^2 + p . tau with p ~ N(0, 1).

    Such a cost is that of the goal -p with all weights 1, up to a constant.

    Args:
        horizon: T.
        seed: of A, B and p.
        bound: of the controls, none by default.
    """
    draws = np.random.default_rng(seed)
    A, B, p = np.eye(3) + 0.2 * draws.standard_normal((3, 3)), draws.standard_normal((3, 3)), draws.standard_normal(6)
    dynamics = LinearDynamics(torch.from_numpy(A), torch.from_numpy(B))
    cost = QuadraticCost(torch.ones(6, dtype=torch.float64), torch.from_numpy(-p))
    low, high = (None, None) if bound is None else (-bound, bound)
    return ControlProblem(dynamics, cost, horizon=horizon, state_size=3, control_size=3, u_min=low, u_max=high)


def linear_starts(count: int, seed: int) -> Tensor:
    """Start states (count, 3) of N(0, 1)."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 3)))


class QuarticTerminalCost(nn.Module):
    """theta sum_i x_i^4, with theta learnable."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """The cost (...,) of the last state x (..., n)."""
        return self.theta * (x**4).sum(-1)


def closed_problem(theta: float) -> ControlProblem:
    """[DiLQR] A.4.2: from x0 = (1, 1) it is to minimise u^2 + theta (u + 1)^4, up to a constant."""
    double_integrator = ([[1.0, 1.0], [0.0, 1.0]], [[0.0], [1.0]])
    dynamics = LinearDynamics(*(torch.tensor(matrix, dtype=torch.float64) for matrix in double_integrator))
    cost = QuadraticCost([0.0, 0.0, 2.0], [0.0, 0.0, 0.0])
    return ControlProblem(dynamics, cost, QuarticTerminalCost(theta), horizon=1, state_size=2, control_size=1)


def _find(system: str) -> System:
    if system not in SYSTEMS:
        raise ValueError(f"system: expected one of {', '.join(SYSTEMS)}, got {system!r}.")
    return SYSTEMS[system]
