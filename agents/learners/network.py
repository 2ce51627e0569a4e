"""A plain network from the state to controls: the newcomer's reference."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dilqr_rl.agents.learners.base import Learner
from dilqr_rl.agents.learners.options import FitOptions
from dilqr_rl.tasks import ControlTask

__all__ = ["ACTIVATIONS", "NetworkLearner", "check_positive", "draw_uniformly", "perceptron", "seeded"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class NetworkLearner(Learner):
    """A network from the state to the next T controls, which knows nothing of physics or cost.

    What it puts out is multiplied by the bounds of the control, where there are any, so that +-2 N m and +-100 N are learnt
    alike; it may exceed them, and only actions are clipped.

    Args:
        task: the environment's model, or the id of an environment whose model is known.
        horizon: T; 1 by default, a network that acts on what it sees. Plans are learnt with their length.
        hidden: widths of the hidden layers.
        activation: "relu" or "tanh".
        seed: of the weights that it starts with.

    Raises:
        ValueError: no task, or a setting that isn't one of these.
    """

    name = "mlp"
    defaults = FitOptions(optimizer="adam", epochs=200, learning_rate=1e-3, final_rate=0.01)

    def __init__(
        self,
        task: ControlTask | str,
        *,
        horizon: int | None = None,
        hidden: Sequence[int] = (64, 64),
        activation: str = "relu",
        seed: int = 0,
    ) -> None:
        settings: dict[str, Any] = {"hidden": list(hidden), "activation": activation, "seed": seed}
        super().__init__(task, horizon=1 if horizon is None else horizon, **settings)
        sizes = (self.task.state_size, *hidden, self.horizon * self.task.control_size)
        self.layers = perceptron(sizes, activation, seeded(seed))
        low, high = self.task.u_min, self.task.u_max
        bounded = math.isfinite(low) and math.isfinite(high) and low < high
        self._centre, self._scale = (0.5 * (high + low), 0.5 * (high - low)) if bounded else (0.0, 1.0)

    def controls(self, states: Tensor) -> Tensor:
        """See `Learner`."""
        return self._centre + self._scale * self.layers(states).view(-1, self.horizon, self.task.control_size)


def perceptron(sizes: Sequence[int], activation: str, generator: torch.Generator) -> nn.Sequential:
    """Linear layers with an activation between each two of them, in float64, on weights as torch draws them.

    Args:
        sizes: of the input, of each hidden layer, and of the output.
        activation: one of ACTIVATIONS.
        generator: of the weights; the global random numbers aren't touched.

    Raises:
        ValueError: a size that isn't a positive integer, or another activation.
    """
    for size in sizes:
        check_positive("hidden", size)
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation: expected one of {[*ACTIVATIONS]}, got {activation!r}.")
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        linear = nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float64)
        draw_uniformly(linear, 1 / math.sqrt(inputs), generator)
        layers += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


@torch.no_grad()
def draw_uniformly(module: nn.Module, bound: float, generator: torch.Generator) -> None:
    """Overwrite all parameters of a module with numbers between -bound and bound, as torch's own layers start."""
    for parameter in module.parameters():
        parameter.uniform_(-bound, bound, generator=generator)


def seeded(seed: int, part: int = 0) -> torch.Generator:
    """The random numbers of one part of a network, so that no two parts start alike.

    Raises:
        ValueError: the seed isn't a whole number from 0 on.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed: expected a whole number from 0 on, got {seed!r}.")
    return torch.Generator().manual_seed(int(np.random.SeedSequence((seed, part)).generate_state(1)[0]))


def check_positive(name: str, value: int) -> None:
    """Raise a ValueError unless it is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}: expected positive integers, got {value!r}.")
