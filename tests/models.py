"""Models such as users write them, each in a manner of its own: robots, vehicles, networks, a full quadratic cost, closures.

The manners are on purpose: unbind, slices, indices, stack, cat, in-place writes, matmul, einsum, F.linear, buffers, settings.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from problems import FLOAT, Case, normal, pendulum_states, uniform
from torch import Tensor, nn

from dilqr_rl import ControlProblem, QuadraticCost
from dilqr_rl.envs import PendulumDynamics


def parameter(*values: float) -> nn.Parameter:
    """A number, or a vector of several."""
    return nn.Parameter(torch.tensor(values[0] if len(values) == 1 else values, dtype=FLOAT))


# A double pendulum with a torque in each joint.


class DoublePendulum(nn.Module):
    """State (cos a, sin a, cos b, sin b, a', b') of two point masses on rods, angles from upright."""

    positive = ("masses", "lengths")

    def __init__(self, time_step: float = 0.05) -> None:
        super().__init__()
        self.masses = parameter(1.0, 0.7)
        self.lengths = parameter(0.8, 0.6)
        self.friction = parameter(0.1)
        self.register_buffer("gravity", torch.tensor(9.81))  # float32: the planner converts it
        self.time_step = time_step

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        cos_a, sin_a, cos_b, sin_b, rate_a, rate_b = x.unbind(-1)
        (m1, m2), (l1, l2), g = self.masses, self.lengths, self.gravity
        cos_ab, sin_ab = cos_a * cos_b + sin_a * sin_b, sin_a * cos_b - cos_a * sin_b
        a11, a12, a22 = (m1 + m2) * l1**2, m2 * l1 * l2 * cos_ab, m2 * l2**2
        shoulder, elbow = u[..., 0], u[..., 1]
        right_a = shoulder - elbow - m2 * l1 * l2 * sin_ab * rate_b**2 + (m1 + m2) * g * l1 * sin_a - self.friction * rate_a
        right_b = elbow + m2 * l1 * l2 * sin_ab * rate_a**2 + m2 * g * l2 * sin_b - self.friction * rate_b
        determinant = a11 * a22 - a12.square()
        rate_a = rate_a + self.time_step * (a22 * right_a - a12 * right_b) / determinant
        rate_b = rate_b + self.time_step * (a11 * right_b - a12 * right_a) / determinant
        turned = [*self.turn(cos_a, sin_a, rate_a), *self.turn(cos_b, sin_b, rate_b)]
        return torch.stack([*turned, rate_a, rate_b], dim=-1)

    def turn(self, cos: Tensor, sin: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
        c, s = torch.cos(self.time_step * rate), torch.sin(self.time_step * rate)
        return cos * c - sin * s, sin * c + cos * s


def double_pendulum(horizon: int = 12) -> ControlProblem:
    cost = QuadraticCost([5.0, 1.0, 5.0, 1.0, 0.1, 0.1, 0.01, 0.02], [1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    return ControlProblem(DoublePendulum(), cost, horizon=horizon, state_size=6, control_size=2, u_min=-8.0, u_max=8.0)


def double_pendulum_starts(count: int, seed: int = 0) -> Tensor:
    a, b, *rates = uniform(count, seed, (-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0)).unbind(-1)
    return torch.stack((a.cos(), a.sin(), b.cos(), b.sin(), *rates), dim=-1)


# A quadrotor in space.


class Quadrotor(nn.Module):
    """State (position 3, quaternion 4, velocity 3, rates in the body's frame 3), control four thrusts in N."""

    positive = ("mass", "inertia")
    mixer: Tensor
    down: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.mass, self.inertia = parameter(1.0), parameter(0.02, 0.02, 0.04)
        self.drag = parameter(0.1)
        self.register_buffer(
            "mixer", torch.tensor([[0.2, -0.2, -0.2, 0.2], [-0.2, -0.2, 0.2, 0.2], [0.02, -0.02, 0.02, -0.02]])
        )
        self.register_buffer("down", torch.tensor([0.0, 0.0, -9.81], dtype=FLOAT))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        h = 0.05
        position, quaternion, velocity, rates = torch.split(x, [3, 4, 3, 3], dim=-1)
        quaternion = quaternion / quaternion.norm(dim=-1, keepdim=True)
        push = torch.zeros_like(velocity)
        push[..., 2] = u.sum(dim=-1) / self.mass
        acceleration = (rotation(quaternion) @ push.unsqueeze(-1)).squeeze(-1) + self.down - self.drag * velocity
        torque = u @ self.mixer.T - torch.linalg.cross(rates, self.inertia * rates)
        rates = rates + h * torque / self.inertia
        turn = torch.cat((torch.zeros_like(rates[..., :1]), rates), dim=-1)
        quaternion = quaternion + 0.5 * h * hamilton(quaternion, turn)
        quaternion = quaternion / torch.sqrt((quaternion * quaternion).sum(-1, keepdim=True))
        velocity = velocity + h * acceleration
        return torch.cat([position + h * velocity, quaternion, velocity, rates], -1)


def rotation(quaternion: Tensor) -> Tensor:
    w, x, y, z = (quaternion[..., i] for i in range(4))
    rows = (
        torch.stack((1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)), dim=-1),
        torch.stack((2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)), dim=-1),
        torch.stack((2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)), dim=-1),
    )
    return torch.stack(rows, dim=-2)


