"""Known physics and a small network for what they leave out, learnt through the planner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dilqr_rl.agents.learners.options import FitOptions
from dilqr_rl.agents.learners.planning import PlanningLearner
from dilqr_rl.agents.learners.segments import Segments
from dilqr_rl.agents.networks import perceptron, seeded
from dilqr_rl.checks import number
from dilqr_rl.problem import ControlProblem
from dilqr_rl.tasks import ControlTask

__all__ = ["ResidualDynamics", "ResidualLearner"]


class ResidualDynamics(nn.Module):
    """x_{t+1} = known(x_t, u_t) + correction(x_t, u_t / control_scale).

    Args:
        known: (x, u) -> next x (..., n).
        correction: (x, u) in one vector (..., n+m) -> what is added (..., n).
        control_scale: largest control, so that +-100 N don't saturate the network.

    Raises:
        ValueError: a scale that isn't above 0.
    """

    def __init__(self, known: nn.Module, correction: nn.Module, control_scale: float = 1.0) -> None:
        super().__init__()
        self.known, self.correction = known, correction
        self.control_scale = number("control_scale", control_scale, "a number above 0", lambda value: 0 < value < math.inf)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The state (..., n) after x (..., n) under u (..., m)."""
        after: Tensor = self.known(x, u) + self.correction(torch.cat((x, u / self.control_scale), dim=-1))
        return after


class ResidualLearner(PlanningLearner):
    """Learns what the known physics leave out, by the imitation loss through the planner; the cost is known.

    The network adds to the next state; its last layer is zero at first, so that it starts with the known physics.

    Args:
        task: as for every planning learner.
        hidden: widths of the network's hidden layers, with tanh.
        seed: of the weights that it starts with.
        **settings: as for every planning learner. `physics` are those of the known model, which stay as they are unless `learn`
            names them, as "dynamics.known.mass".

    Raises:
        ValueError: as for every planning learner; a width or a seed that is none.
    """

    name = "residual"
    learns = ("dynamics.correction.",)
    defaults = FitOptions(optimizer="lm", epochs=150, restarts=3)

    def __init__(
        self,
        task: ControlTask | str,
        *,
        hidden: Sequence[int] = (16,),
        seed: int = 0,
        **settings: Any,
    ) -> None:
        super().__init__(task, hidden=list(hidden), seed=seed, **settings)

    def model(self) -> ControlTask:
        """The task with a correction of its dynamics."""
        largest = max(abs(self.task.u_min), abs(self.task.u_max))
        scale = largest if math.isfinite(largest) and largest > 0 else 1.0
        correction = self._draw(seeded(self.settings["seed"]))
        return replace(self.task, dynamics=ResidualDynamics(self.task.dynamics, correction, scale))

    def known_physics(self, problem: ControlProblem) -> nn.Module:
        """See `PlanningLearner`: what the network corrects."""
        return problem.get_submodule("dynamics.known")

    def scan(self, segments: Segments, options: FitOptions) -> bool:
        """Nothing: no network is found by drawing."""
        return False

    @torch.no_grad()
    def restart(self, attempt: int, segments: Segments, options: FitOptions) -> None:
        """See `Learner`: from the known physics again, with another draw of the hidden layers."""
        drawn = self._draw(seeded(self.settings["seed"], attempt))
        self.problem.get_submodule("dynamics.correction").load_state_dict(drawn.state_dict())

    def readable_parameters(self) -> dict[str, Tensor]:
        """None where the network is learnt, whose weights say nothing to a person."""
        return {} if any(name.startswith(self.learns) for name in self._learnt) else super().readable_parameters()

    def _draw(self, generator: torch.Generator) -> nn.Sequential:
        n, m = self.task.state_size, self.task.control_size
        layers = perceptron((n + m, *self.settings["hidden"], n), "tanh", generator)
        for parameter in layers[-1].parameters():
            nn.init.zeros_(parameter)
        return layers
