"""The planner as an actor: observations in, plans and their first controls out."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from dilqr_rl.agents.cost_map import CostMap, CostMapNetwork
from dilqr_rl.agents.health import SolverHealth
from dilqr_rl.agents.learnable import by_default, make_learnable, set_physics
from dilqr_rl.agents.plan_state import middle_control
from dilqr_rl.agents.telling import Teller
from dilqr_rl.agents.terminal_value import with_terminal_value
from dilqr_rl.guess import Guess
from dilqr_rl.multi_start import best_of, first_swings, swings
from dilqr_rl.options import ILQROptions
from dilqr_rl.planner import ILQR
from dilqr_rl.solution import Solution, Status
from dilqr_rl.tasks import ControlTask

__all__ = ["PLANNING", "ActorSettings", "PlanningActor"]

PLANNING = ILQROptions(max_iterations=50, tolerance=1e-5)


@dataclass(frozen=True)
class ActorSettings:
    """What a policy plans with, beside the task; see `PlanningPolicy` for what each is."""

    horizon: int | None = None
    physics: Mapping[str, float] = field(default_factory=dict)
    learn: Sequence[str] | None = None
    options: ILQROptions = PLANNING
    gradient: Literal["implicit", "diffmpc", "unroll"] = "implicit"
    cost_map: CostMap | None = None
    terminal_value: Sequence[int] | None = None
    starts: int = 1


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
        make_learnable(problem, by_default(problem) if settings.learn is None else settings.learn)
        self.planner = ILQR(problem, settings.options, settings.gradient)
        self._all_starts = swings(problem)
        self._starts = first_swings(self.planner, settings.starts)
        self.cost_map = None if settings.cost_map is None else CostMapNetwork(settings.cost_map, problem, features)
        self.observation_to_state = task.observation_to_state
        self.control_per_action = task.control_per_action
        self.health = SolverHealth()
        self._teller = Teller()

    def plan(
        self,
        observation: Tensor,
        features: Tensor,
        params: Mapping[str, Tensor] | None = None,
        guess: Guess | None = None,
    ) -> Solution:
        """The plans from observations of the state (B, k), with features (B, F) for the cost map; differentiable.

        They begin from the guess alone if there is one, else from the actor's starts.
        """
        x0, params = self._posed(observation, features, params)
        if guess is None:
            solution = best_of(self.planner, self._starts, x0, params)
        else:
            solution = self.planner(x0, params, guess=guess)
        return self._noted(solution)

    def plan_on(self, observation: Tensor, features: Tensor, last: Guess, fresh: Tensor, began: float) -> Solution:
        """The plans from the last ones and from the actor's starts; from all swings where `fresh` (B,), since nothing is known.

        A time budget begins at `began`.
        """
        x0, params = self._posed(observation, features, None)
        parts = []
        for rows, starts in ((~fresh, self._starts), (fresh, self._all_starts)):
            index = rows.nonzero().squeeze(1)
            if index.numel() > 0:
                some = {name: value[index] for name, value in params.items()}  # a cost map's, (B, ...)
                guess, share = None if starts is self._all_starts else last.select(index), index.numel() / len(fresh)
                parts.append((index, best_of(self.planner, starts, x0[index], some, guess, began, share)))
        index, solution = parts[0]
        if len(parts) > 1:
            solution = solution.select(torch.zeros_like(fresh, dtype=torch.int64))
            for index, part in parts:
                solution = solution.merge(index, part)
        return self._noted(solution)

    def _noted(self, solution: Solution) -> Solution:
        self.health.add(solution)
        self._teller.without_time(solution, self.planner.options.max_seconds)
        return solution

    def _posed(
        self, observation: Tensor, features: Tensor, params: Mapping[str, Tensor] | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        written = {} if self.cost_map is None else self.cost_map(features)
        return self.observation_to_state(observation), {**written, **(params or {})}

    def actions(self, solution: Solution) -> Tensor:
        """The plans' first controls (B, m), in the environment's unit.

        Where a plan isn't finite, the middle of the bounds; a line in the log says so.
        """
        controls, usable = solution.controls[:, 0], solution.status != Status.NONFINITE
        if not usable.all():
            self._teller.not_finite(solution)
            controls = torch.where(usable.unsqueeze(1), controls, middle_control(self.planner.problem).to(controls))
        return controls / self.control_per_action

    def forward(self, observation: Tensor, features: Tensor) -> Tensor:
        """Mean actions (B, m) from observations of the state (B, k) and features (B, F)."""
        return self.actions(self.plan(observation, features))
