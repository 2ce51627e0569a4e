"""The field's baseline: a recurrent network (LSTM) from the state to the whole plan."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dilqr_rl.agents.demonstrations import Demonstrations
from dilqr_rl.agents.learners.base import Learner
from dilqr_rl.agents.learners.options import FitOptions
from dilqr_rl.agents.learners.segments import Segments
from dilqr_rl.agents.networks import draw_uniformly, perceptron, seeded
from dilqr_rl.agents.observations import state_in
from dilqr_rl.checks import MOST, whole
from dilqr_rl.tasks import ControlTask

__all__ = ["RecurrentLearner"]

Memory = tuple[Tensor, Tensor]  # of the cell, (B, width) each


class RecurrentLearner(Learner):
    """An LSTM that plans from one state, each of its controls fed back to it (method "nn" of Amos et al. 2018, section 5.3).

    The state goes through three layers into the cell, what the cell puts out through two layers into a control, and that, if it
    plans on, through three more into the cell. No bound holds its controls; actions are clipped. It computes in float32.

    It acts in one of two ways. A recurrent one sees every observation and keeps its memory from step to step: `predict` takes
    and returns it as recurrent policies of Stable-Baselines3 do, and the fit trains it for both uses, to plan and to observe
    on. Otherwise it plans anew from each observation, as published.

    Args:
        task: the environment's model, or the id of an environment whose model is known.
        horizon: T; the demonstrator's, if known.
        width: of the cell and of all layers.
        recurrent: whether `predict` keeps a memory; False is the published learner.
        seed: of the weights that it starts with.

    Raises:
        ValueError: no task, or a setting that isn't one of these.
    """

    name = "nn"
    defaults = FitOptions(optimizer="adam", epochs=1000, learning_rate=1e-4, patience=200)

    def __init__(
        self,
        task: ControlTask | str,
        *,
        horizon: int | None = None,
        width: int = 256,
        recurrent: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__(task, horizon=horizon, width=width, recurrent=recurrent, seed=seed)
        width = whole("width", width, most=MOST)
        n, m = self.task.state_size, self.task.control_size
        self.encoder = _layers((n, width, width, width), seed, 0)
        self.embedding = _layers((m, width, width, width), seed, 1)
        self.decoder = _layers((width, width, m), seed, 2)
        # Made without numbers, since torch would draw them from its global ones.
        self.cell = nn.LSTM(width, width, batch_first=True, device="meta").to_empty(device="cpu")
        draw_uniformly(self.cell, 1 / math.sqrt(width), seeded(seed, 3))

    def controls(self, states: Tensor) -> Tensor:
        """See `Learner`."""
        return self._plan(states, self.horizon)

    def segment_length(self, data: Demonstrations) -> int:
        """Whole plans; of episodes that answered each observation, as many steps, or those of the shortest episode."""
        if data.open_loop:
            return self.compared_length(data)
        return min(self.horizon, *(len(episode) for episode in data.episodes))

    def loss(self, segments: Segments) -> Tensor:
        """Mean squared error of the planned controls (S,); a recurrent one's is the mean of planning and of observing."""
        planned = self._plan(segments.states[:, 0], segments.controls.shape[1])
        answers = [planned, self._observe(segments.states[:, :-1])] if self.settings["recurrent"] else [planned]
        return torch.stack([(answer - segments.controls).square().mean((1, 2)) for answer in answers]).mean(0)

    @torch.no_grad()
    def predict(
        self,
        observation: NDArray[Any] | Mapping[str, Any],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Act, in the manner of Stable-Baselines3's recurrent policies.

        Args:
            observation: (k,), or (B, k) from a vector environment; of named ones the part "state" is read.
            state: what the last call returned, the cell's memory, two arrays (1, B, width); None for a memory of zeros.
            episode_start: (B,) bool: whose memory is of an episode that has ended, and starts again from zero.
            deterministic: there is nothing random in a learner's action.

        Returns:
            The action (m,) or (B, m), and the memory; None if the learner isn't recurrent.

        Raises:
            ValueError: the observations hold NaN or infinity, or `state` or `episode_start` is of another size.
        """
        if not self.settings["recurrent"]:
            return super().predict(observation, state, episode_start, deterministic)
        seen = state_in(observation)
        states = self.as_states(seen)
        memory = self._started(self._as_memory(state, len(states)), episode_start)
        hidden, kept = self._step(self.encoder(states.to(torch.float32)), memory)
        actions = self.as_actions(self.decoder(hidden).to(torch.float64))
        after = (hidden.unsqueeze(0).cpu().numpy(), kept.unsqueeze(0).cpu().numpy())
        return actions if np.ndim(seen) > 1 else actions[0], after

    def _plan(self, states: Tensor, length: int) -> Tensor:
        """Controls (B, length, m) from states (B, n): the cell sees one state, then its own controls."""
        seen, memory = self.encoder(states.to(torch.float32)), self._no_memory(len(states))
        answers: list[Tensor] = []
        for step in range(length):
            memory = self._step(self.embedding(answers[-1]) if step else seen, memory)
            answers.append(self.decoder(memory[0]))
        return torch.stack(answers, dim=1).to(torch.float64)

    def _observe(self, states: Tensor) -> Tensor:
        """Controls (B, K, m) from states (B, K, n), each seen in turn."""
        hidden, _ = self.cell(self.encoder(states.to(torch.float32)))
        return self.decoder(hidden).to(torch.float64)

    def _step(self, seen: Tensor, memory: Memory) -> Memory:
        """One step of the cell; the first of its memory is what it puts out."""
        return torch.lstm_cell(seen, memory, *self.cell.all_weights[0])

    def _no_memory(self, count: int) -> Memory:
        zeros = torch.zeros(count, self.settings["width"], dtype=torch.float32, device=self.device)
        return zeros, zeros

    def _as_memory(self, state: tuple[NDArray[Any], ...] | None, count: int) -> Memory:
        if state is None:
            return self._no_memory(count)
        shapes, expected = [np.shape(part) for part in state], (1, count, self.settings["width"])
        if shapes != [expected, expected]:
            raise ValueError(
                f"state: expected what predict returned for {count} observations, two arrays {expected}, got {shapes}. Pass "
                "None where an episode begins."
            )
        hidden, kept = (torch.as_tensor(part[0], dtype=torch.float32, device=self.device) for part in state)
        return hidden, kept

    def _started(self, memory: Memory, episode_start: NDArray[Any] | None) -> Memory:
        if episode_start is None:
            return memory
        count = len(memory[0])
        if np.size(episode_start) != count:
            raise ValueError(f"episode_start: expected {count} flags, one per observation, got {np.shape(episode_start)}.")
        goes_on = 1.0 - torch.as_tensor(np.reshape(episode_start, (count, 1)), dtype=torch.float32, device=self.device)
        return memory[0] * goes_on, memory[1] * goes_on


def _layers(sizes: tuple[int, ...], seed: int, part: int) -> nn.Sequential:
    return perceptron(sizes, "relu", seeded(seed, part)).to(torch.float32)
