"""A pendulum with a torque at its hinge: its equations, its environment, and the model of Gymnasium's own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dilqr_rl.costs import QuadraticCost
from dilqr_rl.envs.base import SystemEnv, observation_is_state
from dilqr_rl.envs.checks import check_number
from dilqr_rl.envs.physics import SystemDynamics
from dilqr_rl.envs.rendering import draw_pendulum
from dilqr_rl.tasks import ControlTask

if TYPE_CHECKING:
    from pygame import Surface

__all__ = ["PendulumDynamics", "PendulumEnv", "pendulum_v1_task"]

_HORIZON = 50
_TIME_STEP = 0.05
_COST_WEIGHTS = (1.0, 1.0, 0.1, 0.001)
_COST_GOAL = (1.0, 0.0, 0.0, 0.0)


class PendulumDynamics(SystemDynamics):
    """A uniform rod on a hinge; state (cos θ, sin θ, θ') with θ = 0 upright, control a torque in N m.

    With moment of inertia m l²/3 about the hinge, and h the time step:
        θ'+ = θ' + h (3 g / (2 l) sin θ + 3 (u - damping θ' + wind l cos θ) / (m l²)),
        θ+  = θ + h θ'+.
    The wind pushes the tip, at height l cos θ, to the side on which sin θ > 0; wind l cos θ is its torque.

    Args:
        mass: kg, above 0.
        length: m, above 0.
        gravity: m/s².
        damping: viscous friction of the hinge, N m s, at least 0.
        wind: horizontal force on the tip, N.
        time_step: s, above 0.
        max_speed: rad/s; θ'+ is clamped to it before θ moves, as in Gymnasium's Pendulum-v1. None: no limit. Leave it None
            in a model to plan with, since a clamped speed has no gradient.

    Raises:
        ValueError: an impossible value, or a damping above 2 m l² / (3 h), from where on an Euler step lets speeds grow
            without end.
    """

    state_size = 3
    control_size = 1
    cosines = (0,)
    positive = ("mass", "length")
    mass: nn.Parameter
    length: nn.Parameter
    gravity: nn.Parameter
    damping: nn.Parameter
    wind: nn.Parameter

    def __init__(
        self,
        mass: float = 1.0,
        length: float = 1.0,
        gravity: float = 10.0,
        damping: float = 0.0,
        wind: float = 0.0,
        *,
        time_step: float = _TIME_STEP,
        max_speed: float | None = None,
    ) -> None:
        physics = {"mass": mass, "length": length, "gravity": gravity, "damping": damping, "wind": wind}
        super().__init__(physics, time_step)
        self.max_speed = None if max_speed is None else check_number("max_speed", max_speed, above=0.0)
        most = 2 * mass * length**2 / (3 * self.time_step)
        if check_number("damping", damping, at_least=0.0) > most:
            raise ValueError(
                f"damping: expected at most 2 mass length² / (3 time_step) = {most:g} N m s, got {damping!r}. "
                "Lower the damping or the time step: beyond this an Euler step lets speeds grow without end."
            )

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The state (..., 3) one time step after x (..., 3), under the torque u (..., 1) in N m."""
        cos, sin, rate = x.unbind(-1)
        (torque,) = u.unbind(-1)
        torque = torque - self.damping * rate + self.wind * self.length * cos
        acceleration = 1.5 * self.gravity / self.length * sin + 3.0 * torque / (self.mass * self.length**2)
        rate = rate + self.time_step * acceleration
        if self.max_speed is not None:
            rate = rate.clamp(-self.max_speed, self.max_speed)
        angle = sin.atan2(cos) + self.time_step * rate
        return torch.stack((angle.cos(), angle.sin(), rate), dim=-1).to(x.dtype)


class PendulumEnv(SystemEnv):
    """Swing a pendulum up with a torque too weak to lift it at once, and balance it: `dilqr_rl/Pendulum-v0`.

    With its default arguments it steps exactly like Gymnasium's `Pendulum-v1`: the same starts from the same seed, the same
    states and rewards. Unlike there, actions are scaled to [-1, 1] and physics are arguments.

    | action | meaning | unit |
    |---|---|---|
    | 0, in [-1, 1] | torque / max_torque, positive towards growing θ | 1 |

    | observation | meaning | bounds |
    |---|---|---|
    | 0, 1 | cos θ, sin θ, with θ = 0 upright | -1, 1 |
    | 2 | θ', rad/s | -max_speed, max_speed |

    Without a speed limit the bound of θ' is π / 0.05 s = 62.8 rad/s, half a turn per step, from where on angles no longer
    tell which way the rod turns. Beyond it (default physics get there only by pushing one way through nearly all
    200 steps) the observation is clipped, the state isn't.

    Motion: see `PendulumDynamics`; one step lasts 0.05 s.
    Reward: -(θ² + 0.1 θ'² + 0.001 torque²), of the state before the step, with θ in [-π, π].
    Start: θ uniform in [-π, π], θ' uniform in [-1, 1] rad/s, or `reset(options={"state": (cos θ, sin θ, θ')})`.
    End: never terminates; truncated after 200 steps, where made by `gymnasium.make`.
    Info: "state", the float64 state (3,); "physics", a dict of numbers.

    Args:
        physics: of `PendulumDynamics`, by name: mass (kg), length (m), gravity (m/s²), damping (N m s), wind (N). Also
            `reset(options={"physics": {...}})`, on top of these and for one episode.
        max_speed: rad/s, to which θ' is clamped; None for no limit. Plans know no limit either way.
        max_torque: N m.
        render_mode: "human", "rgb_array" or None. The picture shows growing θ as counter-clockwise, as Gymnasium's does.

    Raises:
        ValueError: unknown names, impossible values, an unknown render mode.

    Version history:
        v0: first version.
    """

    env_id = "dilqr_rl/Pendulum-v0"
    dynamics_class = PendulumDynamics
    horizon = _HORIZON
    cost_weights = _COST_WEIGHTS
    cost_goal = _COST_GOAL

    def __init__(
        self,
        physics: Mapping[str, float] | None = None,
        *,
        max_speed: float | None = 8.0,
        max_torque: float = 2.0,
        render_mode: str | None = None,
    ) -> None:
        rate_limit = math.pi / _TIME_STEP if max_speed is None else check_number("max_speed", max_speed, above=0.0)
        super().__init__(
            physics,
            render_mode,
            state_limit=(1.0, 1.0, rate_limit),
            control_limit=check_number("max_torque", max_torque, above=0.0),
            step_settings={"max_speed": max_speed},
        )

    def _draw_start(self) -> NDArray[np.float64]:
        angle, rate = self.np_random.uniform((-math.pi, -1.0), (math.pi, 1.0))
        return np.array((math.cos(angle), math.sin(angle), rate))

    def _reward(self, state: NDArray[np.float64], control: NDArray[np.float64]) -> float:
        angle = math.atan2(state[1], state[0])
        return -(angle**2 + 0.1 * float(state[2]) ** 2 + 0.001 * float(control[0]) ** 2)

    def _paint(self, surface: Surface, state: NDArray[np.float64], effort: NDArray[np.float64]) -> None:
        draw_pendulum(surface, angle=math.atan2(state[1], state[0]), length=self._physics["length"], effort=float(effort[0]))


def pendulum_v1_task(env: Any) -> ControlTask:
    """The model of Gymnasium's own `Pendulum-v1`, from the physics that the environment holds.

    Its actions are torques in N m. Its speed limit of 8 rad/s isn't part of the model.

    Args:
        env: the environment, wrapped or not.

    Raises:
        ValueError: it isn't a `Pendulum-v1`, or its physics are impossible.
    """
    base = env.unwrapped
    missing = [name for name in ("m", "l", "g", "dt", "max_torque") if not hasattr(base, name)]
    if missing:
        raise ValueError(f"env: expected Gymnasium's Pendulum-v1, got {base!r}, which lacks {missing}.")
    return ControlTask(
        name="Pendulum-v1",
        dynamics=PendulumDynamics(base.m, base.l, base.g, time_step=base.dt),
        stage_cost=QuadraticCost(_COST_WEIGHTS, _COST_GOAL),
        observation_to_state=observation_is_state,
        horizon=_HORIZON,
        state_size=PendulumDynamics.state_size,
        control_size=PendulumDynamics.control_size,
        u_min=-base.max_torque,
        u_max=base.max_torque,
    )
