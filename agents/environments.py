"""Environments by id, ours included: `dilqr_rl.envs` is imported by Gymnasium, not by the agents."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

import gymnasium as gym
from stable_baselines3.common.base_class import BaseAlgorithm

from dilqr_rl.tasks import ControlTask, find_task

__all__ = [
    "as_task",
    "calling_algorithm",
    "make_env",
]


def make_env(env_id: str, env_kwargs: Mapping[str, Any] | None = None, **more: Any) -> gym.Env[Any, Any]:
    """`gymnasium.make`, which also knows the ids of dilqr_rl.envs before anybody has imported them.

    Raises:
        ValueError: there is no environment of this id, or it refuses its arguments.
    """
    full = f"dilqr_rl.envs:{env_id}" if env_id.startswith("dilqr_rl/") else env_id
    try:
        return gym.make(full, **dict(env_kwargs or {}), **more)
    except (gym.error.Error, ImportError, TypeError) as error:
        raise ValueError(f"env: {env_id!r} can't be made with {dict(env_kwargs or {})}: {error}") from error


def as_task(task: ControlTask | str | None) -> ControlTask:
    """A task, or that of the environment of an id.

    Raises:
        ValueError: it is neither, or the environment's model isn't known.
    """
    if isinstance(task, ControlTask):
        return task
    if isinstance(task, str):
        env = make_env(task)
        try:
            return find_task(env)
        finally:
            env.close()
    raise ValueError(
        f"task: expected a ControlTask or an environment's id, got {task!r}. Planning takes a model: pass "
        "task=dilqr_rl.find_task(env) (in policy_kwargs, for a policy), or use for_env(env)."
    )


def calling_algorithm() -> BaseAlgorithm | None:
    """The algorithm that is constructing a policy, if one is.

    Stable-Baselines3 shows a policy its spaces only, and normalising leaves these as they are; so the algorithm is looked for
    among the callers, by the method in which algorithms make their policies. There is no other way to it.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        maker = frame.f_locals.get("self") if frame.f_code.co_name == "_setup_model" else None
        if isinstance(maker, BaseAlgorithm):
            return maker
        frame = frame.f_back
    return None
