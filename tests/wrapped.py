"""Environments in wrappers: for tests, and for the processes that tests start, which have to find them by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import wrappers
from policy_data import ENV
from stable_baselines3.common.monitor import Monitor

Env = gym.Env[Any, Any]
LOW, HIGH = np.float32(-1.0), np.float32(1.0)
SIZES = np.array([1.0, 1.0, 8.0], np.float32)  # of Pendulum-v1's observations


class Dict(gym.ObservationWrapper[Any, Any, Any]):
    """{"all": the observation, "more": its first number}."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        more = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.observation_space = gym.spaces.Dict({"all": env.observation_space, "more": more})

    def observation(self, observation: Any) -> Any:
        return {"all": observation, "more": observation[:1]}


class Reversed(gym.ObservationWrapper[Any, Any, Any]):
    """The same space, but its cosine is called sine."""

    def observation(self, observation: Any) -> Any:
        return observation[[1, 0, 2]]


class Late(gym.ObservationWrapper[Any, Any, Any]):
    """The observation before."""

    last: Any = None

    def observation(self, observation: Any) -> Any:
        self.last, shown = observation, observation if self.last is None else self.last
        return shown


class Within(gym.ObservationWrapper[Any, Any, Any]):
    """Reads something that is only there within an episode."""

    def observation(self, observation: Any) -> Any:
        return observation * self.unwrapped.last_u  # type: ignore[attr-defined]


class AsDoubles(gym.ObservationWrapper[Any, Any, Any]):
    """What DtypeObservation does, which can't make this space without a warning."""

    observation_space = gym.spaces.Box(-SIZES.astype(np.float64), SIZES.astype(np.float64), dtype=np.float64)

    def observation(self, observation: Any) -> Any:
        return observation.astype(np.float64)


CHANGED: dict[str, Callable[[Env], Env]] = {
    "RescaleObservation": lambda env: wrappers.RescaleObservation(env, LOW, HIGH),
    "FrameStackObservation": lambda env: wrappers.FrameStackObservation(env, 2),
    "TimeAwareObservation": wrappers.TimeAwareObservation,
    "AsDoubles": AsDoubles,
    "DelayObservation": lambda env: wrappers.DelayObservation(env, 1),
    "MaxAndSkipObservation": wrappers.MaxAndSkipObservation,
    "DiscretizeObservation": lambda env: wrappers.DiscretizeObservation(env, 5),
    "TransformObservation": lambda env: wrappers.TransformObservation(env, lambda seen: 0.5 * seen, None),
    "Dict": Dict,
    "Reversed": Reversed,
    "Late": Late,
    "Within": Within,
    "ReshapeObservation": lambda env: wrappers.ReshapeObservation(env, (3, 1)),
}
if not hasattr(wrappers, "DiscretizeObservation"):  # before Gymnasium 1.3
    del CHANGED["DiscretizeObservation"]
PASSED_ON: dict[str, Callable[[Env], Env]] = {
    "TimeLimit": lambda env: wrappers.TimeLimit(env, 5),
    "OrderEnforcing and PassiveEnvChecker": lambda env: wrappers.OrderEnforcing(wrappers.PassiveEnvChecker(env)),
    "RecordEpisodeStatistics": wrappers.RecordEpisodeStatistics,
    "Autoreset": wrappers.Autoreset,
    "ClipReward": lambda env: wrappers.ClipReward(env, -1.0),
    "NormalizeReward": wrappers.NormalizeReward,
    "Monitor": Monitor,
    "FlattenObservation of what is flat": wrappers.FlattenObservation,
    "TransformObservation to the same": lambda env: wrappers.TransformObservation(
        env, lambda seen: np.clip(seen, -10, 10), None
    ),
    "DelayObservation by nothing": lambda env: wrappers.DelayObservation(env, 0),
    "scaled and back": lambda env: wrappers.RescaleObservation(wrappers.RescaleObservation(env, LOW, HIGH), -SIZES, SIZES),
    "out of a Dict": lambda env: wrappers.FlattenObservation(wrappers.FilterObservation(Dict(env), ["all"])),
}


def changed(name: str) -> Env:
    return CHANGED[name](gym.make(ENV))
