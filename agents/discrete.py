"""Actions that are chosen from a few, each of which stands for a control."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from dilqr_rl.tasks import ControlTask

__all__ = ["ActionLogits", "controls_of", "nearest", "refuse_unlike"]


def controls_of(task: ControlTask) -> NDArray[np.float64]:
    """The control (A, m) of each action of a task that has discrete ones, in the unit of planned actions."""
    return np.asarray(task.discrete_controls, dtype=np.float64).reshape(-1, task.control_size) / np.asarray(
        task.control_per_action
    )


def refuse_unlike(task: ControlTask, action_space: spaces.Discrete) -> None:
    """Raise a ValueError where a task doesn't say what each action of a space stands for."""
    if task.discrete_controls is None:
        raise ValueError(
            f"action_space: plans are made of real numbers, and {task.name}'s model doesn't say which control each action of "
            f"{action_space} stands for. For two forces: dataclasses.replace(task, discrete_controls=[[-10.0], [10.0]])."
        )
    if len(task.discrete_controls) != action_space.n:
        raise ValueError(
            f"action_space: expected {len(task.discrete_controls)} actions, as discrete_controls of {task.name}'s model has "
            f"controls, got {action_space}."
        )


def nearest(wanted: NDArray[np.float64], controls: NDArray[np.float64]) -> NDArray[np.int64]:
    """Of the controls (A, m), the nearest to each of those wanted (B, m); each one of m counts by its range."""
    span = np.ptp(controls, axis=0)
    distance = ((wanted[:, None] - controls) / np.where(span > 0, span, 1.0)) ** 2
    return np.asarray(distance.sum(-1).argmin(1), dtype=np.int64)


class ActionLogits(nn.Module):
    """The logits of actions around a planned control: -|u - u_a|² / (2 σ²), with each one of m measured in half its range.

    σ starts at exp(log_std_init), and is learnt.

    Args:
        controls: of the actions (A, m).
        log_std_init: of σ.
    """

    def __init__(self, controls: NDArray[np.float64], log_std_init: float) -> None:
        super().__init__()
        half = 0.5 * np.ptp(controls, axis=0)
        self.controls: Tensor
        self.half_range: Tensor
        self.register_buffer("controls", torch.as_tensor(controls, dtype=torch.float32))
        self.register_buffer("half_range", torch.as_tensor(np.where(half > 0, half, 1.0), dtype=torch.float32))
        self.log_std = nn.Parameter(torch.tensor(float(log_std_init)))

    def forward(self, latent: Tensor) -> Tensor:
        """Logits (B, A) of the actor's latent (B, m + ...), which begins with the planned control."""
        planned = latent[:, : self.controls.shape[1]]
        distance = ((planned.unsqueeze(1) - self.controls) / self.half_range).square().sum(-1)
        return -0.5 * distance * (-2.0 * self.log_std).exp()
