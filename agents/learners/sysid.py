"""System identification: physics from the observed motion, then plans with the known cost."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from dilqr_rl.agents.demonstrations import Demonstrations
from dilqr_rl.agents.learners.options import FitOptions
from dilqr_rl.agents.learners.planning import PlanningLearner
from dilqr_rl.agents.learners.segments import Segments
from dilqr_rl.modules import call_with, everywhere

__all__ = ["SystemIdentification"]


class SystemIdentification(PlanningLearner):
    """Learns the physics by predicting each next state from state and control (method "sysid" of Amos et al. 2018).

    It takes whatever moved, expert or not; but it fits the motion, not the actions that follow from the model.
    """

    name = "sysid"
    learns = ("physics",)
    defaults = FitOptions(optimizer="lm", epochs=50)

    def segment_length(self, data: Demonstrations) -> int:
        """One step."""
        return 1

    def demonstrated(self, segments: Segments) -> Tensor:
        """The next states (S, n)."""
        return segments.states[:, 1]

    def loss(self, segments: Segments) -> Tensor:
        """Mean squared error of the predicted next states (S,)."""
        x, u, after = _points(segments)
        return (self.problem.dynamics(x, u) - after).square().mean(1)

    def scan(self, segments: Segments, options: FitOptions) -> bool:
        """Nothing: motion, unlike actions, has no bounds that hide the physics."""
        return False

    @torch.no_grad()
    def residuals(self, segments: Segments) -> Tensor:
        """See `Learner`."""
        return self._errors(self._values(), *_points(segments)).reshape(-1)

    @torch.no_grad()
    def sensitivities(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """See `Learner`."""
        parts = vmap(jacrev(self._errors), in_dims=(None, 0, 0, 0))(self._values(), *_points(segments))
        rows = segments.states[:, 1].numel()
        return self.residuals(segments), torch.cat([part.reshape(rows, -1) for part in parts.values()], dim=1)

    def _values(self) -> dict[str, Tensor]:
        return {name.removeprefix("dynamics."): parameter.detach() for name, parameter in self.learnt_parameters().items()}

    def _errors(self, values: dict[str, Tensor], x: Tensor, u: Tensor, after: Tensor) -> Tensor:
        dynamics = self.problem.dynamics
        predicted: Tensor = call_with(dynamics, everywhere(dynamics, values), x, u)
        return predicted - after


def _points(segments: Segments) -> tuple[Tensor, Tensor, Tensor]:
    """States (S, n), controls (S, m) and next states (S, n)."""
    return segments.states[:, 0], segments.controls[:, 0], segments.states[:, 1]
