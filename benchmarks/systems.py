"""The two published systems as numbers and formulas, once for all solvers.

The formulas take the functions sin, cos and atan2 from whatever module `ops` is (math, torch, casadi), so that every
solver's model is this one. Nothing here needs more than the standard library.

Notation: h is the time step, theta = 0 upright; see dilqr_rl.envs for the equations in words.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

h = 0.05
Formula = Callable[[Any, Sequence[Any], Any, Sequence[Any]], Any]


@dataclass(frozen=True)
class System:
    """Minimise the sum of 1/2 sum_i weights_i (tau_i - goal_i)^2 over T states and controls tau = (x, u), |u| <= bound.

    Attributes:
        state_size: n; the control is one number.
        physics: names and values of the parameters, in the order of `p` below.
        weights, goal: of the n + 1 components of tau.
        bound: of the control.
        step: (ops, x, u, p) -> the next state, n expressions.
        jacobian: (ops, x, u, p) -> n rows of n + 1 expressions or plain zeros and ones, d step / d (x, u).
        start: ranges of (position and speed, for the cart-pole; angle, rate).
    """

    name: str
    state_size: int
    physics: dict[str, float]
    weights: tuple[float, ...]
    goal: tuple[float, ...]
    bound: float
    step: Formula
    jacobian: Formula
    start: tuple[tuple[float, float], ...]

    def starts(self, count: int) -> list[list[float]]:
        """The first `count` start states, always the same ones."""
        generator = random.Random(_SEED)
        drawn = ([generator.uniform(*limits) for limits in self.start] for _ in range(count))
        return [[*rest, math.cos(angle), math.sin(angle), rate] for *rest, angle, rate in drawn]

    def targets(self, count: int, horizon: int) -> list[list[float]]:
        """What the loss compares the controls with: (count, horizon) numbers of a quarter of the bound's size."""
        generator = random.Random(_SEED + 1)
        return [[generator.uniform(-0.25, 0.25) * self.bound for _ in range(horizon)] for _ in range(count)]


_SEED = 10  # of first starts whose controls are not all at their bounds, so that the batch of one has a gradient too


def _pendulum_step(ops: Any, x: Sequence[Any], u: Any, p: Sequence[Any]) -> Any:
    cos, sin, rate = x
    gravity, mass, length = p
    rate = rate + h * (1.5 * gravity / length * sin + 3.0 * u / (mass * length**2))
    angle = ops.atan2(sin, cos) + h * rate
    return ops.cos(angle), ops.sin(angle), rate


def _pendulum_jacobian(ops: Any, x: Sequence[Any], u: Any, p: Sequence[Any]) -> Any:
    cos, sin, rate = x
    gravity, mass, length = p
    a, b = 1.5 * h * gravity / length, 3.0 * h / (mass * length**2)
    angle = ops.atan2(sin, cos) + h * (rate + a * sin + b * u)
    radius = cos**2 + sin**2
    dangle = (-sin / radius, cos / radius + h * a, h, h * b)
    next_cos, next_sin = ops.cos(angle), ops.sin(angle)
    return [-next_sin * d for d in dangle], [next_cos * d for d in dangle], [0.0, a, 1.0, b]


def _cartpole_step(ops: Any, x: Sequence[Any], u: Any, p: Sequence[Any]) -> Any:
    position, speed, cos, sin, rate = x
    gravity, cart_mass, pole_mass, length = p
    total, pole = cart_mass + pole_mass, pole_mass * length
    push = (u + pole * rate**2 * sin) / total
    turn = (gravity * sin - push * cos) / (length * (4.0 / 3.0 - pole_mass * cos**2 / total))
    angle = ops.atan2(sin, cos) + h * rate
    return position + h * speed, speed + h * (push - pole * turn * cos / total), ops.cos(angle), ops.sin(angle), rate + h * turn


def _cartpole_jacobian(ops: Any, x: Sequence[Any], u: Any, p: Sequence[Any]) -> Any:
    _, _, cos, sin, rate = x
    gravity, cart_mass, pole_mass, length = p
    total, pole = cart_mass + pole_mass, pole_mass * length
    push = (u + pole * rate**2 * sin) / total
    push_sin, push_rate, push_u = pole * rate**2 / total, 2.0 * pole * rate * sin / total, 1.0 / total
    inertia = length * (4.0 / 3.0 - pole_mass * cos**2 / total)
    turn = (gravity * sin - push * cos) / inertia
    turn_cos = (-push + turn * 2.0 * length * pole_mass * cos / total) / inertia
    turn_sin, turn_rate, turn_u = (gravity - push_sin * cos) / inertia, -push_rate * cos / inertia, -push_u * cos / inertia
    arm = pole / total
    pull = (
        -arm * (turn_cos * cos + turn),
        push_sin - arm * turn_sin * cos,
        push_rate - arm * turn_rate * cos,
        push_u - arm * turn_u * cos,
    )
    angle, radius = ops.atan2(sin, cos) + h * rate, cos**2 + sin**2
    dangle = (-sin / radius, cos / radius, h, 0.0)
    next_cos, next_sin = ops.cos(angle), ops.sin(angle)
    return (
        [1.0, h, 0.0, 0.0, 0.0, 0.0],
        [0.0, 1.0, *(h * d for d in pull)],
        [0.0, 0.0, *(-next_sin * d for d in dangle)],
        [0.0, 0.0, *(next_cos * d for d in dangle)],
        [0.0, 0.0, h * turn_cos, h * turn_sin, 1.0 + h * turn_rate, h * turn_u],
    )


SYSTEMS = {
    "pendulum": System(
        name="pendulum",
        state_size=3,
        physics={"gravity": 10.0, "mass": 1.0, "length": 1.0},
        weights=(1.0, 1.0, 0.1, 0.001),
        goal=(1.0, 0.0, 0.0, 0.0),
        bound=2.0,
        step=_pendulum_step,
        jacobian=_pendulum_jacobian,
        start=((-math.pi / 2, math.pi / 2), (-1.0, 1.0)),
    ),
    "cart-pole": System(
        name="cart-pole",
        state_size=5,
        physics={"gravity": 9.8, "cart_mass": 1.0, "pole_mass": 0.1, "length": 0.5},
        weights=(0.1, 0.1, 1.0, 1.0, 0.1, 0.001),
        goal=(0.0, 0.0, 1.0, 0.0, 0.0, 0.0),
        bound=100.0,
        step=_cartpole_step,
        jacobian=_cartpole_jacobian,
        start=((-0.5, 0.5), (-0.5, 0.5), (-math.pi, math.pi), (-1.0, 1.0)),
    ),
}