def hamilton(p: Tensor, q: Tensor) -> Tensor:
    real = p[..., :1] * q[..., :1] - (p[..., 1:] * q[..., 1:]).sum(-1, keepdim=True)
    return torch.cat(
        (real, p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:] + torch.cross(p[..., 1:], q[..., 1:], dim=-1)), -1
    )


class HoverCost(nn.Module):
    """Distance to a goal, attitude by 1 - w^2, and rates."""

    def __init__(self) -> None:
        super().__init__()
        self.goal, self.tilt = parameter(0.5, 0.0, 0.5), parameter(2.0)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        away = torch.linalg.vecdot(x[..., 0:3] - self.goal, x[..., 0:3] - self.goal, dim=-1)
        rest = self.tilt * (1 - x[..., 3].pow(2)) + 0.1 * torch.sum(x[..., 7:] ** 2, dim=-1)
        return away + rest + 0.05 * torch.pow(u - 2.4525, 2).sum(-1)


def quadrotor_3d(horizon: int = 10) -> ControlProblem:
    return ControlProblem(Quadrotor(), HoverCost(), horizon=horizon, state_size=13, control_size=4, u_min=1.5, u_max=3.5)


def quadrotor_3d_starts(count: int, seed: int = 0) -> Tensor:
    random = uniform(count, seed, *[(-0.5, 0.5)] * 13)
    attitude = random[:, 3:7] * 0.4 + torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=FLOAT)
    return torch.cat((random[:, :3], attitude / attitude.norm(dim=1, keepdim=True), random[:, 7:]), dim=1)


# A rocket that lands.


class Rocket(nn.Module):
    """State (height, x', z', angle, angle', mass), control (thrust in N, gimbal in rad); written into a tensor of zeros."""

    positive = ("exhaust", "length")

    def __init__(self, time_step: float = 0.1) -> None:
        super().__init__()
        self.exhaust, self.length, self.gravity = parameter(60.0), parameter(2.0), parameter(9.8)
        self.dt = time_step

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        angle, mass = x[..., 3], x[..., -1]
        thrust, gimbal = u[..., 0], u[..., 1]
        slope = torch.zeros_like(x)
        slope[..., 0] = x[..., 2]
        slope[..., 1] = -thrust * torch.sin(angle + gimbal) / mass
        slope[..., 2] = thrust * torch.cos(angle + gimbal) / mass
        slope[..., 2] -= self.gravity
        slope[..., 3:5] = torch.stack((x[..., 4], -6.0 * thrust * gimbal.sin() / (mass * self.length)), -1)
        slope[..., 5] = torch.neg(thrust).div(self.exhaust)
        return torch.add(x, slope, alpha=self.dt)


