"""The environments under test: every id, with physics that differ from the defaults, and how to run one."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray

from dilqr_rl.envs import ENVIRONMENTS

IDS = tuple(ENVIRONMENTS)
STATE_IDS = tuple(env_id for env_id in IDS if "Pixels" not in env_id)
PIXEL_IDS = tuple(env_id for env_id in IDS if "Pixels" in env_id)
each_id = pytest.mark.parametrize("env_id", IDS)
each_state_id = pytest.mark.parametrize("env_id", STATE_IDS)
each_pixel_id = pytest.mark.parametrize("env_id", PIXEL_IDS)


def make(env_id: str, **arguments: Any) -> Any:
    return gym.make(env_id, **arguments)


def changed_physics(env_id: str) -> dict[str, float]:
    """All physics, each a fifth more than the default; 0.1 in the place of 0."""
    defaults = make(env_id).unwrapped.physics
    return {name: 1.2 * value if value else 0.1 for name, value in defaults.items()}


def actions(env: Any, count: int, seed: int = 0) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    return generator.uniform(-1.0, 1.0, (count, *env.action_space.shape)).astype(np.float32)


def still(env: Any) -> NDArray[np.float32]:
    """No control."""
    return np.zeros(env.action_space.shape, np.float32)


def full(env: Any) -> NDArray[np.float32]:
    """All the control that there is."""
    return np.ones(env.action_space.shape, np.float32)


def roll(env: Any, steps: int = 30, seed: int = 0, **reset: Any) -> NDArray[np.float64]:
    """The float64 states of an episode of random actions."""
    _, info = env.reset(seed=seed, **reset)
    return np.array([info["state"], *(env.unwrapped.step(action)[4]["state"] for action in actions(env, steps))])
