"""Control problems that the tests share: the two published ones, one hard for the box step, networks, and two
with answers on paper.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dilqr_rl import ControlProblem, QuadraticCost
from dilqr_rl.envs import CartPoleDynamics, PendulumDynamics

FLOAT = torch.float64
Gradient = Literal["implicit", "diffmpc", "unroll"]
GRADIENTS: tuple[Gradient, ...] = ("implicit", "diffmpc", "unroll")


@dataclass(frozen=True)
class Case:
    """A problem, and where to start it.

    Attributes:
        name: for the test's id.
        build: horizon -> the problem.
        starts: (count, seed) -> start states (count, n).
        groups: names of its parameters and bounds, by what they mean.
    """

    name: str
    build: Callable[[int], ControlProblem]
    starts: Callable[[int, int], Tensor]
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def uniform(count: int, seed: int, *ranges: tuple[float, float]) -> Tensor:
    """(count, number of ranges), each column uniform in its range."""
    low, high = torch.tensor(ranges, dtype=FLOAT).T
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, len(ranges), generator=generator, dtype=FLOAT)


def normal(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)


def value_of(problem: ControlProblem, name: str) -> Tensor:
    """A parameter or buffer by its qualified name, without its gradient."""
    return {**dict(problem.named_parameters(remove_duplicate=False)), **dict(problem.named_buffers())}[name].detach()


def gradient_of(problem: ControlProblem, name: str) -> Tensor:
    """What has accumulated in a parameter; there must be something, if only zeros."""
    grad = problem.get_parameter(name).grad
    assert grad is not None, name
    return grad


def smallest(**changes: Any) -> ControlProblem:
    """One state, one control, three steps; `changes` are arguments of another kind."""
    arguments: dict[str, Any] = {
        "dynamics": lambda x, u: x + u,
        "stage_cost": lambda x, u: x.square().sum(-1) + u.square().sum(-1),
        "horizon": 3,
        "state_size": 1,
        "control_size": 1,
    }
    return ControlProblem(**arguments | changes)


def carried_out(problem: ControlProblem, x0: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """States (B, T+1, n) and cost (B,) of controls (B, T, m), step by step from the problem's own functions."""
    states, cost = [x0], torch.zeros(x0.shape[:-1], dtype=FLOAT)
    for control in u.unbind(-2):
        cost = cost + problem.stage_cost(states[-1], control)
        states.append(problem.dynamics(states[-1], control))
    if problem.terminal_cost is not None:
        cost = cost + problem.terminal_cost(states[-1])
    return torch.stack(states, dim=-2), cost


# The two published systems, as in EXPERIMENTS.md.


def pendulum(horizon: int = 20) -> ControlProblem:
    cost = QuadraticCost([1.0, 1.0, 0.1, 0.001], [1.0, 0.0, 0.0, 0.0])
    return ControlProblem(PendulumDynamics(), cost, horizon=horizon, state_size=3, control_size=1, u_min=-2.0, u_max=2.0)


def cartpole(horizon: int = 20) -> ControlProblem:
    cost = QuadraticCost([0.1, 0.1, 1.0, 1.0, 0.1, 0.001], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    return ControlProblem(CartPoleDynamics(), cost, horizon=horizon, state_size=5, control_size=1, u_min=-100.0, u_max=100.0)


def pendulum_states(angle: Tensor, rate: Tensor) -> Tensor:
    return torch.stack((angle.cos(), angle.sin(), rate), dim=-1)


def cartpole_states(position: Tensor, speed: Tensor, angle: Tensor, rate: Tensor) -> Tensor:
    return torch.stack((position, speed, angle.cos(), angle.sin(), rate), dim=-1)


def published_pendulum_starts(count: int, seed: int = 0) -> Tensor:
    return pendulum_states(*uniform(count, seed, (-math.pi / 2, math.pi / 2), (-1.0, 1.0)).unbind(-1))


def published_cartpole_starts(count: int, seed: int = 0) -> Tensor:
    return cartpole_states(*uniform(count, seed, (-0.5, 0.5), (-0.5, 0.5), (-math.pi, math.pi), (-1.0, 1.0)).unbind(-1))


def far_pendulum_starts(count: int, seed: int = 0) -> Tensor:
    """The full circle, speeds up to 4."""
    return pendulum_states(*uniform(count, seed, (-math.pi, math.pi), (-4.0, 4.0)).unbind(-1))


def far_cartpole_starts(count: int, seed: int = 0) -> Tensor:
    """The full circle, speeds up to 4."""
    return cartpole_states(*uniform(count, seed, (-0.5, 0.5), (-4.0, 4.0), (-math.pi, math.pi), (-4.0, 4.0)).unbind(-1))


# A planar quadrotor: n = 6, m = 2, a terminal cost, and rotors that can't pull.


class QuadrotorDynamics(nn.Module):
    """State (x, z, angle, x', z', angle'), control (left, right) thrust in N; an Euler step of 0.05 s."""

    positive = ("mass", "inertia")
    mass: nn.Parameter
    inertia: nn.Parameter
    arm: nn.Parameter
    gravity: nn.Parameter

    def __init__(self, mass: float = 0.5, inertia: float = 0.01, arm: float = 0.2, gravity: float = 9.8) -> None:
        super().__init__()
        for name, value in (("mass", mass), ("inertia", inertia), ("arm", arm), ("gravity", gravity)):
            setattr(self, name, nn.Parameter(torch.tensor(value, dtype=FLOAT)))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        rates, angle = x[..., 3:], x[..., 2]
        left, right = u.unbind(-1)
        lift = (left + right) / self.mass
        turn = self.arm * (right - left) / self.inertia
        acceleration = torch.stack((-lift * angle.sin(), lift * angle.cos() - self.gravity, turn), dim=-1)
        return torch.cat((x[..., :3] + 0.05 * rates, rates + 0.05 * acceleration), dim=-1)


class QuadraticTerminalCost(nn.Module):
    """1/2 sum_i weights_i (x_i - goal_i)^2."""

    def __init__(self, weights: list[float], goal: list[float]) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor(weights, dtype=FLOAT))
        self.goal = nn.Parameter(torch.tensor(goal, dtype=FLOAT))

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * (self.weights * (x - self.goal) ** 2).sum(-1)


