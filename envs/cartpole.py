"""A pole hinged to a cart that a force moves along a rail: its equations and its environments."""

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
from dilqr_rl.envs.pixels import PixelEnv
from dilqr_rl.envs.presets import Preset
from dilqr_rl.envs.rendering import draw_cartpole, draw_line
from dilqr_rl.envs.rewards import SurvivalReward
from dilqr_rl.envs.vector import SystemVectorEnv

__all__ = ["CartPoleDynamics", "CartPoleEnv", "CartPolePixelsEnv"]

_TIME_STEP = 0.05
_HALF_RAIL, _LINE_LENGTH = 0.28, 0.2  # of the style "line", as shares of the picture: it ends within


class CartPoleDynamics(SystemDynamics):
    """A uniform pole on a cart; state (x, x', cos θ, sin θ, θ') with θ = 0 upright, control a force in N.

    With l half the pole's length, M = m_c + m_p and h the time step (Barto, Sutton and Anderson 1983; Florian 2007, without
    friction):
        a   = (u + m_p l θ'² sin θ) / M,
        θ'' = (g sin θ - a cos θ) / (l (4/3 - m_p cos² θ / M)),
        x'' = a - m_p l θ'' cos θ / M,
    and an explicit Euler step of all four: positions move with the speeds from before the step. That step feeds energy into
    a swinging pole, so that without control it swings ever higher. The pole leans to the side of positive x where sin θ > 0.

    Args:
        cart_mass: kg, above 0.
        pole_mass: kg, above 0.
        length: half the pole's length, m, above 0.
        gravity: m/s².
        time_step: s, above 0.

    Raises:
        ValueError: an impossible value.
    """

    state_size = 5
    control_size = 1
    cosines = (2,)
    positive = ("cart_mass", "pole_mass", "length")
    cart_mass: nn.Parameter
    pole_mass: nn.Parameter
    length: nn.Parameter
    gravity: nn.Parameter

    def __init__(
        self,
        cart_mass: float = 1.0,
        pole_mass: float = 0.1,
        length: float = 0.5,
        gravity: float = 9.8,
        *,
        time_step: float = _TIME_STEP,
    ) -> None:
        physics = {"cart_mass": cart_mass, "pole_mass": pole_mass, "length": length, "gravity": gravity}
        super().__init__(physics, time_step)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The state (..., 5) one time step after x (..., 5), under the force u (..., 1) in N."""
        position, speed, cos, sin, rate = x.unbind(-1)
        (force,) = u.unbind(-1)
        total = self.cart_mass + self.pole_mass
        pole = self.pole_mass * self.length
        push = (force + pole * rate**2 * sin) / total
        turn = (self.gravity * sin - push * cos) / (self.length * (4.0 / 3.0 - self.pole_mass * cos**2 / total))
        position, speed = position + self.time_step * speed, speed + self.time_step * (push - pole * turn * cos / total)
        angle, rate = sin.atan2(cos) + self.time_step * rate, rate + self.time_step * turn
        return torch.stack((position, speed, angle.cos(), angle.sin(), rate), dim=-1).to(x.dtype)


class CartPoleEnv(SystemEnv):
    """Swing a pole up by pushing the cart it is hinged to, and balance it mid-rail: `dilqr_rl/CartPole-v0`.

    | action | meaning | unit |
    |---|---|---|
    | 0, in [-1, 1] | force / max_force, positive towards growing x | 1 |

    | observation | meaning | bounds |
    |---|---|---|
    | 0 | x, m | -track_limit, track_limit |
    | 1 | x', m/s | -max_speed, max_speed |
    | 2, 3 | cos θ, sin θ, with θ = 0 upright | -1, 1 |
    | 4 | θ', rad/s | -max_rate, max_rate |

    Motion: see `CartPoleDynamics`; one step lasts 0.05 s.
    Reward: exp(-c), with c >= 0 the stage cost that plans minimise, of the state before the step and the force u in N:
        c = ½ (0.1 x² + 0.1 x'² + (cos θ - 1)² + sin² θ + 0.1 θ'² + 0.001 u²).
        It lies in (0, 1] (a 0 is rounding), so that every further step adds to the return and ending early is never worth it.
    Start: x and x' uniform in [-0.5, 0.5] m and m/s, θ in [-π, π], θ' in [-1, 1] rad/s, or
        `reset(options={"state": (x, x', cos θ, sin θ, θ')})`.
    End: terminates when the state leaves the observation space (the cart its rail, or a speed what the Euler step can follow);
        the last observation is clipped into the space, `info["state"]` isn't. Truncated after 200 steps, where made by
        `gymnasium.make`.
    Info: "state", the float64 state (5,); "physics", a dict of numbers.

    | preset | max_force | track_limit | max_speed | max_rate |
    |---|---|---|---|---|
    | "rail", the default | 20 N | 5 m | 20 m/s | 30 rad/s |
    | "diffmpc", the published experiments | 100 N | 100 m | 100 m/s | 100 rad/s |

    Args:
        physics: of `CartPoleDynamics`, by name: cart_mass (kg), pole_mass (kg), length (half the pole's, m), gravity (m/s²).
            Also `reset(options={"physics": {...}})`, on top of these and for one episode.
        preset: one of those above; the other arguments go before it.
        randomize: ranges (lowest, highest) by name, such as {"length": (0.4, 0.6)}, drawn from anew at each reset.
        max_force: N.
        track_limit: m, half the rail, at least 0.5 so that every start is on it.
        max_speed: of the cart, m/s, at least 0.5.
        max_rate: of the pole, rad/s, at least 1.
        render_mode: "human", "rgb_array" or None.

    Raises:
        ValueError: unknown names, impossible values or ranges, an unknown preset or render mode.

    Version history:
        v0: first version.
    """

    env_id = "dilqr_rl/CartPole-v0"
    dynamics_class = CartPoleDynamics
    horizon = 40
    cost_weights = (0.1, 0.1, 1.0, 1.0, 0.1, 0.001)
    cost_goal = (0.0, 0.0, 1.0, 0.0, 0.0, 0.0)
    presets = {
        "rail": Preset((0.5, 0.5, math.pi, 1.0), {"max_force": 20.0, "track_limit": 5.0, "max_speed": 20.0, "max_rate": 30.0}),
        "diffmpc": Preset(
            (0.5, 0.5, math.pi, 1.0), {"max_force": 100.0, "track_limit": 100.0, "max_speed": 100.0, "max_rate": 100.0}
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
            state_limit=(track, speed, 1.0, 1.0, rate),
            control_limit=check_number("max_force", limits["max_force"], above=0.0),
        )

    def reward_function(self) -> nn.Module:
        """exp(-stage cost)."""
        return SurvivalReward(self.stage_cost())

    def states_at(self, coordinates: Floats) -> Floats:
        """States (N, 5) at (x, x', θ, θ')."""
        position, speed, angle, rate = coordinates.T
        return np.stack((position, speed, np.cos(angle), np.sin(angle), rate), axis=1)

    def paint(self, drawing: Drawing, states: Floats, physics: Mapping[str, Floats], efforts: Floats) -> None:
        """Cart, rail and pole, and an arrow for the force."""
        draw_cartpole(
            drawing,
            position=states[:, 0],
            angle=np.arctan2(states[:, 3], states[:, 2]),
            pole_length=2.0 * physics["length"],
            track_limit=self._state_limit[0],
            effort=efforts[:, 0],
        )


class CartPolePixelsEnv(PixelEnv, CartPoleEnv):
    """`CartPoleEnv`, seen by a camera: `dilqr_rl/CartPolePixels-v0`.

    | observation | meaning |
    |---|---|
    | (size, size, channels) uint8 | the last frame_stack frames along the channels, oldest first |

    The state stays in `info["state"]`. Speeds show only in a stack of two frames or more.

    Args:
        physics: as all other arguments that aren't named here, of `CartPoleEnv`.
        size: of a frame, pixels a side, from 16 to 512; 64 by default.
        frame_stack: frames in an observation, 4 by default. At an episode's start they are all the same.
        grey: one channel (luminance) a frame instead of three.
        style: "picture", as a person sees it but without the arrow of the force: the view follows the cart, a little slower,
            and from a half length of 0.6 m on it shrinks to fit the pole in. "line": one line, dark on white, from where the
            cart is on its rail, as long whatever the physics.

    Version history:
        v0: first version.
    """

    env_id = "dilqr_rl/CartPolePixels-v0"

    def paint_line(self, drawing: Drawing, states: Floats, physics: Mapping[str, Floats]) -> None:
        """A line from the cart's place, as long whatever the physics."""
        place = 0.5 + _HALF_RAIL * states[:, 0] / self._state_limit[0]
        draw_line(drawing, start=(place, 0.5), angle=-np.arctan2(states[:, 3], states[:, 2]), length=_LINE_LENGTH)


class CartPoleVectorEnv(SystemVectorEnv):
    """Many `CartPoleEnv` as one: gymnasium.make_vec("dilqr_rl/CartPole-v0", num_envs)."""

    env_class = CartPoleEnv


class CartPolePixelsVectorEnv(SystemVectorEnv):
    """Many `CartPolePixelsEnv` as one: gymnasium.make_vec("dilqr_rl/CartPolePixels-v0", num_envs)."""

    env_class = CartPolePixelsEnv
