"""A quadrotor that flies in a vertical plane: its equations and its environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dilqr_rl.envs.base import SystemEnv
from dilqr_rl.envs.checks import check_number
from dilqr_rl.envs.drawing import Drawing
from dilqr_rl.envs.episodes import Floats
from dilqr_rl.envs.physics import SystemDynamics
from dilqr_rl.envs.presets import Preset
from dilqr_rl.envs.rendering import draw_quadrotor
from dilqr_rl.envs.rewards import SurvivalReward
from dilqr_rl.envs.vector import SystemVectorEnv

__all__ = ["QuadrotorDynamics", "QuadrotorEnv"]

_TIME_STEP = 0.05


class QuadrotorDynamics(SystemDynamics):
    """A rigid body between two rotors; state (x, x', y, y', cos θ, sin θ, θ') with θ = 0 level, controls two throttles.

    y grows upwards; the body leans to the side of positive x where sin θ > 0. At throttles u_l and u_r in [-1, 1] the rotors
    push with F_i = ½ max_thrust (1 + u_i) along the body's axis, so that with the defaults zero throttles hover:
        θ'' = arm (F_l - F_r) / inertia,
        x'' = ((F_l + F_r) sin θ - drag x') / m,
        y'' = ((F_l + F_r) cos θ - drag y') / m - g.
    A step turns the body exactly, since the torque is constant, and moves it by the midpoint rule: with the angle halfway
    through the step and the mean of the speeds before and after it. Free fall without drag is exact, and however strong the
    drag, speeds never grow by it.

    Args:
        mass: kg, above 0.
        inertia: of the body about its middle, kg m², above 0.
        arm: from the middle to each rotor, m, above 0.
        gravity: m/s².
        max_thrust: of each rotor, N, above 0.
        drag: of the air, N s/m, at least 0.
        time_step: s, above 0.

    Raises:
        ValueError: an impossible value.
    """

    state_size = 7
    control_size = 2
    cosines = (4,)
    positive = ("mass", "inertia", "arm", "max_thrust")
    mass: nn.Parameter
    inertia: nn.Parameter
    arm: nn.Parameter
    gravity: nn.Parameter
    max_thrust: nn.Parameter
    drag: nn.Parameter

    def __init__(
        self,
        mass: float = 1.0,
        inertia: float = 0.05,
        arm: float = 0.3,
        gravity: float = 9.8,
        max_thrust: float = 9.8,
        drag: float = 0.1,
        *,
        time_step: float = _TIME_STEP,
    ) -> None:
        body = {"mass": mass, "inertia": inertia, "arm": arm}
        super().__init__({**body, "gravity": gravity, "max_thrust": max_thrust, "drag": drag}, time_step)

    @classmethod
    def check_numbers(cls, physics: Mapping[str, Any], time_step: float) -> dict[str, float]:
        """As every system; and drag, which brakes."""
        numbers = super().check_numbers(physics, time_step)
        check_number("drag", numbers["drag"], at_least=0.0)
        return numbers

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The state (..., 7) one time step after x (..., 7), under the throttles u (..., 2)."""
        place_x, speed_x, place_y, speed_y, cos, sin, rate = x.unbind(-1)
        left, right = (0.5 * self.max_thrust * (1.0 + throttle) for throttle in u.unbind(-1))
        half, angle = 0.5 * self.time_step, sin.atan2(cos)
        turn = half * self.arm * (left - right) / self.inertia  # half of what the rate gains
        midway = angle + half * (rate + 0.5 * turn)
        push, brake = half * (left + right) / self.mass, half * self.drag / self.mass
        mean_x = (speed_x + push * midway.sin()) / (1.0 + brake)
        mean_y = (speed_y + push * midway.cos() - half * self.gravity) / (1.0 + brake)
        place_x, place_y = place_x + self.time_step * mean_x, place_y + self.time_step * mean_y
        speed_x, speed_y = 2.0 * mean_x - speed_x, 2.0 * mean_y - speed_y
        angle, rate = angle + self.time_step * (rate + turn), rate + 2.0 * turn
        return torch.stack((place_x, speed_x, place_y, speed_y, angle.cos(), angle.sin(), rate), dim=-1).to(x.dtype)


class QuadrotorEnv(SystemEnv):
    """Catch a quadrotor that tumbles, upside down perhaps, and hold it still at the origin: `dilqr_rl/Quadrotor-v0`.

    | action | meaning | unit |
    |---|---|---|
    | 0, in [-1, 1] | throttle of the left rotor, from no thrust to max_thrust | 1 |
    | 1, in [-1, 1] | throttle of the right rotor | 1 |

    | observation | meaning | bounds |
    |---|---|---|
    | 0 | x, m | -place_limit, place_limit |
    | 1 | x', m/s | -max_speed, max_speed |
    | 2 | y, m, growing upwards | -place_limit, place_limit |
    | 3 | y', m/s | -max_speed, max_speed |
    | 4, 5 | cos θ, sin θ, with θ = 0 level, leaning towards positive x where sin θ > 0 | -1, 1 |
    | 6 | θ', rad/s | -max_rate, max_rate |

    Motion: see `QuadrotorDynamics`; one step lasts 0.05 s.
    Reward: exp(-c), with c >= 0 the stage cost that plans minimise, of the state before the step and the throttles u:
        c = ½ (0.5 x² + 0.1 x'² + 0.5 y² + 0.1 y'² + 0.1 (cos θ - 1)² + 0.1 sin² θ + 0.01 θ'² + 0.01 u_l² + 0.01 u_r²).
        It lies in (0, 1], so that every further step adds to the return and ending early is never worth it.
    Start: uniform in the ranges of the preset, around 0, or `reset(options={"state": (x, x', y, y', cos θ, sin θ, θ')})`.
    End: terminates when the state leaves the observation space; the last observation is clipped into the space, `info["state"]`
        isn't. Truncated after 200 steps, where made by `gymnasium.make`.
    Info: "state", the float64 state (7,); "physics", a dict of numbers.

    | preset | start: x, y | x', y' | θ | θ' | place_limit | max_speed | max_rate |
    |---|---|---|---|---|---|---|---|
    | "tumbling", the default | ±2 m | ±1 m/s | ±π | ±3 rad/s | 6 m | 10 m/s | 20 rad/s |
    | "level" | ±2 m | ±0.5 m/s | ±0.5 | ±0.5 rad/s | 6 m | 10 m/s | 20 rad/s |

    Args:
        physics: of `QuadrotorDynamics`, by name: mass (kg), inertia (kg m²), arm (m), gravity (m/s²), max_thrust (of each
            rotor, N), drag (N s/m). Also `reset(options={"physics": {...}})`, on top of these and for one episode.
        preset: one of those above; the other arguments go before it.
        randomize: ranges (lowest, highest) by name, such as {"mass": (0.8, 1.2)}, drawn from anew at each reset.
        place_limit: of x and y, m, at least as wide as the starts, as the next two.
        max_speed: of x' and y', m/s.
        max_rate: of θ', rad/s.
        render_mode: "human", "rgb_array" or None. The picture ends at place_limit; the body in it is larger than to scale.

    Raises:
        ValueError: unknown names, impossible values or ranges, an unknown preset or render mode.

    Version history:
        v0: first version.
    """

    env_id = "dilqr_rl/Quadrotor-v0"
    dynamics_class = QuadrotorDynamics
    horizon = 30
    cost_weights = (0.5, 0.1, 0.5, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01)
    cost_goal = (0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
    presets = {
        "tumbling": Preset((2.0, 1.0, 2.0, 1.0, math.pi, 3.0), {"place_limit": 6.0, "max_speed": 10.0, "max_rate": 20.0}),
        "level": Preset((2.0, 0.5, 2.0, 0.5, 0.5, 0.5), {"place_limit": 6.0, "max_speed": 10.0, "max_rate": 20.0}),
    }

    def __init__(
        self,
        physics: Mapping[str, float] | None = None,
        *,
        preset: str | None = None,
        randomize: Mapping[str, tuple[float, float]] | None = None,
        place_limit: float | None = None,
        max_speed: float | None = None,
        max_rate: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        chosen = self.find_preset(preset)
        limits = chosen.with_limits(place_limit=place_limit, max_speed=max_speed, max_rate=max_rate)
        place = check_number("place_limit", limits["place_limit"], at_least=chosen.start[0])
        speed = check_number("max_speed", limits["max_speed"], at_least=chosen.start[1])
        rate = check_number("max_rate", limits["max_rate"], at_least=chosen.start[5])
        limit = (place, speed, place, speed, 1.0, 1.0, rate)
        super().__init__(chosen, physics, randomize, render_mode, state_limit=limit, control_limit=1.0)

    def reward_function(self) -> nn.Module:
        """exp(-stage cost)."""
        return SurvivalReward(self.stage_cost())

    def states_at(self, coordinates: Floats) -> Floats:
        """States (N, 7) at (x, x', y, y', θ, θ')."""
        angle = coordinates[:, 4:5]
        return np.hstack((coordinates[:, :4], np.cos(angle), np.sin(angle), coordinates[:, 5:]))

    def paint(self, drawing: Drawing, states: Floats, physics: Mapping[str, Floats], efforts: Floats) -> None:
        """The quadrotor, and an arrow for each rotor's thrust."""
        draw_quadrotor(
            drawing,
            position_x=states[:, 0],
            position_y=states[:, 2],
            angle=np.arctan2(states[:, 5], states[:, 4]),
            arm=physics["arm"],
            throttles=(efforts[:, 0], efforts[:, 1]),
            place_limit=float(self._state_limit[0]),
        )


class QuadrotorVectorEnv(SystemVectorEnv):
    """Many `QuadrotorEnv` as one: gymnasium.make_vec("dilqr_rl/Quadrotor-v0", num_envs)."""

    env_class = QuadrotorEnv
