"""Whether a wrapper gives actions another meaning than a model's: by what it makes of them, or else by its space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import ClipAction
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from dilqr_rl.agents.layers import copied, found_in, wrappers
from dilqr_rl.agents.spaces import has_all_actions
from dilqr_rl.tasks import ControlTask, model_environment

__all__ = ["refuse_actions_elsewhere", "refuse_changed_actions"]

_TRIED = 8  # actions, to see what wrappers make of them
_TIMES = 3  # each, to see whether it is the same every time


def refuse_changed_actions(env: gym.Env[Any, Any], task: ControlTask) -> None:
    """Raise a ValueError where a wrapper gives actions another meaning than a model's, which its bounds don't show.

    What reaches the environment is compared with the control that the task means by an action. Where the model isn't the
    environment's own, whose units nobody knows, the outermost wrapper that has other bounds must have those of the task, from
    end to end. Limits within the environment's own are a person's choice. Noise is a disturbance, discrete actions mean what a
    task says.
    """
    if isinstance(env.action_space, spaces.Discrete):
        return
    base = model_environment(env)
    changing = [one for one in wrappers(env, base) if isinstance(one, gym.ActionWrapper) and not isinstance(one, ClipAction)]
    own = found_in(base)
    if not changing:
        return
    known = own is not None and _has_model_of(task, own)
    means_it = _means_the_same(changing, task, own) if own is not None and known else None
    if means_it is None:
        changing = [one for one in changing if one.action_space != one.env.action_space]
        means_it = not changing or has_all_actions(task, changing[-1].action_space)
    if not means_it:
        raise ValueError(_changed(" and ".join(type(one).__name__ for one in changing), env.action_space, task))


def refuse_actions_elsewhere(envs: VecEnv, own: spaces.Space[Any], task: ControlTask) -> None:
    """The same for environments in other processes, of which there are the space, and which have wrappers of a class.

    Args:
        envs: the environments.
        own: the actions of one that has no wrappers.
        task: whose controls they are.

    Raises:
        ValueError: a wrapper gives actions another meaning.
    """
    space = envs.action_space
    if isinstance(space, spaces.Discrete) or space == own or has_all_actions(task, space):
        return
    if any(envs.env_is_wrapped(gym.ActionWrapper)) and not any(envs.env_is_wrapped(ClipAction)):
        raise ValueError(_changed("an ActionWrapper in another process", space, task))


def _changed(by: str, to: spaces.Space[Any], task: ControlTask) -> str:
    return (
        f"env: expected actions as {task.name}'s model has them, got them changed by {by}, to {to}. Set the task's u_min, "
        "u_max and control_per_action to these from end to end, or rescale them to the model's."
    )


def _has_model_of(task: ControlTask, own: ControlTask) -> bool:
    """Whether a task's controls are in the units of another's, since they go into the same equations."""
    if isinstance(own.dynamics, nn.Module):
        return type(task.dynamics) is type(own.dynamics)
    return task.dynamics is own.dynamics


def _means_the_same(changing: list[Any], task: ControlTask, own: ControlTask) -> bool | None:
    """Whether what wrappers make of a task's actions are its controls, in another's units; None if it can't be told."""
    chain = [copied(one, "action") for one in reversed(changing)]
    unit, wanted = task.control_per_action, own.control_per_action
    try:
        for action in _actions(task):
            reached = [_through(chain, action) * wanted for _ in range(_TIMES)]
            if not all(np.array_equal(reached[0], one) for one in reached):
                return True
            if not np.allclose(reached[0], action * unit, rtol=1e-5, atol=1e-6):  # float32
                return False
    except Exception:  # whatever a wrapper of anybody's raises where it isn't within an episode
        return None
    return True


def _actions(task: ControlTask) -> list[NDArray[Any]]:
    """Some between a task's bounds, these included."""
    low, high = (np.nan_to_num(bound, posinf=1.0, neginf=-1.0) / task.control_per_action for bound in (task.u_min, task.u_max))
    shares = np.random.default_rng(0).random((_TRIED, task.control_size))
    shares[0], shares[1] = 0.0, 1.0
    return list((low + shares * (high - low)).astype(np.float32))


def _through(chain: list[Callable[[Any], Any] | None], action: NDArray[Any]) -> NDArray[Any]:
    for change in chain:
        if change is None:
            raise ValueError("a wrapper can't be copied")
        action = change(action)
    return np.asarray(action)
