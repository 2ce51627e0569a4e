"""Linear dynamics learnt from demonstrated actions: the controller of an LQR problem, or of one with bounds."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dilqr_rl.agents.learners.options import FitOptions
from dilqr_rl.agents.learners.planning import PlanningLearner
from dilqr_rl.agents.learners.segments import Segments
from dilqr_rl.agents.networks import seeded
from dilqr_rl.solution import Solution
from dilqr_rl.tasks import ControlTask

__all__ = ["LinearDynamics", "LinearLearner"]

_COMPARED = ("controls", "states_and_controls")
_SPREAD = 0.2  # of the start's A around the identity


class LinearDynamics(nn.Module):
    """x_{t+1} = A x_t + B u_t, both learnable.

    Args:
        A: (n, n).
        B: (n, m).

    Raises:
        ValueError: other shapes.
    """

    def __init__(self, A: Tensor, B: Tensor) -> None:
        super().__init__()
        if A.ndim != 2 or B.ndim != 2 or A.shape[0] != A.shape[1] or B.shape[0] != A.shape[0]:
            raise ValueError(f"A, B: expected the shapes (n, n) and (n, m), got {tuple(A.shape)} and {tuple(B.shape)}.")
        self.A, self.B = nn.Parameter(A.detach().clone()), nn.Parameter(B.detach().clone())

    @classmethod
    def draw(cls, state_size: int, control_size: int, generator: torch.Generator) -> LinearDynamics:
        """A = I + 0.2 N(0, 1) and B ~ N(0, 1), in float64, as Amos et al. (2018, section 5.2) draw experts and learners."""
        A = torch.randn(state_size, state_size, generator=generator, dtype=torch.float64)
        B = torch.randn(state_size, control_size, generator=generator, dtype=torch.float64)
        return cls(torch.eye(state_size, dtype=torch.float64) + _SPREAD * A, B)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The state (..., n) after x (..., n) under u (..., m)."""
        return x @ self.A.mT + u @ self.B.mT


class LinearLearner(PlanningLearner):
    """Learns A and B of linear dynamics by the imitation loss; cost and bounds are the task's (Amos et al. 2018, section 5.2).

    Args:
        task: as for every planning learner; its dynamics are used for nothing.
        compare: "controls", or "states_and_controls" as published, where the demonstrated states count as much.
        seed: of the A and B that it starts with; see `LinearDynamics.draw`.
        **settings: as for every planning learner, but there are no physics to set.

    Raises:
        ValueError: as for every planning learner; physics are given.
    """

    name = "lqr"
    learns = ("physics",)
    defaults = FitOptions(optimizer="lm", epochs=400, restarts=7)

    def __init__(
        self,
        task: ControlTask | str,
        *,
        compare: Literal["controls", "states_and_controls"] = "controls",
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if compare not in _COMPARED:
            raise ValueError(f"compare: expected one of {_COMPARED}, got {compare!r}.")
        if settings.get("physics"):
            raise ValueError(
                f"physics: the learner 'lqr' draws its A and B from a seed and has no others, got {settings['physics']}."
            )
        super().__init__(task, compare=compare, seed=seed, **settings)

    def model(self) -> ControlTask:
        """The task with linear dynamics."""
        return replace(self.task, dynamics=self._draw(seeded(self.settings["seed"])))

    def compared(self, solution: Solution, length: int) -> Tensor:
        """See `PlanningLearner`."""
        controls = super().compared(solution, length)
        if self.settings["compare"] == "controls":
            return controls
        return torch.cat((solution.states[:, 1 : length + 1].flatten(1), controls), dim=1)

    def demonstrated(self, segments: Segments) -> Tensor:
        """See `PlanningLearner`."""
        controls = super().demonstrated(segments)
        if self.settings["compare"] == "controls":
            return controls
        return torch.cat((segments.states[:, 1:].flatten(1), controls), dim=1)

    def scan(self, segments: Segments, options: FitOptions) -> bool:
        """Nothing: what it starts with is a draw already, and each restart is another."""
        return False

    @torch.no_grad()
    def restart(self, attempt: int, segments: Segments, options: FitOptions) -> None:
        """See `Learner`: from another draw."""
        drawn = self._draw(seeded(self.settings["seed"], attempt))
        self.problem.dynamics.load_state_dict(drawn.state_dict())

    def _draw(self, generator: torch.Generator) -> LinearDynamics:
        return LinearDynamics.draw(self.task.state_size, self.task.control_size, generator)
