"""The model of Gymnasium's own cart-pole, which is pushed to the left or to the right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dilqr_rl.costs import QuadraticCost
from dilqr_rl.envs.cartpole import CartPoleDynamics
from dilqr_rl.envs.foreign import gymnasiums_own
from dilqr_rl.tasks import ControlTask

__all__ = ["cartpole_v1_task"]

_HORIZON = 40  # 0.8 s


def cartpole_v1_task(env: Any) -> ControlTask:
    """The model of Gymnasium's own `CartPole-v1`, from the physics that the environment holds.

    Plans are of forces between those of its two actions. Their cost keeps the pole upright and the cart in the middle; the
    environment pays 1 for each step until the pole leans by 12 degrees or the cart is 2.4 m away.

    Args:
        env: the environment, wrapped or not.

    Raises:
        ValueError: it isn't a `CartPole-v1`, or its physics are impossible.
    """
    base = gymnasiums_own(env, "CartPole-v1", ("masscart", "masspole", "length", "gravity", "tau", "force_mag"))
    if base.kinematics_integrator != "euler":
        raise ValueError(f"env: expected the integrator 'euler', got {base.kinematics_integrator!r}, which the model hasn't.")
    return ControlTask(
        name="CartPole-v1",
        dynamics=CartPoleDynamics(base.masscart, base.masspole, base.length, base.gravity, time_step=base.tau),
        stage_cost=QuadraticCost([1.0, 0.1, 1.0, 10.0, 0.1, 1e-4], [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
        observation_to_state=_state,
        horizon=_HORIZON,
        state_size=CartPoleDynamics.state_size,
        control_size=CartPoleDynamics.control_size,
        u_min=-base.force_mag,
        u_max=base.force_mag,
        discrete_controls=((-base.force_mag,), (base.force_mag,)),
    )


def _state(observation: Tensor) -> Tensor:
    """(x, x', θ, θ') as (x, x', cos θ, sin θ, θ')."""
    position, speed, angle, rate = observation.unbind(-1)
    return torch.stack((position, speed, angle.cos(), angle.sin(), rate), dim=-1)
