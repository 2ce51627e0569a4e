"""A plain network from the state to controls: the newcomer's reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dilqr_rl.agents.learners.base import Learner
from dilqr_rl.agents.learners.options import FitOptions
from dilqr_rl.agents.networks import perceptron, seeded
from dilqr_rl.tasks import ControlTask

__all__ = ["NetworkLearner"]


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
