"""Where data come from: what an environment was made with."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

__all__ = ["arguments_of"]


def arguments_of(spec: EnvSpec) -> dict[str, Any]:
    """What to give `make_env` beside the id, to make an environment of this spec; its render mode is left out."""
    arguments = {key: value for key, value in spec.kwargs.items() if key != "render_mode"}
    usual = gym.registry.get(spec.id)
    if usual is not None and spec.max_episode_steps != usual.max_episode_steps:
        arguments["max_episode_steps"] = -1 if spec.max_episode_steps is None else spec.max_episode_steps
    return arguments
