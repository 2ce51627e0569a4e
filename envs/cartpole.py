"""A pole hinged to a cart that a force moves along a rail: its equations and its environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dilqr_rl.envs.base import SystemEnv
from dilqr_rl.envs.checks import check_number
from dilqr_rl.envs.physics import SystemDynamics
from dilqr_rl.envs.rendering import draw_cartpole

if TYPE_CHECKING:
    from pygame import Surface

__all__ = ["CartPoleDynamics", "CartPoleEnv"]

_HORIZON = 40
_TIME_STEP = 0.05


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

    Args:
        physics: of `CartPoleDynamics`, by name: cart_mass (kg), pole_mass (kg), length (half the pole's, m), gravity (m/s²).
            Also `reset(options={"physics": {...}})`, on top of these and for one episode.
        max_force: N. The published experiments allow 100.
        track_limit: m, half the rail, at least 0.5 so that every start is on it.
        max_speed: of the cart, m/s, at least 0.5.
        max_rate: of the pole, rad/s, at least 1.
        render_mode: "human", "rgb_array" or None.

    Raises:
        ValueError: unknown names, impossible values, an unknown render mode.

    Version history:
        v0: first version.
    """

    env_id = "dilqr_rl/CartPole-v0"
    dynamics_class = CartPoleDynamics
    horizon = _HORIZON
    cost_weights = (0.1, 0.1, 1.0, 1.0, 0.1, 0.001)
    cost_goal = (0.0, 0.0, 1.0, 0.0, 0.0, 0.0)

    def __init__(
        self,
        physics: Mapping[str, float] | None = None,
        *,
        max_force: float = 20.0,
        track_limit: float = 5.0,
        max_speed: float = 20.0,
        max_rate: float = 30.0,
        render_mode: str | None = None,
    ) -> None:
        track_limit = check_number("track_limit", track_limit, at_least=0.5)
        max_speed = check_number("max_speed", max_speed, at_least=0.5)
        max_rate = check_number("max_rate", max_rate, at_least=1.0)
        super().__init__(
            physics,
            render_mode,
            state_limit=(track_limit, max_speed, 1.0, 1.0, max_rate),
            control_limit=check_number("max_force", max_force, above=0.0),
        )
        self._cost = self.stage_cost()

    def _draw_start(self) -> NDArray[np.float64]:
        high = (0.5, 0.5, math.pi, 1.0)
        position, speed, angle, rate = self.np_random.uniform(np.negative(high), high)
        return np.array((position, speed, math.cos(angle), math.sin(angle), rate))

    @torch.no_grad()
    def _reward(self, state: NDArray[np.float64], control: NDArray[np.float64]) -> float:
        return math.exp(-self._cost(torch.from_numpy(state), torch.from_numpy(control)).item())

    def _has_ended(self, state: NDArray[np.float64]) -> bool:
        return bool((np.abs(state) > self._state_limit)[[0, 1, 4]].any())

    def _paint(self, surface: Surface, state: NDArray[np.float64], effort: NDArray[np.float64]) -> None:
        draw_cartpole(
            surface,
            position=float(state[0]),
            angle=math.atan2(state[3], state[2]),
            pole_length=2.0 * self._physics["length"],
            track_limit=float(self._state_limit[0]),
            effort=float(effort[0]),
        )
