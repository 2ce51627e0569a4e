"""Environments whose dynamics are torch modules. Importing this registers their ids, `ENVIRONMENTS`, with Gymnasium."""

import gymnasium as _gymnasium

from dilqr_rl.envs.acrobot_v1 import AcrobotDynamics, AcrobotHeight, acrobot_v1_task
from dilqr_rl.envs.base import SystemEnv
from dilqr_rl.envs.cartpole import CartPoleDynamics, CartPoleEnv, CartPolePixelsEnv
from dilqr_rl.envs.cartpole_v1 import cartpole_v1_task
from dilqr_rl.envs.context import ContextObservation, ContextVectorObservation
from dilqr_rl.envs.double_cartpole import DoubleCartPoleDynamics, DoubleCartPoleEnv
from dilqr_rl.envs.mountain_car import MountainCarDynamics, mountain_car_task, mountain_car_v0_task
from dilqr_rl.envs.pendulum import PendulumDynamics, PendulumEnv, PendulumPixelsEnv, PublishedPendulumDynamics
from dilqr_rl.envs.pendulum_v1 import pendulum_v1_task
from dilqr_rl.envs.physics import SystemDynamics
from dilqr_rl.envs.pixels import PixelEnv
from dilqr_rl.envs.presets import Preset
from dilqr_rl.envs.quadrotor import QuadrotorDynamics, QuadrotorEnv
from dilqr_rl.envs.rewards import SurvivalReward
from dilqr_rl.envs.vector import SystemVectorEnv

__all__ = [
    "ENVIRONMENTS",
    "AcrobotDynamics",
    "AcrobotHeight",
    "CartPoleDynamics",
    "CartPoleEnv",
    "CartPolePixelsEnv",
    "ContextObservation",
    "ContextVectorObservation",
    "DoubleCartPoleDynamics",
    "DoubleCartPoleEnv",
    "MountainCarDynamics",
    "PendulumDynamics",
    "PendulumEnv",
    "PendulumPixelsEnv",
    "PixelEnv",
    "Preset",
    "PublishedPendulumDynamics",
    "QuadrotorDynamics",
    "QuadrotorEnv",
    "SurvivalReward",
    "SystemDynamics",
    "SystemEnv",
    "SystemVectorEnv",
    "acrobot_v1_task",
    "cartpole_v1_task",
    "mountain_car_task",
    "mountain_car_v0_task",
    "pendulum_v1_task",
    "register_environments",
]

_STATE_ENVIRONMENTS = (PendulumEnv, CartPoleEnv, QuadrotorEnv, DoubleCartPoleEnv)
ENVIRONMENTS = {env_class.env_id: env_class for env_class in (*_STATE_ENVIRONMENTS, PendulumPixelsEnv, CartPolePixelsEnv)}


def register_environments() -> None:
    """Register the ids with Gymnasium; those already registered are left alone."""
    for env_id, env_class in ENVIRONMENTS.items():
        if env_id not in _gymnasium.registry:
            entry_point = f"{env_class.__module__}:{env_class.__name__}"
            vector_entry_point = entry_point.removesuffix("Env") + "VectorEnv"
            _gymnasium.register(env_id, entry_point, max_episode_steps=200, vector_entry_point=vector_entry_point)


register_environments()
