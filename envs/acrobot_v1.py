"""The model of Gymnasium's own acrobot: two links that hang, and a motor between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dilqr_rl.envs.foreign import gymnasiums_own
from dilqr_rl.envs.physics import SystemDynamics
from dilqr_rl.tasks import ControlTask

__all__ = ["AcrobotDynamics", "AcrobotHeight", "acrobot_v1_task"]

_HORIZON = 30  # 6 s, some two swings


class AcrobotDynamics(SystemDynamics):
    """Two equal links of 1 m, the motor at the joint between them; state (θ1, θ2, θ1', θ2'), control the torque in N m.

    θ1 is 0 where the first link hangs, θ2 is that of the second against the first. With d1, d2, φ1 and φ2 as in Sutton and
    Barto (1998, section 11.3),
        θ2'' = (u + φ1 d2 / d1 - m l lc θ1'² sin θ2 - φ2) / (m lc² + I - d2² / d1),
        θ1'' = -(d2 θ2'' + φ1) / d1,
    and one step of Runge and Kutta's fourth order. The environment also stops rates at 4π and 9π rad/s, which plans stay
    clear of.

    Args:
        mass: of each link, kg, above 0.
        length: of each link, m, above 0; its centre of mass is in its middle.
        inertia: of each link about its centre of mass, kg m², above 0.
        gravity: m/s².
        time_step: s, above 0.

    Raises:
        ValueError: an impossible value.
    """

    state_size = 4
    control_size = 1
    positive = ("mass", "length", "inertia")
    mass: nn.Parameter
    length: nn.Parameter
    inertia: nn.Parameter
    gravity: nn.Parameter

    def __init__(
        self, mass: float = 1.0, length: float = 1.0, inertia: float = 1.0, gravity: float = 9.8, *, time_step: float = 0.2
    ) -> None:
        super().__init__({"mass": mass, "length": length, "inertia": inertia, "gravity": gravity}, time_step)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The state (..., 4) one time step after x (..., 4), under the torque u (..., 1) in N m."""
        h = self.time_step
        first = self._rates(x, u)
        second = self._rates(x + 0.5 * h * first, u)
        third = self._rates(x + 0.5 * h * second, u)
        last = self._rates(x + h * third, u)
        return (x + h / 6.0 * (first + 2.0 * second + 2.0 * third + last)).to(x.dtype)

    def _rates(self, x: Tensor, u: Tensor) -> Tensor:
        one, two, rate_one, rate_two = x.unbind(-1)
        (torque,) = u.unbind(-1)
        m, length, centre, inertia = self.mass, self.length, 0.5 * self.length, self.inertia
        coupling = m * length * centre
        d1 = m * (2.0 * centre**2 + length**2) + 2.0 * coupling * two.cos() + 2.0 * inertia
        d2 = m * centre**2 + coupling * two.cos() + inertia
        phi2 = m * centre * self.gravity * (one + two).sin()
        phi1 = -coupling * rate_two * (rate_two + 2.0 * rate_one) * two.sin()
        phi1 = phi1 + m * (centre + length) * self.gravity * one.sin() + phi2
        turn = torque + d2 / d1 * phi1 - coupling * rate_one**2 * two.sin() - phi2
        turn = turn / (m * centre**2 + inertia - d2**2 / d1)
        return torch.stack((rate_one, rate_two, -(d2 * turn + phi1) / d1, turn), dim=-1)


class AcrobotHeight(nn.Module):
    """(2 - h)² with the height h of the free end above the pivot, and a little for the torque: to get the end up.

    Args:
        torque_weight: per (N m)².
    """

    def __init__(self, torque_weight: float = 0.01) -> None:
        super().__init__()
        self.torque_weight = nn.Parameter(torch.tensor(torque_weight, dtype=torch.float64))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The cost (...,) of states (..., 4) and torques (..., 1)."""
        height = -x[..., 0].cos() - (x[..., 0] + x[..., 1]).cos()
        return (2.0 - height) ** 2 + self.torque_weight * u[..., 0] ** 2


def acrobot_v1_task(env: Any) -> ControlTask:
    """The model of Gymnasium's own `Acrobot-v1`, with the numbers that the environment holds.

    Plans are of torques between those of its three actions. The environment pays -1 for each step until the free end is 1 m
    above the pivot.

    Args:
        env: the environment, wrapped or not.

    Raises:
        ValueError: it isn't an `Acrobot-v1`, or its links are unlike.
    """
    base = gymnasiums_own(env, "Acrobot-v1", ("AVAIL_TORQUE", "LINK_MASS_1", "LINK_LENGTH_1", "LINK_MOI", "dt"))
    unlike = base.LINK_MASS_1 != base.LINK_MASS_2 or base.LINK_LENGTH_1 != base.LINK_LENGTH_2
    if unlike or {base.LINK_COM_POS_1, base.LINK_COM_POS_2} != {0.5 * base.LINK_LENGTH_1} or base.book_or_nips != "book":
        raise ValueError("env: expected an Acrobot-v1 of two equal links with the book's equations, got other numbers.")
    torques = tuple((float(torque),) for torque in base.AVAIL_TORQUE)
    return ControlTask(
        name="Acrobot-v1",
        dynamics=AcrobotDynamics(base.LINK_MASS_1, base.LINK_LENGTH_1, base.LINK_MOI, time_step=base.dt),
        stage_cost=AcrobotHeight(),
        observation_to_state=_state,
        horizon=_HORIZON,
        state_size=AcrobotDynamics.state_size,
        control_size=AcrobotDynamics.control_size,
        u_min=min(torques)[0],
        u_max=max(torques)[0],
        discrete_controls=torques,
    )


def _state(observation: Tensor) -> Tensor:
    """(cos θ1, sin θ1, cos θ2, sin θ2, θ1', θ2') as (θ1, θ2, θ1', θ2')."""
    cos_one, sin_one, cos_two, sin_two, *rates = observation.unbind(-1)
    return torch.stack((sin_one.atan2(cos_one), sin_two.atan2(cos_two), *rates), dim=-1)
