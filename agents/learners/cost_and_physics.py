"""Learners of physics, of the cost, or of both, from the demonstrated actions alone."""

from __future__ import annotations

from typing import Any, ClassVar

from dilqr_rl.agents.environments import as_task
from dilqr_rl.agents.learners.options import FitOptions
from dilqr_rl.agents.learners.planning import PlanningLearner
from dilqr_rl.checks import whole
from dilqr_rl.tasks import ControlTask

__all__ = ["CostAndPhysicsLearner", "CostLearner", "PhysicsLearner"]


class PhysicsLearner(PlanningLearner):
    """Learns the physics; the cost is known (method "dx" of Amos et al. 2018)."""

    name = "dx"
    learns = ("physics",)


class CostLearner(PlanningLearner):
    """Learns the cost's weights and goal; the physics are known (method "cost" of Amos et al. 2018).

    Plans don't change when all weights grow by the same factor, so weights are learnt up to one.

    Args:
        task: as for every planning learner.
        alternate: epochs after which weights and goal take turns, as published, where learning both at once by gradient descent
            was found unstable; 0: both at once. "lm" has no turns.
        **settings: as for every planning learner; but weights start at 0.5, the goal at 0.

    Raises:
        ValueError: as for every planning learner; the cost is no `QuadraticCost`.
    """

    name = "cost"
    learns: ClassVar[tuple[str, ...]] = ("weights", "goal")

    def __init__(self, task: ControlTask | str, *, alternate: int = 0, **settings: Any) -> None:
        alternate = whole("alternate", alternate, "a whole number of epochs from 0 on", 0)
        task = as_task(task)
        size = task.state_size + task.control_size
        given = {name: value for name, value in settings.items() if value is not None}
        super().__init__(task, **{"weights": [0.5] * size, "goal": [0.0] * size, **given}, alternate=alternate)
        if alternate and not all(any(part in name for name in self.learnt_parameters()) for part in ("weights", "goal")):
            raise ValueError(
                "alternate: expected 0 where weights and goal aren't both learnt (learn=), so that nothing takes turns."
            )

    def check_options(self, options: FitOptions) -> None:
        """See `Learner`."""
        super().check_options(options)
        if self.settings["alternate"] and options.optimizer == "lm":
            raise ValueError(
                'optimizer: expected "adam" or "rmsprop" where weights and goal take turns (alternate=), got "lm".'
            )

    def before_epoch(self, epoch: int) -> None:
        """Let the goal or the weights rest, where they take turns."""
        alternate = self.settings["alternate"]
        if not alternate:
            return
        weights_turn = (epoch // alternate) % 2 == 0
        for name, parameter in self.learnt_parameters().items():
            if name.startswith("stage_cost."):
                parameter.requires_grad_(weights_turn == ("weights" in name))


class CostAndPhysicsLearner(CostLearner):
    """Learns the physics and the cost (method "cost_dx" of Amos et al. 2018)."""

    name = "cost_dx"
    learns = ("physics", "weights", "goal")
