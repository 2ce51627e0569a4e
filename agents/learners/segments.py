"""Demonstrations cut into segments: what a learner's loss compares at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dilqr_rl.agents.demonstrations import Demonstrations, DemonstrationsError
from dilqr_rl.tasks import ControlTask

__all__ = ["Segments", "cut"]


_SLACK = 1.001  # of the bounds: rounding
_NOT_THE_MODEL = ("physics", "randomize", "max_episode_steps")  # of an environment's arguments: what may be learnt, or nothing


@dataclass(frozen=True)
class Segments:
    """S pieces of demonstrations, each of K successive actions, in the model's units and float64.

    Attributes:
        states: (S, K+1, n).
        controls: (S, K, m).
    """

    states: Tensor
    controls: Tensor

    def __len__(self) -> int:
        return len(self.controls)

    def __getitem__(self, index: Tensor | slice) -> Segments:
        return Segments(self.states[index], self.controls[index])

    def parts(self, size: int) -> list[Segments]:
        """The same in parts of at most `size`."""
        return [self[start : start + size] for start in range(0, len(self), size)]


def cut(task: ControlTask, data: Demonstrations, length: int, device: torch.device) -> Segments:
    """Segments of a length, one after the other; what is left at an episode's end is left out.

    Args:
        task: whose model the demonstrations are read with.
        data: the demonstrations.
        length: K.
        device: where to.

    Raises:
        DemonstrationsError: they are of another environment or of other sizes, or an episode is shorter than K.
    """
    _check(task, data, length)
    states, controls = [], []
    for episode in data.episodes:
        observed = torch.tensor(episode.state_observations, device=device)  # a copy: a file's may not be written to
        state = task.observation_to_state(observed.to(torch.float64))
        control = task.control_per_action * torch.tensor(np.asarray(episode.actions), device=device).to(torch.float64)
        states.append(state.unfold(0, length + 1, length).transpose(1, 2))
        controls.append(control.unfold(0, length, length).transpose(1, 2))
    return Segments(torch.cat(states).contiguous(), torch.cat(controls).contiguous())


def _check(task: ControlTask, data: Demonstrations, length: int) -> None:
    if task.name != data.env_id:
        raise DemonstrationsError(f"demonstrations: expected {task.name}, whose model the learner has, got {data.env_id}.")
    made = [{k: v for k, v in kwargs.items() if k not in _NOT_THE_MODEL} for kwargs in (task.env_kwargs, data.env_kwargs)]
    if made[0] != made[1]:
        raise DemonstrationsError(
            f"demonstrations: expected {task.name} as the learner's task has it, made with {made[0]}, got {made[1]}. Make the "
            "learner with for_env of the environment that was recorded, or name its arguments (env_kwargs=) with the data."
        )
    first = data.episodes[0]
    if first.actions.shape[1:] != (task.control_size,):
        raise DemonstrationsError(
            f"demonstrations: expected actions ({task.control_size},), as {task.name}'s model has, got "
            f"{first.actions.shape[1:]}."
        )
    largest = max(float(np.abs(episode.actions).max()) for episode in data.episodes) * abs(task.control_per_action)
    bound = max(abs(task.u_min), abs(task.u_max))
    if largest > _SLACK * bound:
        raise DemonstrationsError(
            f"demonstrations: expected actions within the bounds of {task.name}'s control, {bound:g}, got one that "
            f"means {largest:g}. Record them in the environment's unit, and clipped as it has carried them out."
        )
    observed = first.state_observations
    shape: tuple[object, ...]
    try:
        shape = tuple(task.observation_to_state(torch.tensor(observed[:1]).double()).shape)
    except (RuntimeError, IndexError, ValueError) as error:
        shape = (str(error),)
    if shape != (1, task.state_size):
        raise DemonstrationsError(
            "demonstrations: expected observations that the task's observation_to_state turns into states "
            f"({task.state_size},); of {observed.shape[1:]} it makes {shape[1:] or shape[0]}."
        )
    shortest = min(len(episode) for episode in data.episodes)
    if shortest < length:
        raise DemonstrationsError(
            f"demonstrations: expected episodes of {length} actions or more, which are compared at a time, got one of "
            f"{shortest}. Lower the learner's horizon, or leave that episode out."
        )
