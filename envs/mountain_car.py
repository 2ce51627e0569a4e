"""The model of Gymnasium's own car in a valley."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dilqr_rl.costs import QuadraticCost
from dilqr_rl.envs.base import observation_is_state
from dilqr_rl.envs.foreign import gymnasiums_own
from dilqr_rl.envs.physics import SystemDynamics
from dilqr_rl.tasks import ControlTask

__all__ = ["MountainCarDynamics", "mountain_car_task", "mountain_car_v0_task"]


class MountainCarDynamics(SystemDynamics):
    """An underpowered car in a valley; state (p, v), control the throttle in [-1, 1].

    With h the time step,
        v+ = v + h (power u - gravity cos 3p),
        p+ = p + h v+,
    as the page of Gymnasium's `MountainCarContinuous-v0` has them (Moore 1990). Positions have a unit of their own, the
    valley's bottom lies at -π/6, and time is counted in steps.

    The environment also stops the car dead at p = -1.2 and keeps |v| to 0.07 and p to 0.6. None of this is in the model: in a
    clamp that is met, every gradient ends. An episode is over before 0.6 matters, and planned drives stay clear of the other
    two: they turn at -0.7, and are never faster than 0.035.

    Args:
        power: acceleration at full throttle, per step², above 0.
        gravity: acceleration of a free car where the slope is steepest, per step², above 0.
        time_step: steps, above 0.

    Raises:
        ValueError: an impossible value.
    """

    state_size = 2
    control_size = 1
    positive = ("power", "gravity")
    power: nn.Parameter
    gravity: nn.Parameter

    def __init__(self, power: float = 0.0015, gravity: float = 0.0025, *, time_step: float = 1.0) -> None:
        super().__init__({"power": power, "gravity": gravity}, time_step)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The state (..., 2) one time step after x (..., 2), under the throttle u (..., 1)."""
        position, speed = x.unbind(-1)
        (throttle,) = u.unbind(-1)
        speed = speed + self.time_step * (self.power * throttle - self.gravity * (3 * position).cos())
        return torch.stack((position + self.time_step * speed, speed), dim=-1).to(x.dtype)


def mountain_car_task(env: Any) -> ControlTask:
    """The model of Gymnasium's own `MountainCarContinuous-v0`, from the numbers that the environment holds.

    A plan aims at the end of the road (0.6), so that it drives through the flag (0.45) instead of creeping up to it. Its 90
    steps are as long as the whole way with its run-up: with 60, no plan sees the flag, and the car stays in the valley.

    Args:
        env: the environment, wrapped or not.

    Raises:
        ValueError: it isn't a `MountainCarContinuous-v0`, or its physics are impossible.
    """
    base = gymnasiums_own(
        env, "MountainCarContinuous-v0", ("power", "min_action", "max_action", "max_position", "goal_velocity")
    )
    return _task("MountainCarContinuous-v0", base, base.power, (base.min_action, base.max_action), horizon=90)


def mountain_car_v0_task(env: Any) -> ControlTask:
    """The model of Gymnasium's own `MountainCar-v0`, whose three actions are full throttle either way, and none.

    The same car, with an engine of two thirds of the power, which needs one run-up more: hence 150 steps. The environment pays
    -1 for each step until the flag at 0.5.

    Args:
        env: the environment, wrapped or not.

    Raises:
        ValueError: it isn't a `MountainCar-v0`, or its physics are impossible.
    """
    base = gymnasiums_own(env, "MountainCar-v0", ("force", "gravity", "max_position", "goal_velocity"))
    return _task(
        "MountainCar-v0",
        base,
        base.force,
        (-1.0, 1.0),
        horizon=150,
        gravity=base.gravity,
        discrete_controls=((-1.0,), (0.0,), (1.0,)),
    )


def _task(
    name: str, base: Any, power: float, throttle: tuple[float, float], *, gravity: float = 0.0025, **more: Any
) -> ControlTask:
    return ControlTask(
        name=name,
        dynamics=MountainCarDynamics(power, gravity),
        stage_cost=QuadraticCost([1.0, 1.0, 0.1], [base.max_position, float(base.goal_velocity), 0.0]),
        observation_to_state=observation_is_state,
        state_size=MountainCarDynamics.state_size,
        control_size=MountainCarDynamics.control_size,
        u_min=throttle[0],
        u_max=throttle[1],
        **more,
    )
