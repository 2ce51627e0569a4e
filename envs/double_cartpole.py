"""Two poles, one on top of the other, on a cart that a force moves along a rail: their equations and their environment."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from dilqr_rl.envs.base import SystemEnv
from dilqr_rl.envs.checks import check_number
from dilqr_rl.envs.drawing import Drawing
from dilqr_rl.envs.episodes import Floats
from dilqr_rl.envs.physics import SystemDynamics
from dilqr_rl.envs.presets import Preset
from dilqr_rl.envs.rendering import draw_double_cartpole
from dilqr_rl.envs.rewards import SurvivalReward
from dilqr_rl.envs.vector import SystemVectorEnv

__all__ = ["DoubleCartPoleDynamics", "DoubleCartPoleEnv"]

_TIME_STEP = 0.04


class DoubleCartPoleDynamics(SystemDynamics):
    """Two uniform poles on a cart; state (x, x', cos θ1, sin θ1, θ1', cos θ2, sin θ2, θ2'), control a force in N.

    Both angles are measured from the vertical and 0 upright; a pole leans to the side of positive x where its sine is above 0.
    The second pole is hinged to the tip of the first; nothing rubs. With M = m_c + m_1 + m_2 and the moments of mass
    p_1 = (½ m_1 + m_2) l_1 and p_2 = ½ m_2 l_2, Lagrange's equations are
        M x'' + p_1 cos θ1 θ1'' + p_2 cos θ2 θ2'' = u + p_1 sin θ1 θ1'² + p_2 sin θ2 θ2'²,
        p_1 cos θ1 x'' + (⅓ m_1 + m_2) l_1² θ1'' + l_1 p_2 cos(θ1 - θ2) θ2'' = p_1 g sin θ1 - l_1 p_2 sin(θ1 - θ2) θ2'²,
        p_2 cos θ2 x'' + l_1 p_2 cos(θ1 - θ2) θ1'' + ⅓ m_2 l_2² θ2'' = p_2 g sin θ2 + l_1 p_2 sin(θ1 - θ2) θ1'².
    A step is one of Runge and Kutta's fourth order with a constant force. Of the energy of poles that tumble freely for 5 s it
    takes 2 % (the median over random starts; 0.1 % at half the time step), where Euler's steps blow up.

    Args:
        cart_mass: kg, above 0.
        mass_1, mass_2: of the lower and the upper pole, kg, above 0.
        length_1, length_2: of the lower and the upper pole, from end to end, m, above 0.
        gravity: m/s².
        time_step: s, above 0.

    Raises:
        ValueError: an impossible value.
    """

    state_size = 8
    control_size = 1
    cosines = (2, 5)
    positive = ("cart_mass", "mass_1", "mass_2", "length_1", "length_2")
    cart_mass: nn.Parameter
    mass_1: nn.Parameter
    mass_2: nn.Parameter
    length_1: nn.Parameter
    length_2: nn.Parameter
    gravity: nn.Parameter

    def __init__(
        self,
        cart_mass: float = 1.0,
        mass_1: float = 0.1,
        mass_2: float = 0.1,
        length_1: float = 1.0,
        length_2: float = 1.0,
        gravity: float = 9.8,
        *,
        time_step: float = _TIME_STEP,
    ) -> None:
        masses = {"cart_mass": cart_mass, "mass_1": mass_1, "mass_2": mass_2}
        super().__init__({**masses, "length_1": length_1, "length_2": length_2, "gravity": gravity}, time_step)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The state (..., 8) one time step after x (..., 8), under the force u (..., 1) in N."""
        position, speed, cos_1, sin_1, rate_1, cos_2, sin_2, rate_2 = x.unbind(-1)
        places = torch.stack((position, sin_1.atan2(cos_1), sin_2.atan2(cos_2)), dim=-1)
        rates, h = torch.stack((speed, rate_1, rate_2), dim=-1), self.time_step
        first = self.accelerations(places, rates, u)
        second = self.accelerations(places + h / 2.0 * rates, rates + h / 2.0 * first, u)
        third = self.accelerations(places + h / 2.0 * (rates + h / 2.0 * first), rates + h / 2.0 * second, u)
        fourth = self.accelerations(places + h * (rates + h / 2.0 * second), rates + h * third, u)
        places = places + h * (rates + h / 6.0 * (first + second + third))
        rates = rates + h / 6.0 * (first + 2.0 * (second + third) + fourth)
        (position, angle_1, angle_2), (speed, rate_1, rate_2) = places.unbind(-1), rates.unbind(-1)
        following = (position, speed, angle_1.cos(), angle_1.sin(), rate_1, angle_2.cos(), angle_2.sin(), rate_2)
        return torch.stack(following, dim=-1).to(x.dtype)

    def accelerations(self, places: Tensor, rates: Tensor, u: Tensor) -> Tensor:
        """(x'', θ1'', θ2'') (..., 3) at the places (x, θ1, θ2) and their rates (..., 3), under the force u (..., 1) in N.

        The first equation gives x'' in terms of the others; Cramer's rule solves the two that remain.
        """
        (_, angle_1, angle_2), (_, rate_1, rate_2), (force,) = places.unbind(-1), rates.unbind(-1), u.unbind(-1)
        total = self.cart_mass + self.mass_1 + self.mass_2
        moment_1, moment_2 = (0.5 * self.mass_1 + self.mass_2) * self.length_1, 0.5 * self.mass_2 * self.length_2
        across_1, across_2 = moment_1 * angle_1.cos(), moment_2 * angle_2.cos()
        up_1, up_2 = moment_1 * angle_1.sin(), moment_2 * angle_2.sin()
        coupling, between = self.length_1 * moment_2, angle_1 - angle_2
        push = (force + up_1 * rate_1**2 + up_2 * rate_2**2) / total
        load_1 = self.gravity * up_1 - coupling * between.sin() * rate_2**2 - across_1 * push
        load_2 = self.gravity * up_2 + coupling * between.sin() * rate_1**2 - across_2 * push
        inertia_1 = (self.mass_1 / 3.0 + self.mass_2) * self.length_1**2 - across_1**2 / total
        inertia_2 = self.mass_2 / 3.0 * self.length_2**2 - across_2**2 / total
        shared = coupling * between.cos() - across_1 * across_2 / total
        determinant = inertia_1 * inertia_2 - shared**2
        turn_1 = (inertia_2 * load_1 - shared * load_2) / determinant
        turn_2 = (inertia_1 * load_2 - shared * load_1) / determinant
        return torch.stack((push - (across_1 * turn_1 + across_2 * turn_2) / total, turn_1, turn_2), dim=-1)


class DoubleCartPoleEnv(SystemEnv):
    """Swing two poles up by pushing the cart that carries them, and balance one on the other: `dilqr_rl/DoubleCartPole-v0`.

    | action | meaning | unit |
    |---|---|---|
    | 0, in [-1, 1] | force / max_force, positive towards growing x | 1 |

    | observation | meaning | bounds |
    |---|---|---|
    | 0 | x, m | -track_limit, track_limit |
    | 1 | x', m/s | -max_speed, max_speed |
    | 2, 3 | cos θ1, sin θ1 of the lower pole, with θ1 = 0 upright | -1, 1 |
    | 4 | θ1', rad/s | -max_rate, max_rate |
    | 5, 6 | cos θ2, sin θ2 of the upper pole, with θ2 = 0 upright, whatever θ1 | -1, 1 |
    | 7 | θ2', rad/s | -max_rate, max_rate |

    Motion: see `DoubleCartPoleDynamics`; one step lasts 0.04 s.
    Reward: exp(-c), with c >= 0 the stage cost that plans minimise, of the state before the step and the force u in N:
        c = ½ (0.1 x² + 0.1 x'² + (cos θ1 - 1)² + sin² θ1 + 0.01 θ1'² + (cos θ2 - 1)² + sin² θ2 + 0.01 θ2'² + 0.001 u²).
        It lies in (0, 1] (a 0 is rounding), so that every further step adds to the return and ending early is never worth it.
    Start: uniform in the ranges of the preset, around 0, or
        `reset(options={"state": (x, x', cos θ1, sin θ1, θ1', cos θ2, sin θ2, θ2')})`.
    End: terminates when the state leaves the observation space; the last observation is clipped into the space, `info["state"]`
        isn't. Truncated after 200 steps, where made by `gymnasium.make`.
    Info: "state", the float64 state (8,); "physics", a dict of numbers.

    | preset | start: x | x' | θ1, θ2 | θ1', θ2' | max_force | track_limit | max_speed | max_rate |
    |---|---|---|---|---|---|---|---|---|
    | "swing-up", the default | ±1 m | ±1 m/s | ±π | ±2 rad/s | 20 N | 5 m | 20 m/s | 30 rad/s |
    | "balance" | ±0.5 m | ±0.5 m/s | ±0.3 | ±0.5 rad/s | 20 N | 5 m | 20 m/s | 30 rad/s |

    Args:
        physics: of `DoubleCartPoleDynamics`, by name: cart_mass, mass_1, mass_2 (kg), length_1, length_2 (whole poles, m),
            gravity (m/s²). Also `reset(options={"physics": {...}})`, on top of these and for one episode.
        preset: one of those above; the other arguments go before it.
        randomize: ranges (lowest, highest) by name, such as {"mass_2": (0.05, 0.2)}, drawn from anew at each reset.
        max_force: N.
        track_limit: m, half the rail, at least as wide as the starts, as the next two.
        max_speed: of the cart, m/s.
        max_rate: of each pole, rad/s.
        render_mode: "human", "rgb_array" or None.

    Raises:
        ValueError: unknown names, impossible values or ranges, an unknown preset or render mode.

    Version history:
        v0: first version.
    """

    metadata = {**SystemEnv.metadata, "render_fps": 25}
    env_id = "dilqr_rl/DoubleCartPole-v0"
    dynamics_class = DoubleCartPoleDynamics
    horizon = 40
    cost_weights = (0.1, 0.1, 1.0, 1.0, 0.01, 1.0, 1.0, 0.01, 0.001)
    cost_goal = (0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    presets = {
        "swing-up": Preset(
            (1.0, 1.0, math.pi, 2.0, math.pi, 2.0),
            {"max_force": 20.0, "track_limit": 5.0, "max_speed": 20.0, "max_rate": 30.0},
        ),
        "balance": Preset(
            (0.5, 0.5, 0.3, 0.5, 0.3, 0.5), {"max_force": 20.0, "track_limit": 5.0, "max_speed": 20.0, "max_rate": 30.0}
        ),
    }

    def __init__(
        self,
        physics: Mapping[str, float] | None = None,
        *,
        preset: str | None = None,
        randomize: Mapping[str, tuple[float, float]] | None = None,
        max_force: float | None = None,
        track_limit: float | None = None,
        max_speed: float | None = None,
        max_rate: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        chosen = self.find_preset(preset)
        limits = chosen.with_limits(max_force=max_force, track_limit=track_limit, max_speed=max_speed, max_rate=max_rate)
        track = check_number("track_limit", limits["track_limit"], at_least=chosen.start[0])
        speed = check_number("max_speed", limits["max_speed"], at_least=chosen.start[1])
        rate = check_number("max_rate", limits["max_rate"], at_least=chosen.start[3])
        super().__init__(
            chosen,
            physics,
            randomize,
            render_mode,
            state_limit=(track, speed, 1.0, 1.0, rate, 1.0, 1.0, rate),
            control_limit=check_number("max_force", limits["max_force"], above=0.0),
        )

    def reward_function(self) -> nn.Module:
        """exp(-stage cost)."""
        return SurvivalReward(self.stage_cost())

    def states_at(self, coordinates: Floats) -> Floats:
        """States (N, 8) at (x, x', θ1, θ1', θ2, θ2')."""
        position, speed, angle_1, rate_1, angle_2, rate_2 = coordinates.T
        poles = (np.cos(angle_1), np.sin(angle_1), rate_1, np.cos(angle_2), np.sin(angle_2), rate_2)
        return np.stack((position, speed, *poles), axis=1)

    def paint(self, drawing: Drawing, states: Floats, physics: Mapping[str, Floats], efforts: Floats) -> None:
        """Cart, rail and poles, and an arrow for the force."""
        draw_double_cartpole(
            drawing,
            position=states[:, 0],
            angles=(np.arctan2(states[:, 3], states[:, 2]), np.arctan2(states[:, 6], states[:, 5])),
            lengths=(physics["length_1"], physics["length_2"]),
            track_limit=self._state_limit[0],
            effort=efforts[:, 0],
        )


class DoubleCartPoleVectorEnv(SystemVectorEnv):
    """Many `DoubleCartPoleEnv` as one: gymnasium.make_vec("dilqr_rl/DoubleCartPole-v0", num_envs)."""

    env_class = DoubleCartPoleEnv
