"""What a planner must know about an environment, and where to find it.

An environment and an agent meet here: the environment (or a function registered for its id) hands out a `ControlTask`, the
agent plans with it. Neither imports the other.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from dilqr_rl.checks import MOST, number, real_tensor, whole
from dilqr_rl.problem import ControlProblem

__all__ = ["ControlTask", "find_task", "known_ids", "model_environment", "register_task"]


@dataclass(frozen=True)
class ControlTask:
    """A model of an environment, in the units of the model.

    Attributes:
        name: the environment's Gymnasium id.
        dynamics: (x, u) -> next x, one environment step.
        stage_cost: (x, u) -> cost of one step.
        observation_to_state: observations (..., k) -> states (..., n).
        horizon: steps a plan looks ahead by default.
        state_size: n.
        control_size: m.
        u_min, u_max: bounds of planned controls, in their own units (N, N m). What an algorithm draws around plans keeps to the
            bounds of the environment's action space.
        control_per_action: control = control_per_action * action.
        terminal_cost: x -> cost of the last state, if any.
        discrete_controls: for an environment with actions 0 to A-1, which control each of them stands for, (A, m). Plans are of
            controls between the bounds; of the actions the one is taken that keeps what was planned and not applied small.
        starts: from how many starts a controller's plans begin by default; see `MPCPolicy`.
        env_kwargs: what the environment was made with; `find_task` fills it in.

    Raises:
        ValueError: a size that is no positive integer, a bound or a factor that is neither a number nor an array.
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
    starts: int = 1
    discrete_controls: Sequence[Sequence[float]] | None = None
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("horizon", "state_size", "control_size", "starts"):
            object.__setattr__(self, name, whole(name, getattr(self, name), most=MOST))
        expected = f"a number, or a tensor ({self.control_size},), with infinity for no bound"
        for name in ("u_min", "u_max", "control_per_action"):
            value = getattr(self, name)
            if isinstance(value, Tensor | np.ndarray):
                real = real_tensor(name, value, expected)
                if real.shape not in ((), (self.control_size,)):
                    raise ValueError(f"{name}: expected {expected}, got the shape {tuple(real.shape)}.")
                value = value if isinstance(value, Tensor) else real.numpy()
            else:
                value = number(name, value, expected, lambda value: not math.isnan(value))
            object.__setattr__(self, name, value)
        if self.discrete_controls is not None:
            self._check_discrete()

    def _check_discrete(self) -> None:
        """Raise a ValueError unless each action stands for a control within the bounds."""
        expected = f"a control of {self.control_size} numbers within the bounds for each action, (A, {self.control_size})"
        controls = real_tensor("discrete_controls", self.discrete_controls, expected)
        within = controls.ndim == 2 and controls.shape[1] == self.control_size and len(controls) > 1
        if not within or not ((controls >= self.u_min) & (controls <= self.u_max)).all():
            raise ValueError(f"discrete_controls: expected {expected}, got {self.discrete_controls!r}.")

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


_OWN_IDS = ("dilqr_rl/CartPole-v0", "dilqr_rl/DoubleCartPole-v0", "dilqr_rl/Pendulum-v0", "dilqr_rl/Quadrotor-v0")
# Environments that are not ours, by id: "module:function", imported on first use; the function takes the environment.
_registered: dict[str, str | Callable[[Any], ControlTask]] = {
    "Acrobot-v1": "dilqr_rl.envs.acrobot_v1:acrobot_v1_task",
    "CartPole-v1": "dilqr_rl.envs.cartpole_v1:cartpole_v1_task",
    "MountainCar-v0": "dilqr_rl.envs.mountain_car:mountain_car_v0_task",
    "MountainCarContinuous-v0": "dilqr_rl.envs.mountain_car:mountain_car_task",
    "Pendulum-v1": "dilqr_rl.envs.pendulum_v1:pendulum_v1_task",
}


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
        env: an environment with a method `control_task()`, its own or a wrapper's, or one whose id was registered.

    Raises:
        ValueError: neither is the case.
    """
    base = model_environment(env)
    if hasattr(base, "num_envs"):
        raise ValueError(f"env: expected a single environment, got the batch {base!r}. Make one with gymnasium.make.")
    spec = getattr(base, "spec", None)
    entry = _registered.get(spec.id) if spec is not None else None
    if hasattr(base, "control_task"):
        task = base.control_task()
    elif entry is not None:
        task = _load(entry)(base)
    else:
        raise ValueError(
            f"env: no model is known for {spec.id if spec else type(base).__name__!r}; known ids: {known_ids()}. Give the "
            "environment a method control_task(), or call dilqr_rl.register_task(env_id, function)."
        )
    kwargs = {key: value for key, value in (spec.kwargs if spec is not None else {}).items() if key != "render_mode"}
    return replace(task, env_kwargs=kwargs)


def model_environment(env: Any) -> Any:
    """What `find_task` finds the model of: the outermost with a `control_task()`, else what is within all wrappers."""
    base = env
    while base is not env.unwrapped and not hasattr(base, "control_task"):  # a wrapper may change what a state is read from
        base = base.env
    return base


def known_ids() -> list[str]:
    """Ids of the environments of dilqr_rl.envs, and of those registered here."""
    return sorted((*_OWN_IDS, *_registered))


def _load(entry: str | Callable[[Any], ControlTask]) -> Callable[[Any], ControlTask]:
    if not isinstance(entry, str):
        return entry
    module, _, function = entry.partition(":")
    found: Callable[[Any], ControlTask] = getattr(importlib.import_module(module), function)
    return found