def quadrotor(horizon: int = 20) -> ControlProblem:
    stage = QuadraticCost([1.0, 1.0, 0.5, 0.1, 0.1, 0.05, 0.02, 0.02], [0.1, 0.2, 0.05, 0.0, 0.0, 0.0, 2.5, 2.4])
    terminal = QuadraticTerminalCost([10.0, 10.0, 5.0, 1.0, 1.0, 0.5], [0.1, 0.2, 0.05, 0.0, 0.0, 0.0])
    bounds = {"u_min": torch.tensor([0.1, 0.2], dtype=FLOAT), "u_max": torch.tensor([4.0, 4.5], dtype=FLOAT)}
    return ControlProblem(QuadrotorDynamics(), stage, terminal, horizon=horizon, state_size=6, control_size=2, **bounds)


def quadrotor_starts(count: int, seed: int = 0) -> Tensor:
    return uniform(count, seed, (-1.0, 1.0), (-1.0, 1.0), (-0.6, 0.6), (-1.0, 1.0), (-1.0, 1.0), (-2.0, 2.0))


# Networks.


class NetworkDynamics(nn.Module):
    """x + 0.2 network(x, u), for n = 3 and m = 2."""

    def __init__(self) -> None:
        super().__init__()
        self.network = seeded_network(5, 16, 3, seed=1)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return x + 0.2 * self.network(torch.cat((x, u), dim=-1))


class NetworkCost(nn.Module):
    """1/2 |network(x, u)|^2 + 1/20 |(x, u)|^2 for n = 3 and m = 2: not convex, but bounded from below."""

    def __init__(self) -> None:
        super().__init__()
        self.network = seeded_network(5, 16, 4, seed=2)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        z = torch.cat((x, u), dim=-1)
        return 0.5 * self.network(z).square().sum(-1) + 0.05 * z.square().sum(-1)


def seeded_network(inputs: int, width: int, outputs: int, seed: int, dtype: torch.dtype = FLOAT) -> nn.Sequential:
    """Two linear layers with a tanh between, always the same for the same seed, whatever the global generator."""
    network = nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, outputs)).to(FLOAT)
    for place, parameter in enumerate(network.parameters()):
        value = normal(*parameter.shape, seed=100 * seed + place) / math.sqrt(parameter.shape[-1])
        parameter.data.copy_(value)
    return network.to(dtype)


def network_dynamics(horizon: int = 8) -> ControlProblem:
    cost = QuadraticCost([1.0, 1.0, 1.0, 0.1, 0.1], [0.5, -0.3, 0.2, 0.0, 0.0])
    return ControlProblem(NetworkDynamics(), cost, horizon=horizon, state_size=3, control_size=2, u_min=-1.0, u_max=1.0)


def network_cost(horizon: int = 8) -> ControlProblem:
    return ControlProblem(
        NetworkDynamics(), NetworkCost(), horizon=horizon, state_size=3, control_size=2, u_min=-1.0, u_max=1.0
    )


def network_starts(count: int, seed: int = 0) -> Tensor:
    return uniform(count, seed, (-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0))


# With answers on paper.


class LinearDynamics(nn.Module):
    """A x + B u."""

    def __init__(self, A: Tensor, B: Tensor) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(A), nn.Parameter(B)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return x @ self.A.mT + u @ self.B.mT


