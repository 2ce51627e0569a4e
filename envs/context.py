"""Physics as part of the observation, for policies that adapt to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dilqr_rl.envs.base import SystemEnv
from dilqr_rl.envs.vector import SystemVectorEnv
from dilqr_rl.tasks import ControlTask

__all__ = ["ContextObservation", "ContextVectorObservation"]

_LARGEST = float(np.finfo(np.float32).max)
Observation = NDArray[np.float32]


class ContextObservation(
    gym.ObservationWrapper[Observation, NDArray[np.float32], Observation], gym.utils.RecordConstructorArgs
):
    """Appends the episode's physics to the observation: (n,) becomes (n + p,), float32.

    The bounds of what is appended are as wide as float32, since `reset(options={"physics": ...})` may set any number, which is
    clipped to them; those of masses, lengths and the like begin at 0.

    Args:
        env: one of dilqr_rl.envs, whose observations are states, wrapped or not.
        names: which of the physics, in this order; all by default.

    Raises:
        ValueError: another environment, other observations, or unknown names.
    """

    def __init__(self, env: gym.Env[Any, Any], names: Sequence[str] | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, names=names)
        super().__init__(env)
        system = env.unwrapped
        if not isinstance(system, SystemEnv):
            raise ValueError(f"env: expected an environment of dilqr_rl.envs, got {env!r}.")
        self._system, self._names = system, _read_names(system, names)
        self.observation_space = _append_bounds(env.observation_space, system, self._names)

    def observation(self, observation: Observation) -> Observation:
        """The observation (n,) and the physics (p,)."""
        return _append(observation, [self._system.physics[name] for name in self._names])

    def control_task(self) -> ControlTask:
        """The environment's model; it reads the state off the first n numbers of an observation, and not the physics."""
        size = self._system.dynamics_class.state_size
        return replace(self._system.control_task(), observation_to_state=partial(leading_numbers, count=size))


class ContextVectorObservation(gym.vector.VectorWrapper):  # which takes no types before Gymnasium 1.4
    """`ContextObservation` for a native batch: observations (N, n) become (N, n + p), `final_obs` too.

    Args:
        env: a batch of an environment of dilqr_rl.envs, whose observations are states, wrapped or not.
        names: which of the physics, in this order; all by default.

    Raises:
        ValueError: another batch, other observations, or unknown names.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], names: Sequence[str] | None = None) -> None:
        super().__init__(env)
        base = env.unwrapped
        if not isinstance(base, SystemVectorEnv):
            raise ValueError(f'env: expected a batch of dilqr_rl.envs, mode "vector_entry_point" of make_vec, got {env!r}.')
        self._batch, self._names = base, _read_names(base.system, names)
        self.single_observation_space = _append_bounds(env.single_observation_space, base.system, self._names)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """Start episodes, as the batch does."""
        observations, infos = self.env.reset(seed=seed, options=options)
        return self._with_physics(observations), infos

    def step(self, actions: Any) -> tuple[Observation, Any, Any, Any, dict[str, Any]]:
        """Apply actions, as the batch does."""
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        if "final_obs" in infos:
            physics = infos["final_info"]["physics"]
            for row in infos["_final_obs"].nonzero()[0]:
                numbers = [physics[name][row] for name in self._names]
                infos["final_obs"][row] = _append(infos["final_obs"][row], numbers)
        return self._with_physics(observations), rewards, terminated, truncated, infos

    def _with_physics(self, observations: Observation) -> Observation:
        physics = self._batch.physics
        return _append(observations, np.stack([physics[name] for name in self._names], axis=1))


def _read_names(system: SystemEnv, names: Sequence[str] | None) -> tuple[str, ...]:
    accepted = system.dynamics_class.physics_names()
    chosen = accepted if names is None else tuple(names)
    if isinstance(names, str) or not set(chosen) <= set(accepted) or not chosen:
        raise ValueError(f"names: expected some of {list(accepted)}, got {names!r}.")
    return chosen


def _append_bounds(space: gym.Space[Any], system: SystemEnv, names: tuple[str, ...]) -> gym.Space[Any]:
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"env: expected observations in a flat Box, to which physics can be appended, got {space}.")
    low = [0.0 if name in system.dynamics_class.positive else -_LARGEST for name in names]
    return gym.spaces.Box(_append(space.low, low), _append(space.high, np.full(len(low), _LARGEST)), dtype=np.float32)


def _append(observations: Observation, physics: ArrayLike) -> Observation:
    """Observations (..., n) and physics (..., p) side by side."""
    numbers = np.clip(np.asarray(physics, np.float64), -_LARGEST, _LARGEST).astype(np.float32)
    return np.concatenate((observations, numbers), axis=-1)


def leading_numbers(observation: Tensor, count: int) -> Tensor:
    """The first numbers (..., count) of observations (..., k)."""
    return observation[..., :count]
