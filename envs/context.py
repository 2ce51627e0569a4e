"""Physics as part of the observation, for policies that adapt to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dilqr_rl.envs.base import SystemEnv
from dilqr_rl.tasks import ControlTask

__all__ = ["ContextObservation"]

_LARGEST = np.finfo(np.float32).max
Observation = NDArray[np.float32]


class ContextObservation(
    gym.ObservationWrapper[Observation, NDArray[np.float32], Observation], gym.utils.RecordConstructorArgs
):
    """Appends the episode's physics to the observation: (n,) becomes (n + p,), float32.

    The bounds of what is appended are as wide as float32, since `reset(options={"physics": ...})` may set any number; those of
    masses, lengths and the like begin at 0.

    Args:
        env: one of dilqr_rl.envs, whose observations are states, wrapped or not.
        names: which of the physics, in this order; all by default.

    Raises:
        ValueError: another environment, other observations, or unknown names.
    """

    def __init__(self, env: gym.Env[Any, Any], names: Sequence[str] | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, names=names)
        super().__init__(env)
        system, space = env.unwrapped, env.observation_space
        if not isinstance(system, SystemEnv):
            raise ValueError(f"env: expected an environment of dilqr_rl.envs, got {env!r}.")
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"env: expected observations in a flat Box, to which physics can be appended, got {space}.")
        accepted, positive = system.dynamics_class.physics_names(), system.dynamics_class.positive
        self._system, self._names = system, accepted if names is None else tuple(names)
        if isinstance(names, str) or not set(self._names) <= set(accepted) or not self._names:
            raise ValueError(f"names: expected some of {list(accepted)}, got {names!r}.")
        low = [0.0 if name in positive else -_LARGEST for name in self._names]
        self.observation_space = gym.spaces.Box(
            np.append(space.low, np.array(low, np.float32)),
            np.append(space.high, np.full(len(low), _LARGEST, np.float32)),
            dtype=np.float32,
        )

    def observation(self, observation: Observation) -> Observation:
        """The observation (n,) and the physics (p,)."""
        physics = self._system.physics
        return np.append(observation, np.array([physics[name] for name in self._names], np.float32))

    def control_task(self) -> ControlTask:
        """The environment's model; it reads the state off the first n numbers of an observation, and not the physics."""
        size = self._system.dynamics_class.state_size
        return replace(self._system.control_task(), observation_to_state=partial(leading_numbers, count=size))


def leading_numbers(observation: Tensor, count: int) -> Tensor:
    """The first numbers (..., count) of observations (..., k)."""
    return observation[..., :count]
