"""Environments whose dynamics are torch modules. Importing this registers dilqr_rl/Pendulum-v0 and dilqr_rl/CartPole-v0."""

import gymnasium as _gymnasium

from dilqr_rl.envs.base import SystemEnv
from dilqr_rl.envs.cartpole import CartPoleDynamics, CartPoleEnv
from dilqr_rl.envs.pendulum import PendulumDynamics, PendulumEnv, pendulum_v1_task
from dilqr_rl.envs.physics import SystemDynamics

__all__ = [
    "CartPoleDynamics",
    "CartPoleEnv",
    "PendulumDynamics",
    "PendulumEnv",
    "SystemDynamics",
    "SystemEnv",
    "pendulum_v1_task",
    "register_environments",
]


def register_environments() -> None:
    """Register the ids with Gymnasium; those already registered are left alone."""
    for env_class in (PendulumEnv, CartPoleEnv):
        if env_class.env_id not in _gymnasium.registry:
            entry_point = f"{env_class.__module__}:{env_class.__name__}"
            _gymnasium.register(env_class.env_id, entry_point=entry_point, max_episode_steps=200)


register_environments()
