"""Controllers for environments whose models are known, and what they see."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dilqr_rl import ILQROptions
from dilqr_rl.agents import MPCPolicy
from dilqr_rl.agents.environments import make_env

IDS = ("dilqr_rl/Pendulum-v0", "dilqr_rl/CartPole-v0", "Pendulum-v1")
each_id = pytest.mark.parametrize("env_id", IDS)


def make(env_id: str = "dilqr_rl/Pendulum-v0", **settings: Any) -> MPCPolicy:
    env = make_env(env_id)
    policy = MPCPolicy.for_env(env, **{"horizon": 5, **settings})
    env.close()
    return policy


def starts(env_id: str, count: int) -> NDArray[np.float32]:
    """Observations (count, k) of the environment."""
    env = make_env(env_id)
    seen = np.stack([env.reset(seed=seed)[0] for seed in range(count)])
    env.close()
    return seen


def near_upright(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Pendulum observations (count, 3) whose best torque lies between the bounds."""
    angle, rate = np.random.default_rng(seed).uniform(-0.04, 0.04, (2, count))
    return np.stack((np.cos(angle), np.sin(angle), rate), axis=-1).astype(np.float32)


HASTY = ILQROptions(max_iterations=1)  # plans that are cut off show where they started
