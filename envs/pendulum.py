"""A pendulum with a torque at its hinge: its equations and its environments."""

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
from dilqr_rl.envs.pixels import PixelEnv
from dilqr_rl.envs.presets import Preset
from dilqr_rl.envs.rendering import LINE_LENGTH, draw_line, draw_pendulum
from dilqr_rl.envs.vector import SystemVectorEnv

__all__ = ["PendulumDynamics", "PendulumEnv", "PendulumPixelsEnv", "PublishedPendulumDynamics"]

_TIME_STEP = 0.05


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
    coupled = ("mass", "length", "damping")
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

    @classmethod
    def check_numbers(cls, physics: Mapping[str, Any], time_step: float) -> dict[str, float]:
        """As every system; and damping, from 0 to what an Euler step can bear."""
        numbers = super().check_numbers(physics, time_step)
        most = 2 * numbers["mass"] * numbers["length"] * numbers["length"] / (3 * time_step)  # infinite, where ** would raise
        if check_number("damping", numbers["damping"], at_least=0.0) > most:
            raise ValueError(
                f"damping: expected at most 2 mass length² / (3 time_step) = {most:g} N m s, got {numbers['damping']!r}. "
                "Lower the damping or the time step: beyond this an Euler step lets speeds grow without end."
            )
        return numbers

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The state (..., 3) one time step after x (..., 3), under the torque u (..., 1) in N m."""
        cos, sin, rate = x.unbind(-1)
        (torque,) = u.unbind(-1)
        rate = rate + self.time_step * self.acceleration(cos, sin, rate, torque)
        if self.max_speed is not None:
            rate = rate.clamp(-self.max_speed, self.max_speed)
        angle = sin.atan2(cos) + self.time_step * rate
        return torch.stack((angle.cos(), angle.sin(), rate), dim=-1).to(x.dtype)

    def acceleration(self, cos: Tensor, sin: Tensor, rate: Tensor, torque: Tensor) -> Tensor:
        """θ'' in rad/s², of (...,) each."""
        torque = torque - self.damping * rate + self.wind * self.length * cos
        return 1.5 * self.gravity / self.length * sin + 3.0 * torque / (self.mass * self.length**2)


class PublishedPendulumDynamics(PendulumDynamics):
    """The "complex" pendulum of the published experiments (DiffMPC, section 5.4), as its code has it.

    State and control as `PendulumDynamics`:
        θ'+ = θ' + h (3 g / (2 l) sin(θ + wind) + 3 u / (m l²) - damping θ),
        θ+  = θ + h θ'+,    with θ in (-π, π].
    What is called damping there acts on the angle, as a spring does, and the wind shifts the phase of gravity.
    `PendulumDynamics` has a viscous damping, and a wind that pushes.

    Args:
        mass: kg, above 0.
        length: m, above 0.
        gravity: m/s².
        damping: 1/s².
        wind: rad.
        time_step: s, above 0.
        max_speed: rad/s, as for `PendulumDynamics`.

    Raises:
        ValueError: an impossible value.
    """

    def __init__(
        self,
        mass: float = 1.0,
        length: float = 1.0,
        gravity: float = 10.0,
        damping: float = 1.0,
        wind: float = 0.1,
        *,
        time_step: float = _TIME_STEP,
        max_speed: float | None = None,
    ) -> None:
        super().__init__(mass, length, gravity, damping, wind, time_step=time_step, max_speed=max_speed)

    @classmethod
    def check_numbers(cls, physics: Mapping[str, Any], time_step: float) -> dict[str, float]:
        """As every system: this damping is no friction."""
        return super(PendulumDynamics, cls).check_numbers(physics, time_step)

    def acceleration(self, cos: Tensor, sin: Tensor, rate: Tensor, torque: Tensor) -> Tensor:
        """θ'' in rad/s², of (...,) each."""
        angle = sin.atan2(cos)
        pull = 1.5 * self.gravity / self.length * (angle + self.wind).sin() - self.damping * angle
        return pull + 3.0 * torque / (self.mass * self.length**2)


class _PendulumReward(nn.Module):
    """That of Gymnasium's Pendulum-v1."""

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """-(θ² + 0.1 θ'² + 0.001 torque²), of the state x (..., 3) and the torque u (..., 1)."""
        cos, sin, rate = x.unbind(-1)
        (torque,) = u.unbind(-1)
        return -(sin.atan2(cos) ** 2 + 0.1 * rate**2 + 0.001 * torque**2)