class LandingCost(nn.Module):
    """Height, speeds and tilt, fuel; below the ground it gets dear."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = parameter(0.2, 0.1, 0.1, 2.0, 0.5)
        self.ground = parameter(5.0)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        below = F.relu(-x[..., 0])
        thrust, gimbal = u.split(1, dim=-1)
        return x[..., :5].square() @ self.weights + self.ground * below**3 + (0.01 * thrust.abs() + 2 * gimbal**2).squeeze(-1)


def rocket(horizon: int = 12) -> ControlProblem:
    bounds = {"u_min": torch.tensor([2.0, -0.2], dtype=FLOAT), "u_max": torch.tensor([25.0, 0.2], dtype=FLOAT)}
    parts = Rocket(), LandingCost(), lambda x: 5 * x[..., 1:5].pow(2).sum(-1)
    return ControlProblem(*parts, horizon=horizon, state_size=6, control_size=2, **bounds)


def rocket_starts(count: int, seed: int = 0) -> Tensor:
    return uniform(count, seed, (0.2, 2.0), (-0.5, 0.5), (-2.0, 0.5), (-0.2, 0.2), (-0.3, 0.3), (1.2, 1.8))


# A car: tyres when it rolls, geometry when it crawls.


class Bicycle(nn.Module):
    """State (x, y, yaw, forward speed, sideways speed, yaw rate), control (acceleration, steering angle)."""

    def __init__(self) -> None:
        super().__init__()
        self.axles = nn.ParameterDict({"front": parameter(1.2), "rear": parameter(1.4)})
        self.grip, self.drag = parameter(15.0), parameter(0.02)
        self.inertia = 1.7

    def forward(self, state: Tensor, control: Tensor) -> Tensor:
        x, y, yaw, vx, vy, r = torch.unbind(state, dim=-1)
        acceleration, steer = control[..., 0], control[..., 1]
        front, rear = self.axles["front"], self.axles["rear"]
        base = front + rear
        safe = torch.where(vx.abs() > 0.5, vx, torch.full_like(vx, 0.5))
        slip_front = torch.atan2(vy + front * r, safe) - steer
        slip_rear = torch.arctan((vy - rear * r) / safe)
        sideways_front, sideways_rear = -self.grip * slip_front.tanh(), -self.grip * slip_rear.tanh()
        turning = (front * sideways_front - rear * sideways_rear) / self.inertia
        rolling = torch.stack((vy + 0.05 * (sideways_front + sideways_rear - vx * r), r + 0.05 * turning), -1)
        beta = torch.atan2(rear * torch.tan(steer), base)
        crawling = torch.stack((vx * beta.sin(), vx * steer.tan() / base), -1)
        share = torch.clamp((vx - 1.0) / 2.0, min=0.0, max=1.0)[..., None]
        resistance = torch.where(vx >= 0, vx**2, -(vx**2)) * self.drag
        speed = vx + 0.05 * (acceleration - resistance)
        place = torch.stack(
            (x + 0.05 * (vx * yaw.cos() - vy * yaw.sin()), y + 0.05 * (vx * yaw.sin() + vy * yaw.cos())), dim=-1
        )
        turned = torch.stack([yaw + 0.05 * r, speed], dim=-1)
        return torch.cat([place, turned, share * rolling + (1 - share) * crawling], dim=-1)


class LaneCost(nn.Module):
    """Distance to a lane at an angle, heading, speed; steering is dear."""

    def __init__(self) -> None:
        super().__init__()
        self.lane, self.speed = parameter(0.3), parameter(5.0)
        self.heading = math.atan(0.3)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        off = (x[..., 1] - self.lane * x[..., 0]) / torch.sqrt(1 + self.lane**2)
        heading = 1.0 - torch.cos(x[..., 2] - self.heading)
        effort = torch.maximum(u[..., 0], 0.5 * u[..., 0]).square() * 0.02
        return torch.log1p(off**2) + 5 * heading + 0.1 * (x[..., 3] - self.speed) ** 2 + effort + 2.0 * u[..., 1] ** 2


def bicycle(horizon: int = 12) -> ControlProblem:
    bounds = {"u_min": torch.tensor([-3.0, -0.3], dtype=FLOAT), "u_max": torch.tensor([2.0, 0.3], dtype=FLOAT)}
    return ControlProblem(Bicycle(), LaneCost(), horizon=horizon, state_size=6, control_size=2, **bounds)


def bicycle_starts(count: int, seed: int = 0) -> Tensor:
    return uniform(count, seed, (-1.0, 1.0), (-1.0, 1.0), (-0.3, 0.8), (0.8, 6.0), (-0.2, 0.2), (-0.2, 0.2))


# A pendulum whose physics a network of two hidden layers corrects.


class Corrected(nn.Module):
    """PendulumDynamics, plus a share of a network of (cos, sin, rate, torque)."""

    def __init__(self, *activations: Callable[[Tensor], Tensor], share: float, width: int = 64) -> None:
        super().__init__()
        self.physics = PendulumDynamics(mass=0.8)
        self.layers = nn.ModuleList(
            nn.Linear(size, next_size, dtype=FLOAT) for size, next_size in pairwise((4, width, width, 3))
        )
        self.activations, self.share = activations, share
        for place, weight in enumerate(self.layers.parameters()):
            weight.data.copy_(normal(*weight.shape, seed=300 + place) / math.sqrt(weight.shape[-1]))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        hidden = torch.cat((x, u), dim=-1)
        for layer, activation in zip(self.layers, self.activations, strict=False):
            hidden = activation(layer(hidden))
        last = self.layers[-1]
        return self.physics(x, u) + self.share * F.linear(hidden, last.weight, last.bias)


def corrected(*activations: Callable[[Tensor], Tensor], share: float) -> Callable[[int], ControlProblem]:
    def build(horizon: int = 10) -> ControlProblem:
        cost = QuadraticCost([1.0, 1.0, 0.1, 0.001], [1.0, 0.0, 0.0, 0.0])
        dynamics = Corrected(*activations, share=share)
        return ControlProblem(dynamics, cost, horizon=horizon, state_size=3, control_size=1, u_min=-2.0, u_max=2.0)

    return build


def corrected_starts(count: int, seed: int = 0) -> Tensor:
    return pendulum_states(*uniform(count, seed, (-1.2, 1.2), (-1.0, 1.0)).unbind(-1))


# Full matrices, and many of them.


class FullCost(nn.Module):
    """1/2 z^T Q z + q^T z over z = (x, u), with Q not symmetric."""

    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        root = normal(size, size, seed=seed) / math.sqrt(size)
        skew = 0.1 * normal(size, size, seed=seed + 1)
        self.Q = nn.Parameter(root @ root.mT + 0.1 * torch.eye(size, dtype=FLOAT) + skew - skew.mT)
        self.q = nn.Parameter(0.3 * normal(size, seed=seed + 2))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        z = torch.cat((x, u), dim=-1)
        return 0.5 * torch.einsum("...i,ij,...j->...", z, self.Q, z) + z @ self.q


class FullTerminalCost(nn.Module):
    def __init__(self, size: int, seed: int) -> None:
        super().__init__()
        self.root = nn.Parameter(normal(size, size, seed=seed) / math.sqrt(size))

    def forward(self, x: Tensor) -> Tensor:
        return ((x @ self.root) ** 2).sum(-1)


class FullDynamics(nn.Module):
    """A x + B u + c, the last as a layer's bias."""

    def __init__(self, n: int, m: int, seed: int) -> None:
        super().__init__()
        self.A = nn.Parameter(0.9 * torch.eye(n, dtype=FLOAT) + 0.3 * normal(n, n, seed=seed) / math.sqrt(n))
        self.B = nn.Parameter(0.5 * normal(n, m, seed=seed + 1))
        self.c = nn.Parameter(0.1 * normal(n, seed=seed + 2))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return x @ self.A.mT + F.linear(u, self.B, bias=self.c)


