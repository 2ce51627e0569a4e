"""The wrappers around an environment, looked at one by one: copies show what they change, the environments stay as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym

from dilqr_rl.tasks import ControlTask, find_task

__all__ = ["copied", "found_in", "wrappers"]


def wrappers(env: Any, base: Any) -> list[Any]:
    """From the inside, those that are around `base`."""
    found = []
    while env is not base:
        found.append(env)
        env = env.env
    return found[::-1]


def copied(wrapper: Any, method: str) -> Callable[[Any], Any] | None:
    """A method of a copy of a wrapper around the same environment, so that its own counts and queues stay as they are."""
    kept, inner = {}, wrapper.env
    while True:
        kept[id(inner)] = inner
        if not hasattr(inner, "env"):
            break
        inner = inner.env
    try:
        found: Callable[[Any], Any] = getattr(copy.deepcopy(wrapper, kept), method)
    except Exception:  # whatever a wrapper of anybody's holds that can't be copied
        return None
    return found


def found_in(env: gym.Env[Any, Any]) -> ControlTask | None:
    """The task of an environment whose model is known."""
    try:
        return find_task(env)
    except ValueError:
        return None