class PendulumEnv(SystemEnv):
    """Swing a pendulum up with a torque too weak to lift it at once, and balance it: `dilqr_rl/Pendulum-v0`.

    With its default arguments it steps exactly like Gymnasium's `Pendulum-v1`: the same starts from the same seed, the same
    states and rewards (`Pendulum-v1` rounds the torques of float32 actions to float32, so that states differ by some 1e-6
    there). Unlike there, actions are scaled to [-1, 1] and physics are arguments.

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
    Start: θ uniform in [-π, π] ([-π/2, π/2] in the published presets), θ' uniform in [-1, 1] rad/s, or
        `reset(options={"state": (cos θ, sin θ, θ')})`.
    End: never terminates; truncated after 200 steps, where made by `gymnasium.make`.
    Info: "state", the float64 state (3,); "physics", a dict of numbers.

    | preset | what |
    |---|---|
    | "gymnasium", the default | Pendulum-v1: speed limit 8 rad/s |
    | "diffmpc" | the published experiments: no speed limit, starts in the upper half |
    | "diffmpc-complex" | these with the published damping and wind, see `PublishedPendulumDynamics` |
    | "windy" | "gymnasium" with a damping of 0.1 N m s and a wind of 0.5 N |

    Args:
        physics: of `PendulumDynamics`, by name: mass (kg), length (m), gravity (m/s²), damping (N m s), wind (N). Also
            `reset(options={"physics": {...}})`, on top of these and for one episode.
        preset: one of those above; the other arguments go before it.
        randomize: ranges (lowest, highest) by name, such as {"length": (0.5, 1.5)}, drawn from anew at each reset.
        max_speed: rad/s, at least 1, to which θ' is clamped; math.inf for no limit. Plans know no limit either way.
        max_torque: N m; 2 in all presets.
        render_mode: "human", "rgb_array" or None. The picture shows growing θ as counter-clockwise, as Gymnasium's does.

    Raises:
        ValueError: unknown names, impossible values or ranges, an unknown preset or render mode.

    Version history:
        v0: first version.
    """

    env_id = "dilqr_rl/Pendulum-v0"
    dynamics_class = PendulumDynamics
    horizon = 50
    cost_weights = (1.0, 1.0, 0.1, 0.001)
    cost_goal = (1.0, 0.0, 0.0, 0.0)
    ends_outside = False
    presets = {
        "gymnasium": Preset((math.pi, 1.0), {"max_speed": 8.0, "max_torque": 2.0}),
        "diffmpc": Preset((math.pi / 2, 1.0), {"max_speed": math.inf, "max_torque": 2.0}),
        "diffmpc-complex": Preset(
            (math.pi / 2, 1.0), {"max_speed": math.inf, "max_torque": 2.0}, dynamics_class=PublishedPendulumDynamics
        ),
        "windy": Preset((math.pi, 1.0), {"max_speed": 8.0, "max_torque": 2.0}, {"damping": 0.1, "wind": 0.5}),
    }

    def __init__(
        self,
        physics: Mapping[str, float] | None = None,
        *,
        preset: str | None = None,
        randomize: Mapping[str, tuple[float, float]] | None = None,
        max_speed: float | None = None,
        max_torque: float | None = None,
        render_mode: str | None = None,
    ) -> None:
        chosen = self.find_preset(preset)
        limits = chosen.with_limits(max_speed=max_speed, max_torque=max_torque)
        limited = limits["max_speed"] != math.inf
        least = chosen.start[1]
        speed = check_number("max_speed", limits["max_speed"], at_least=least) if limited else math.pi / _TIME_STEP
        super().__init__(
            chosen,
            physics,
            randomize,
            render_mode,
            state_limit=(1.0, 1.0, speed),
            control_limit=check_number("max_torque", limits["max_torque"], above=0.0),
            step_settings={"max_speed": speed if limited else None},
        )

    def reward_function(self) -> nn.Module:
        """Of `Pendulum-v1`."""
        return _PendulumReward()

    def states_at(self, coordinates: Floats) -> Floats:
        """States (N, 3) at (θ, θ')."""
        angle, rate = coordinates.T
        return np.stack((np.cos(angle), np.sin(angle), rate), axis=1)

    def paint(self, drawing: Drawing, states: Floats, physics: Mapping[str, Floats], efforts: Floats) -> None:
        """The rod, and an arrow for the torque."""
        angle = np.arctan2(states[:, 1], states[:, 0])
        draw_pendulum(drawing, angle=angle, length=physics["length"], effort=efforts[:, 0])


class PendulumPixelsEnv(PixelEnv, PendulumEnv):
    """`PendulumEnv`, seen by a camera: `dilqr_rl/PendulumPixels-v0`.

    | observation | meaning |
    |---|---|
    | (size, size, channels) uint8 | the last frame_stack frames along the channels, oldest first |

    The state stays in `info["state"]`. Rates show only in a stack of two frames or more.

    Args:
        physics: as all other arguments that aren't named here, of `PendulumEnv`.
        size: of a frame, pixels a side, from 16 to 512; 64 by default. The published experiments have 224.
        frame_stack: frames in an observation, 4 by default. At an episode's start they are all the same.
        grey: one channel (luminance) a frame instead of three.
        style: "picture", as a person sees it but without the arrow of the torque: from a length of 1.3 m on the view shrinks to
            fit the rod in. "line": as published, one line from the centre, dark on white, as long whatever the physics.

    Version history:
        v0: first version.
    """

    env_id = "dilqr_rl/PendulumPixels-v0"

    def paint_line(self, drawing: Drawing, states: Floats, physics: Mapping[str, Floats]) -> None:
        """A line from the centre, as long whatever the physics."""
        draw_line(drawing, start=(0.5, 0.5), angle=np.arctan2(states[:, 1], states[:, 0]), length=LINE_LENGTH)


class PendulumVectorEnv(SystemVectorEnv):
    """Many `PendulumEnv` as one: gymnasium.make_vec("dilqr_rl/Pendulum-v0", num_envs)."""

    env_class = PendulumEnv


class PendulumPixelsVectorEnv(SystemVectorEnv):
    """Many `PendulumPixelsEnv` as one: gymnasium.make_vec("dilqr_rl/PendulumPixels-v0", num_envs)."""

    env_class = PendulumPixelsEnv