def linear(
    horizon: int = 10, n: int = 4, m: int = 2, seed: int = 0, u_min: float | None = None, u_max: float | None = None
) -> ControlProblem:
    """Stable linear dynamics, weights between 0.5 and 1.5, a goal, a terminal cost: unbounded, the Riccati recursion solves it."""
    A = 0.9 * torch.eye(n, dtype=FLOAT) + 0.2 * normal(n, n, seed=seed)
    dynamics = LinearDynamics(A / torch.linalg.eigvals(A).abs().max().clamp(min=1.0), normal(n, m, seed=seed + 1))
    stage = QuadraticCost(uniform(n + m, seed, (0.5, 1.5)).squeeze(-1), normal(n + m, seed=seed + 2))
    terminal = QuadraticTerminalCost(uniform(n, seed + 1, (0.5, 1.5)).squeeze(-1).tolist(), normal(n, seed=seed + 3).tolist())
    return ControlProblem(dynamics, stage, terminal, horizon=horizon, state_size=n, control_size=m, u_min=u_min, u_max=u_max)


def linear_starts(count: int, seed: int = 0) -> Tensor:
    return normal(count, 4, seed=seed)


class QuarticTerminalCost(nn.Module):
    """theta sum_i x_i^4."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=FLOAT))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta * (x**4).sum(-1)


def closed_example(theta: float) -> ControlProblem:
    """[DiLQR A.4.2]: from x0 = (1, 1) it is to minimise u^2 + theta (u + 1)^4, up to a constant."""
    dynamics = LinearDynamics(torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=FLOAT), torch.tensor([[0.0], [1.0]], dtype=FLOAT))
    return ControlProblem(
        dynamics, lambda x, u: u.square().sum(-1), QuarticTerminalCost(theta), horizon=1, state_size=2, control_size=1
    )


# theta, u*, du*/dtheta
CLOSED_ANSWERS = (
    (0.1, -0.131170, -0.902803),
    (1.0, -0.410245, -0.132900),
    (10.0, -0.676582, -0.00929891),
)


def box_minimum(Q: Tensor, q: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The minimum (B, k) of 1/2 u^T Q u + q^T u in a box, Q positive definite, by trying all 3^k active sets."""
    B, k = q.shape
    least, best = torch.full((B,), torch.inf, dtype=FLOAT), torch.full((B, k), torch.nan, dtype=FLOAT)
    for sides in itertools.product((-1, 0, 1), repeat=k):
        side = torch.tensor(sides)
        free = side == 0
        u = torch.where(side < 0, lower, upper).masked_fill(free, 0.0)
        exists = torch.isfinite(u).all(-1)
        u = torch.where(exists.unsqueeze(-1), u, 0.0)
        if free.any():
            right = -(q + (Q @ u.unsqueeze(-1)).squeeze(-1))[:, free]
            u[:, free] = torch.linalg.solve(Q[:, free][:, :, free], right)
        inside = exists & ((u >= lower) & (u <= upper))[:, free].all(-1)
        value = 0.5 * (u * (Q @ u.unsqueeze(-1)).squeeze(-1)).sum(-1) + (q * u).sum(-1)
        better = inside & (value < least)
        least, best = torch.where(better, value, least), torch.where(better.unsqueeze(-1), u, best)
    return best


_COST = {"weights": ("stage_cost.weights",), "goal": ("stage_cost.goal",), "bounds": ("u_min", "u_max")}
PENDULUM = Case(
    "pendulum",
    pendulum,
    published_pendulum_starts,
    {"physics": tuple(f"dynamics.{name}" for name in ("mass", "length", "gravity", "damping", "wind"))} | _COST,
)
CARTPOLE = Case(
    "cartpole",
    cartpole,
    published_cartpole_starts,
    {"physics": tuple(f"dynamics.{name}" for name in ("cart_mass", "pole_mass", "length", "gravity"))} | _COST,
)
QUADROTOR = Case(
    "quadrotor",
    quadrotor,
    quadrotor_starts,
    {
        "physics": tuple(f"dynamics.{name}" for name in ("mass", "inertia", "arm", "gravity")),
        "terminal": ("terminal_cost.weights", "terminal_cost.goal"),
    }
    | _COST,
)
NETWORK_DYNAMICS = Case(
    "network_dynamics",
    network_dynamics,
    network_starts,
    {"network": ("dynamics.network.0.weight", "dynamics.network.2.bias")} | _COST,
)
NETWORK_COST = Case(
    "network_cost",
    network_cost,
    network_starts,
    {
        "network": ("dynamics.network.2.weight", "stage_cost.network.0.weight", "stage_cost.network.2.bias"),
        "bounds": ("u_min", "u_max"),
    },
)
LINEAR = Case(
    "linear",
    lambda horizon: linear(horizon, u_min=-0.5, u_max=0.4),
    linear_starts,
    {"physics": ("dynamics.A", "dynamics.B"), "terminal": ("terminal_cost.weights", "terminal_cost.goal")} | _COST,
)
CASES = (PENDULUM, CARTPOLE, QUADROTOR, NETWORK_DYNAMICS, NETWORK_COST, LINEAR)
# Every case and every gradient, though not each with each.
CASES_AND_GRADIENTS: list[tuple[Case, Gradient]] = [
    *((case, "implicit") for case in CASES),
    (CARTPOLE, "diffmpc"),
    (QUADROTOR, "diffmpc"),
    (PENDULUM, "unroll"),
    (QUADROTOR, "unroll"),
]
