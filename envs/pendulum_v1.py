"""The model of Gymnasium's own pendulum."""

from __future__ import annotations

from typing import Any

from dilqr_rl.costs import QuadraticCost
from dilqr_rl.envs.base import observation_is_state
from dilqr_rl.envs.foreign import gymnasiums_own
from dilqr_rl.envs.pendulum import PendulumDynamics, PendulumEnv
from dilqr_rl.tasks import ControlTask

__all__ = ["pendulum_v1_task"]


def pendulum_v1_task(env: Any) -> ControlTask:
    """The model of Gymnasium's own `Pendulum-v1`, from the physics that the environment holds.

    Its actions are torques in N m. Its speed limit of 8 rad/s isn't part of the model.

    Args:
        env: the environment, wrapped or not.

    Raises:
        ValueError: it isn't a `Pendulum-v1`, or its physics are impossible.
    """
    base = gymnasiums_own(env, "Pendulum-v1", ("m", "l", "g", "dt", "max_torque"))
    return ControlTask(
        name="Pendulum-v1",
        dynamics=PendulumDynamics(base.m, base.l, base.g, time_step=base.dt),
        stage_cost=QuadraticCost(PendulumEnv.cost_weights, PendulumEnv.cost_goal),
        observation_to_state=observation_is_state,
        horizon=PendulumEnv.horizon,
        state_size=PendulumDynamics.state_size,
        control_size=PendulumDynamics.control_size,
        u_min=-base.max_torque,
        u_max=base.max_torque,
    )