def full_quadratic(horizon: int = 10, n: int = 13, m: int = 4) -> ControlProblem:
    parts = FullDynamics(n, m, 400), FullCost(n + m, 410), FullTerminalCost(n, 420)
    return ControlProblem(*parts, horizon=horizon, state_size=n, control_size=m, u_min=-0.5, u_max=0.7)


# Plain functions over tensors and numbers of their own.


def obstacles(horizon: int = 12) -> ControlProblem:
    h, reach = 0.2, 0.5
    A = torch.eye(4, dtype=FLOAT) + h * torch.diag(torch.ones(2, dtype=FLOAT), diagonal=2)
    B = torch.cat((torch.zeros(2, 2), h * torch.eye(2))).to(FLOAT)
    centres = torch.tensor([[0.8, 0.6], [1.5, 1.6], [0.4, 1.5]], dtype=FLOAT)
    goal = torch.tensor([2.0, 2.0, 0.0, 0.0], dtype=FLOAT)

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        speed = torch.linalg.norm(x[..., 2:] + 0.01, dim=-1, keepdim=True)
        pushed = torch.matmul(A, x.unsqueeze(-1)).squeeze(-1) + (B * u[..., None, :]).sum(-1)
        return pushed - 0.05 * torch.cat((torch.zeros_like(x[..., :2]), speed * x[..., 2:]), dim=-1)

    def stage_cost(x: Tensor, u: Tensor) -> Tensor:
        gaps = torch.linalg.vector_norm(x[..., None, :2] - centres, dim=-1)
        return terminal_cost(x) + 3.0 * torch.exp(-((gaps / reach) ** 2)).sum(-1) + 0.1 * (u * u).sum(-1)

    def terminal_cost(x: Tensor) -> Tensor:
        return (((x - goal) ** 2).sum(dim=-1) + 0.01).sqrt()

    parts = dynamics, stage_cost, terminal_cost
    return ControlProblem(*parts, horizon=horizon, state_size=4, control_size=2, u_min=-1.0, u_max=1.0)


