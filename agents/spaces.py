"""Which part of an observation a plan starts from, and whether spaces and model fit each other."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import Tensor

from dilqr_rl.agents.discrete import refuse_unlike
from dilqr_rl.agents.observations import STATE
from dilqr_rl.instance import bind
from dilqr_rl.tasks import ControlTask

__all__ = ["actions_beyond", "check_spaces", "fitted", "has_all_actions", "state_box", "state_part"]


def state_part(observation: PyTorchObs) -> Tensor:
    """What plans start from."""
    return observation[STATE] if isinstance(observation, dict) else observation


def state_box(observation_space: spaces.Space[Any]) -> Any:
    """The space of what plans start from."""
    return observation_space[STATE] if isinstance(observation_space, spaces.Dict) else observation_space


def check_spaces(task: ControlTask, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Refuse spaces that don't fit a task's model, and a model that doesn't fit its own sizes.

    Raises:
        ValueError: the argument, what it should be, what it is, and what to do.
    """
    _check_observations(task, observation_space)
    _check_actions(task, action_space)
    _check_model(task)


def _check_observations(task: ControlTask, observation_space: spaces.Space[Any]) -> None:
    if isinstance(observation_space, spaces.Dict) and STATE not in observation_space.spaces:
        raise ValueError(
            f'observation_space: expected a part "{STATE}", from which plans start, got {list(observation_space.spaces)}. Add '
            f"the state that {task.name}'s model is about, with an ObservationWrapper."
        )
    box = state_box(observation_space)
    if not isinstance(box, spaces.Box) or len(box.shape) != 1:
        raise ValueError(
            f"observation_space: expected a flat Box, which {task.name}'s model turns into states, got {box}. Pixels, and "
            f'whatever else holds no state, go beside it: a Dict with the flat state as "{STATE}".'
        )
    try:
        state = task.observation_to_state(torch.zeros(1, *box.shape))
    except (IndexError, RuntimeError, ValueError, TypeError) as error:
        raise ValueError(
            f"observation_space: observation_to_state of {task.name}'s model can't take observations (B, {box.shape[0]}): "
            f"{error}. Write it for these, over leading batch dimensions."
        ) from error
    if state.shape != (1, task.state_size):
        raise ValueError(
            f"observation_space: observation_to_state of {task.name}'s model makes shape {tuple(state.shape)[1:]} of an "
            f"observation {box.shape}, but its states have ({task.state_size},). Correct it, or the task's state_size."
        )


def _check_actions(task: ControlTask, action_space: spaces.Space[Any]) -> None:
    if isinstance(action_space, spaces.Discrete):
        refuse_unlike(task, action_space)
        return
    if not isinstance(action_space, spaces.Box) or action_space.shape != (task.control_size,):
        raise ValueError(
            f"action_space: expected a Box of shape ({task.control_size},), as {task.name}'s model has, got {action_space}."
        )
    if task.discrete_controls is not None:
        raise ValueError(
            f"action_space: expected Discrete({len(task.discrete_controls)}), as discrete_controls of {task.name}'s model has "
            f"controls, got {action_space}. Leave them out for real-valued actions."
        )
    beyond = actions_beyond(task, action_space)
    if beyond:
        raise ValueError(f"action_space: expected one that holds {beyond}")


def actions_beyond(task: ControlTask, box: spaces.Box) -> str:
    """Which actions of a task's model a Box doesn't hold, and what to do, as the end of an error; "" if it holds all."""
    low, high = _ends(task)
    if _at_least(low, box.low) and _at_least(box.high, high):
        return ""
    return (
        f"the actions from {_told(low)} to {_told(high)} of {task.name}'s model, got {box}. Narrow the task's u_min and u_max "
        "to what the environment takes, or if it takes other units, set control_per_action, or wrap it with RescaleAction."
    )


def _ends(task: ControlTask) -> list[NDArray[np.float64]]:
    """The lowest and the highest action of a task's model, () or (m,)."""
    low, high, unit = (_array(one) for one in (task.u_min, task.u_max, task.control_per_action))
    return [end(low / unit, high / unit) for end in (np.minimum, np.maximum)]


def _array(value: Any) -> NDArray[np.float64]:
    return torch.as_tensor(value, dtype=torch.float64).detach().cpu().numpy()


def _told(end: NDArray[np.float64]) -> str:
    return f"{end:g}" if end.ndim == 0 else str(end)


def has_all_actions(task: ControlTask, action_space: spaces.Space[Any]) -> bool:
    """Whether the actions of a task's model are a Box's, from end to end."""
    low, high = _ends(task)
    return isinstance(action_space, spaces.Box) and np.allclose(action_space.low, low) and np.allclose(action_space.high, high)


def _at_least(high: Any, low: Any) -> bool:
    """Whether numbers are above others, but for rounding."""
    return bool(np.all((np.asarray(high) >= low) | np.isclose(high, low)))


def fitted(action: ArrayLike, space: spaces.Space[Any]) -> NDArray[Any]:
    """An action in a Box's own type, on the bound where it is beyond by no more than its own type's rounding.

    A learner's 0.1 in float32 is 0.100000001 in float64, which a space that ends at 0.1 doesn't hold.
    """
    given, box = np.asarray(action), cast(spaces.Box, space)
    array = given.astype(box.dtype)
    if given.dtype == box.dtype or given.dtype.kind != "f" or given.shape != box.shape:
        return array
    clipped, rounding = np.clip(array, box.low, box.high), np.finfo(given.dtype).eps
    return np.where(np.abs(array - clipped) <= rounding * np.abs(clipped), clipped, array).astype(box.dtype)


def _check_model(task: ControlTask) -> None:
    """Call the functions once, as the planner does."""
    problem = task.problem()
    x = torch.zeros(1, task.state_size, dtype=torch.float64)
    u = torch.zeros(1, task.control_size, dtype=torch.float64)
    with torch.no_grad():
        first = bind(problem, x, None).at_first_step()
        first.step(x, u, 0), first.stage_cost(x.unsqueeze(1), u.unsqueeze(1)), first.terminal_cost(x)
