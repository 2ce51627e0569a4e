"""What a planner must know about an environment, and where to find it.

An environment and an agent meet here: the environment (or a function registered for its id) hands out a `ControlTask`, the agent
plans with it. Neither imports the other.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from dilqr_rl.problem import ControlProblem

__all__ = ["ControlTask", "find_task", "register_task"]


@dataclass(frozen=True)
class ControlTask:
    """A model of an environment, in the units of the model.

    Attributes:
        name: the environment's id.
        dynamics: (x, u) -> next x, one environment step.
        stage_cost: (x, u) -> cost of one step.
        observation_to_state: observations (..., k) -> states (..., n).
        horizon: steps a plan looks ahead by default.
        state_size: n.
        control_size: m.
        u_min, u_max: bounds of the control, in its own units (N, N m).
        control_per_action: control = control_per_action * action.
        terminal_cost: x -> cost of the last state, if any.
    """

    name: str
    dynamics: nn.Module
    stage_cost: nn.Module
    observation_to_state: Callable[[Tensor], Tensor]
    horizon: int
    state_size: int
    control_size: int
    u_min: float
    u_max: float
    control_per_action: float = 1.0
    terminal_cost: nn.Module | None = None

    def problem(self, horizon: int | None = None) -> ControlProblem:
        """The control problem that plans `horizon` steps of this task (its own default if None)."""
        return ControlProblem(
            self.dynamics,
            self.stage_cost,
            self.terminal_cost,
            horizon=self.horizon if horizon is None else horizon,
            state_size=self.state_size,
            control_size=self.control_size,
            u_min=self.u_min,
            u_max=self.u_max,
        )


# Environments that are not ours, by id: "module:function", imported on first use; the function takes the environment.
_registered: dict[str, str | Callable[[Any], ControlTask]] = {"Pendulum-v1": "dilqr_rl.envs.pendulum:pendulum_v1_task"}


def register_task(env_id: str, task: str | Callable[[Any], ControlTask]) -> None:
    """Tell `find_task` the model of an environment that doesn't bring its own.

    Args:
        env_id: the environment's Gymnasium id.
        task: a function of the unwrapped environment that returns its `ControlTask`, or where it stands, as "module:function".

    Raises:
        ValueError: `task` is neither.
    """
    if not callable(task) and not (isinstance(task, str) and task.count(":") == 1):
        raise ValueError(f'task: expected a function of the environment or "module:function", got {task!r}.')
    _registered[env_id] = task


def find_task(env: Any) -> ControlTask:
    """The model of a Gymnasium environment, wrapped or not.

    Args:
        env: an environment whose unwrapped class has a method `control_task()`, or whose id was registered.

    Raises:
        ValueError: neither is the case.
    """
    base = env.unwrapped
    if hasattr(base, "control_task"):
        return base.control_task()
    env_id = getattr(getattr(base, "spec", None), "id", None)
    entry = _registered.get(env_id) if env_id is not None else None
    if entry is None:
        raise ValueError(
            f"env: no model is known for {env_id or type(base).__name__!r}; known ids: {sorted(_registered)} and every environment of "
            "dilqr_rl.envs. Give yours a method control_task(), or call dilqr_rl.register_task(env_id, function)."
        )
    if isinstance(entry, str):
        module, _, function = entry.partition(":")
        entry = getattr(importlib.import_module(module), function)
    return entry(base)