def case(name: str, build: Callable[[int], ControlProblem], starts: Callable[[int, int], Tensor], **names: str) -> Case:
    """With the names of its tensors by role, separated by spaces."""
    groups = {role: tuple(f"{role}.{part}" for part in parts.split()) for role, parts in names.items()}
    return Case(name, build, starts, {**groups, "bounds": ("u_min", "u_max")})


WEIGHTS = "weights goal"
DOUBLE_PENDULUM = case(
    "double_pendulum",
    double_pendulum,
    double_pendulum_starts,
    dynamics="masses lengths friction gravity",
    stage_cost=WEIGHTS,
)
QUADROTOR_3D = case(
    "quadrotor_3d", quadrotor_3d, quadrotor_3d_starts, dynamics="mass inertia drag mixer down", stage_cost="goal tilt"
)
ROCKET = case("rocket", rocket, rocket_starts, dynamics="exhaust length gravity", stage_cost="weights ground")
BICYCLE = case("bicycle", bicycle, bicycle_starts, dynamics="axles.front axles.rear grip drag", stage_cost="lane speed")
LAYERS = "physics.mass physics.length physics.gravity layers.0.bias layers.2.bias"
CORRECTED_TANH, CORRECTED_SMOOTH, CORRECTED_KINKED = (
    case(f"corrected_{name}", corrected(*activations, share=share), corrected_starts, dynamics=LAYERS, stage_cost=WEIGHTS)
    for name, activations, share in (
        ("tanh", (torch.tanh, nn.Tanh()), 0.1),
        ("smooth", (nn.SiLU(), F.gelu), 0.1),
        ("kinked", (nn.Softplus(), torch.relu), 0.01),  # small, since minima are drawn to kinks, and can't be verified there
    )
)
FULL_QUADRATIC = case(
    "full_quadratic", full_quadratic, lambda count, seed: normal(count, 13, seed=seed), dynamics="c", stage_cost="q"
)
OBSTACLES = case("obstacles", obstacles, lambda count, seed: uniform(count, seed, *[(-0.5, 0.5)] * 4))
CORRECTED = (CORRECTED_TANH, CORRECTED_SMOOTH, CORRECTED_KINKED)
MODELS = (DOUBLE_PENDULUM, QUADROTOR_3D, ROCKET, BICYCLE, *CORRECTED, FULL_QUADRATIC, OBSTACLES)
