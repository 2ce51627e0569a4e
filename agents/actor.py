"""The planner as an actor: observations in, plans and their first controls out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from dilqr_rl.agents.cost_map import CostMap, CostMapNetwork
from dilqr_rl.agents.health import SolverHealth
from dilqr_rl.agents.learnable import make_learnable, set_physics
from dilqr_rl.agents.terminal_value import with_terminal_value
from dilqr_rl.options import ILQROptions
from dilqr_rl.planner import ILQR
from dilqr_rl.solution import Solution
from dilqr_rl.tasks import ControlTask

__all__ = ["PLANNING", "ActorSettings", "PlanningActor"]

PLANNING = ILQROptions(max_iterations=50, tolerance=1e-5)


@dataclass(frozen=True)
class ActorSettings:
    """What a policy plans with, beside the task; see `PlanningPolicy` for what each is."""

    horizon: int | None = None
    physics: Mapping[str, float] = field(default_factory=dict)
    learn: Sequence[str] = ("physics",)
    options: ILQROptions = PLANNING
    gradient: Literal["implicit", "diffmpc", "unroll"] = "implicit"
    cost_map: CostMap | None = None
    terminal_value: Sequence[int] | None = None


class PlanningActor(nn.Module):
    """Plans from what is seen. k is the size of an observation of the state, F that of the features.

    Args:
        task: the model, which is copied.
        settings: of the plans.
        features: F.

    Raises:
        ValueError: names or values in `settings` that the model doesn't have.
    """

    def __init__(self, task: ControlTask, settings: ActorSettings, features: int) -> None:
        super().__init__()
        task = with_terminal_value(copy.deepcopy(task), settings.terminal_value)
        problem = task.problem(settings.horizon)
        set_physics(problem.dynamics, settings.physics)
        make_learnable(problem, settings.learn)
        self.planner = ILQR(problem, settings.options, settings.gradient)
        self.cost_map = None if settings.cost_map is None else CostMapNetwork(settings.cost_map, problem, features)
        self.observation_to_state = task.observation_to_state
        self.control_per_action = task.control_per_action
        self.health = SolverHealth()

    def plan(
        self,
        observation: Tensor,
        features: Tensor,
        params: Mapping[str, Tensor] | None = None,
        u_init: Tensor | None = None,
    ) -> Solution:
        """The plans from observations of the state (B, k), with features (B, F) for the cost map; differentiable."""
        if self.cost_map is not None:
            params = {**self.cost_map(features), **(params or {})}
        solution = self.planner(self.observation_to_state(observation), params, u_init)
        self.health.add(solution)
        return solution

    def actions(self, solution: Solution) -> Tensor:
        """The plans' first controls (B, m), in the environment's unit."""
        return solution.controls[:, 0] / self.control_per_action

    def forward(self, observation: Tensor, features: Tensor) -> Tensor:
        """Mean actions (B, m) from observations of the state (B, k) and features (B, F)."""
        return self.actions(self.plan(observation, features))
