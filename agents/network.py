"""The newcomer's reference: an ordinary network as the policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3.common.policies import ActorCriticPolicy

__all__ = ["network_policy"]


def network_policy(env: gym.Env[Any, Any], layers: Sequence[int] = (64, 64)) -> ActorCriticPolicy:
    """Stable-Baselines3's own `MlpPolicy` for an environment: a network from the observation to the action.

    Args:
        env: for its spaces.
        layers: widths of the hidden layers.
    """
    return ActorCriticPolicy(env.observation_space, env.action_space, lambda _: 3e-4, net_arch=list(layers))
