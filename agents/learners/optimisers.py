"""What runs an epoch of a fit by the gradient of minibatches; levenberg_marquardt.py has the other way."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dilqr_rl.agents.learners.levenberg_marquardt import LevenbergMarquardt
from dilqr_rl.agents.learners.options import FitOptions
from dilqr_rl.agents.learners.segments import Segments

if TYPE_CHECKING:
    from dilqr_rl.agents.learners.base import Learner

__all__ = ["GradientDescent", "Optimiser", "make_optimiser"]


class Optimiser(Protocol):
    """Runs the epochs of a fit.

    Attributes:
        stopped: why no other epoch is to follow, as in `FitResult`; empty while one may.
    """

    stopped: str

    def run_epoch(self, epoch: int) -> float:
        """Change the learner's parameters; the training loss, of gradient descent as it was before each of its steps.

        Where this leads out of the numbers, `stopped` is "diverged" afterwards, and the parameters are of no use.
        """

    def why(self, training_loss: float, validation_loss: float) -> str:
        """`stopped`, told of a fit that hands back parameters of these losses."""

    def state(self) -> dict[str, Tensor]:
        """What a resumed fit needs beside the learner's parameters."""

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""


def make_optimiser(learner: Learner, segments: Segments, options: FitOptions) -> Optimiser:
    """The optimiser that the options name."""
    kind = LevenbergMarquardt if options.optimizer == "lm" else GradientDescent
    return kind(learner, segments, options)


class GradientDescent:
    """Adam or RMSprop over minibatches, in an order drawn anew for each epoch from the seed and the epoch alone."""

    def __init__(self, learner: Learner, segments: Segments, options: FitOptions) -> None:
        self.learner, self.segments, self.options, self.stopped = learner, segments, options, ""
        parameters = list(learner.trained_parameters().values())
        self.optimiser: torch.optim.Optimizer
        if options.optimizer == "rmsprop":
            self.optimiser = torch.optim.RMSprop(parameters, lr=options.learning_rate, alpha=options.smoothing)
        else:
            self.optimiser = torch.optim.Adam(parameters, lr=options.learning_rate)

    def run_epoch(self, epoch: int) -> float:
        """A pass over all segments, cut short by a loss or a step that isn't finite."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.options.learning_rate * self._share(epoch)
        count = len(self.segments)
        order = np.random.default_rng((self.options.seed, epoch)).permutation(count)
        total = 0.0
        for start in range(0, count, self.options.batch_size):
            batch = self.segments[torch.as_tensor(order[start : start + self.options.batch_size], device=self.learner.device)]
            loss = self._step(batch)
            if not (math.isfinite(loss) and self.learner.is_sound()):
                self.stopped = "diverged"
                return math.inf
            total += loss * len(batch)
        return total / count

    def _step(self, batch: Segments) -> float:
        self.optimiser.zero_grad()
        loss = self.learner.loss(batch).mean()
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def why(self, training_loss: float, validation_loss: float) -> str:
        """`stopped`."""
        return self.stopped

    def state(self) -> dict[str, Tensor]:
        """Torch's own state of each parameter, and whether it has diverged."""
        per_parameter: dict[int, dict[str, Any]] = self.optimiser.state_dict()["state"]
        found = {f"{index}.{key}": value for index, entry in per_parameter.items() for key, value in entry.items()}
        return {"diverged": torch.tensor(bool(self.stopped)), **found}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        per_parameter: dict[int, dict[str, Tensor]] = {}
        parameters = dict(enumerate(self.learner.trained_parameters().values()))
        for name, value in state.items():
            if name == "diverged":
                continue
            index, _, key = name.partition(".")
            expected = parameters[int(index)].shape
            if value.shape not in (expected, ()):
                raise ValueError(f"{name}: expected the shape {tuple(expected)}, got {tuple(value.shape)}")
            per_parameter.setdefault(int(index), {})[key] = value
        self.optimiser.load_state_dict({**self.optimiser.state_dict(), "state": per_parameter})
        self.stopped = "diverged" if state["diverged"] else ""

    def _share(self, epoch: int) -> float:
        """Of the learning rate, at an epoch: a cosine from 1 to `final_rate`."""
        last = self.options.final_rate
        return last + (1 - last) * 0.5 * (1 + math.cos(math.pi * epoch / self.options.epochs))
