"""What all learners that plan share: a model, of which a part is learnt by the gradient through the planner."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn

from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.learnable import copy_values, make_learnable, parameter_values, set_physics
from dilqr_rl.agents.learners.base import Learner
from dilqr_rl.agents.learners.options import FitOptions, OptimizerName
from dilqr_rl.agents.learners.scan import scan
from dilqr_rl.agents.learners.segments import Segments
from dilqr_rl.agents.plan_state import middle_control
from dilqr_rl.agents.policy import MPCPolicy
from dilqr_rl.agents.soundness import unsound_values
from dilqr_rl.agents.telling import Teller
from dilqr_rl.checks import number
from dilqr_rl.multi_start import best_of, first_swings
from dilqr_rl.options import ILQROptions
from dilqr_rl.planner import ILQR
from dilqr_rl.problem import ControlProblem
from dilqr_rl.solution import Solution, Status
from dilqr_rl.tasks import ControlTask

__all__ = ["PlanningLearner"]

Algorithm = TypeVar("Algorithm", bound=BaseAlgorithm)

_SOLVER = ILQROptions(max_iterations=100, tolerance=1e-7)
_MOST_NUMBERS = 1000  # learnt by "lm", whose matrices have as many rows
_FINITE = "finite numbers"
_ROWS = 4096  # of a Jacobian, computed at once


class PlanningLearner(Learner):
    """Plans with a model, of which it learns a part from the demonstrated actions.

    Args:
        task: the environment's model, or the id of an environment whose model is known.
        horizon: T; the demonstrator's, if known.
        physics: where parameters of the dynamics start, by name; the task's own by default.
        weights: where the cost's weights (n+m,) start; the task's own by default.
        goal: where the cost's goal (n+m,) starts; the task's own by default.
        bounded_weights: learn weights between 0 and 1, through a sigmoid, as published; else above 0.
        learn: what is learnt, where it is less than the class learns: names such as "dynamics.mass"; see `MPCPolicy`.
        gradient: of the planner: "implicit" (exact) or "diffmpc".
        solver: settings of the planner.
        starts: from how many of `dilqr_rl.multi_start.swings` each plan begins, the cheapest of which counts; 1: zero controls.
        **settings: of a subclass.

    Raises:
        ValueError: no task, or unknown names or impossible values.
    """

    learns: ClassVar[tuple[str, ...]]
    defaults = FitOptions(optimizer="lm", epochs=200, scan_rounds=6, restarts=7)
    optimizers: ClassVar[tuple[OptimizerName, ...]] = ("lm", "adam", "rmsprop")

    def __init__(
        self,
        task: ControlTask | str,
        *,
        horizon: int | None = None,
        physics: Mapping[str, float] | None = None,
        weights: Sequence[float] | None = None,
        goal: Sequence[float] | None = None,
        bounded_weights: bool = False,
        learn: Sequence[str] | None = None,
        gradient: Literal["implicit", "diffmpc"] = "implicit",
        solver: ILQROptions = _SOLVER,
        starts: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(
            task,
            horizon=horizon,
            physics=physics or {},
            weights=None if weights is None else [number("weights", one, _FINITE) for one in weights],
            goal=None if goal is None else [number("goal", one, _FINITE) for one in goal],
            bounded_weights=bounded_weights,
            learn=None if learn is None else list(learn),
            gradient=gradient,
            solver=asdict(solver),
            starts=starts,
            **settings,
        )
        problem = copy.deepcopy(self.model()).problem(self.horizon)
        set_physics(self.known_physics(problem), physics or {})
        for name in ("weights", "goal"):
            _fill(problem, name, self.settings[name])
        self.release(problem)
        self.planner = ILQR(problem, solver, gradient)
        self._starts = first_swings(self.planner, starts)
        self._teller = Teller()
        self._from_demonstration = False
        self._learnt = tuple(name for name, parameter in problem.named_parameters() if parameter.requires_grad)
        if not self._learnt:
            raise ValueError("learn: expected something to learn, got nothing. Leave it out to learn what the class learns.")

    def model(self) -> ControlTask:
        """What it plans with: the task, unless a subclass has other dynamics."""
        return self.task

    def known_physics(self, problem: ControlProblem) -> nn.Module:
        """The part of a problem of `model` that has the numbers of the argument `physics`: its dynamics."""
        return problem.dynamics

    @property
    def problem(self) -> ControlProblem:
        """What the planner solves; its parameters are the learner's."""
        return self.planner.problem

    def controls(self, states: Tensor) -> Tensor:
        """See `Learner`; where a plan isn't finite, the middle of the bounds, and a line in the log says so."""
        solution = self._planned(states)
        self._teller.without_time(solution, self.planner.options.max_seconds)
        usable = solution.status != Status.NONFINITE
        if usable.all():
            return solution.controls
        self._teller.not_finite(solution)
        return torch.where(usable.view(-1, 1, 1), solution.controls, middle_control(self.problem).to(solution.controls))

    def _planned(self, x0: Tensor, params: Mapping[str, Tensor] | None = None, u_init: Tensor | None = None) -> Solution:
        """Plans from u_init alone if it is given, else from the learner's starts."""
        if u_init is None:
            return best_of(self.planner, self._starts, x0, params)
        return self.planner(x0, params, u_init)

    def compared(self, solution: Solution, length: int) -> Tensor:
        """What the loss compares of plans: numbers (B, R), by default the first `length` controls."""
        return solution.controls[:, :length].flatten(1)

    def demonstrated(self, segments: Segments) -> Tensor:
        """What it compares them with, (S, R)."""
        return segments.controls.flatten(1)

    def loss(self, segments: Segments) -> Tensor:
        """See `Learner`."""
        return self.errors(segments).square().mean(1)

    def errors(self, segments: Segments, params: Mapping[str, Tensor] | None = None) -> Tensor:
        """Planned less demonstrated (S, R), perhaps with other parameters than the learner's (see `ILQR`)."""
        solution = self._planned(segments.states[:, 0], params, self._first_guess(segments))
        return self.compared(solution, segments.controls.shape[1]) - self.demonstrated(segments)

    @torch.no_grad()
    def residuals(self, segments: Segments) -> Tensor:
        """See `Learner`."""
        return torch.cat([self.errors(part).reshape(-1) for part in segments.parts(_ROWS)])

    def sensitivities(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """See `Learner`. Each number of a plan is differentiated by one adjoint sweep, all of them as one batch."""
        width = self.demonstrated(segments[:1]).shape[1]
        parts = [self._sensitivities(part) for part in segments.parts(max(1, _ROWS // width))]
        residuals, jacobians = zip(*parts, strict=True)
        return torch.cat(residuals), torch.cat(jacobians)

    def _sensitivities(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """As many copies of each problem as its plan has numbers, each with parameters of its own."""
        x0, length = segments.states[:, 0], segments.controls.shape[1]
        with torch.no_grad():
            solution = self._planned(x0, None, self._first_guess(segments))
        errors = self.compared(solution, length) - self.demonstrated(segments)
        rows, width = errors.numel(), errors.shape[1]
        leaves = {
            name: parameter.detach().expand(rows, *parameter.shape).clone().requires_grad_()
            for name, parameter in self.learnt_parameters().items()
        }
        with torch.enable_grad():
            copies = self.planner(x0.repeat_interleave(width, 0), leaves, solution.controls.repeat_interleave(width, 0))
            picked = self.compared(copies, length).view(-1, width, width).diagonal(dim1=1, dim2=2).sum()
            gradients = torch.autograd.grad(picked, list(leaves.values()))
        return errors.reshape(rows), torch.cat([gradient.reshape(rows, -1) for gradient in gradients], dim=1)

    def fitted_task(self) -> ControlTask:
        """The task with what was learnt in the place of what it began with, for an `MPCPolicy` or another planner."""
        model = copy.deepcopy(self.model())
        problem = model.problem(self.horizon)
        copy_values(self.problem, problem)
        return replace(model, dynamics=problem.dynamics, stage_cost=problem.stage_cost, terminal_cost=problem.terminal_cost)

    def policy(self, **kwargs: Any) -> MPCPolicy:
        """A Stable-Baselines3 policy that plans with what was learnt, each time anew and from the learner's starts.

        To train on, use `to_sb3`.

        Args:
            **kwargs: arguments of `MPCPolicy` that differ from the learner's.

        Raises:
            ValueError: the task's environment can't be made by its id.
        """
        with closing(make_env(self.task.name, self.task.env_kwargs)) as env:
            spaces = env.observation_space, env.action_space
        return MPCPolicy(*spaces, lambda _: 3e-4, **{**self._policy_kwargs(), **kwargs})

    def to_sb3(
        self, algorithm: type[Algorithm], env: Any, *, policy_kwargs: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> Algorithm:
        """A Stable-Baselines3 model whose actor plans with what was learnt, to be trained further: same actions, same `learn`.

        Args:
            algorithm: PPO, A2C, SAC, TD3, or another class that knows an "MPCPolicy".
            env: as the algorithm takes it.
            policy_kwargs: arguments of the policy that differ from the learner's.
            **kwargs: other arguments of the algorithm.

        Raises:
            ValueError: no "MPCPolicy" for this algorithm, or an environment that doesn't fit the task.
        """
        if "MPCPolicy" not in getattr(algorithm, "policy_aliases", {}):
            raise ValueError(
                "algorithm: expected PPO, A2C, SAC or TD3 of stable_baselines3, or TQC, CrossQ or TRPO of sb3_contrib after "
                f"importing dilqr_rl.agents.contrib, got {algorithm!r}."
            )
        return algorithm("MPCPolicy", env, policy_kwargs={**self._policy_kwargs(), **(policy_kwargs or {})}, **kwargs)

    def _policy_kwargs(self) -> dict[str, Any]:
        return {
            "task": self.fitted_task(),
            "horizon": self.horizon,
            "learn": self._learn(),
            "options": self.planner.options,
            "gradient": self.planner.gradient,
            "starts": self.settings["starts"],
        }

    def release(self, problem: ControlProblem) -> None:
        """Freeze the problem but for what is learnt, which stays possible whatever an optimiser does."""
        make_learnable(problem, self._learn(), bounded_weights=self.settings["bounded_weights"])

    def _learn(self) -> tuple[str, ...]:
        return self.learns if self.settings["learn"] is None else tuple(self.settings["learn"])

    def scan(self, segments: Segments, options: FitOptions) -> bool:
        """See scan.py."""
        return scan(self, segments, options)

    def check_options(self, options: FitOptions) -> None:
        """See `Learner`."""
        super().check_options(options)
        count = sum(parameter.numel() for parameter in self.learnt_parameters().values())
        if options.optimizer == "lm" and count > _MOST_NUMBERS:
            raise ValueError(f'optimizer: expected "adam" for {count} numbers, got "lm", which is for {_MOST_NUMBERS} at most.')

    def set_attempt(self, attempt: int) -> None:
        """See `Learner`. Every other attempt begins each plan from the demonstrated controls, the others from zero.

        A plan from zero may end in another local minimum than the demonstrator's, where no gradient leads back; one from the
        demonstrated controls may stay there for no better reason than that they sit on their bounds.
        """
        self._from_demonstration = attempt % 2 == 1

    def restart(self, attempt: int, segments: Segments, options: FitOptions) -> None:
        """See `Learner`: from the second time on wherever another scan leads."""
        if attempt > 1 and options.scan_rounds > 0:
            self.scan(segments, replace(options, seed=options.seed + attempt))

    def _first_guess(self, segments: Segments) -> Tensor | None:
        """Controls to begin plans with; zero where a fit says nothing else."""
        whole = segments.controls.shape[1] == self.horizon
        return segments.controls if self._from_demonstration and self.training and whole else None

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """See `Learner`; in the order of `sensitivities`."""
        return {f"planner.problem.{name}": parameter for name, parameter in self.learnt_parameters().items()}

    def is_sound(self) -> bool:
        """See `Learner`; of masses and weights, too, not of their logarithms alone."""
        return super().is_sound() and not unsound_values(self.problem)

    def readable_parameters(self) -> dict[str, Tensor]:
        """The learnt parameters by name, masses and weights rather than their logarithms."""
        values = parameter_values(self.problem)
        plain = (name.removesuffix(".original").replace("parametrizations.", "") for name in self._learnt)
        return {name: values[name] for name in plain}

    def learnt_parameters(self) -> dict[str, nn.Parameter]:
        """What is learnt by its name in the problem, also what rests at the moment, in the order of `sensitivities`."""
        named = dict(self.problem.named_parameters())
        return {name: named[name] for name in self._learnt}


def _fill(problem: ControlProblem, name: str, values: Sequence[float] | None) -> None:
    if values is None:
        return
    parameter = getattr(problem.stage_cost, name, None)
    if not isinstance(parameter, nn.Parameter):
        raise ValueError(f"{name}: the cost of this task is a {type(problem.stage_cost).__name__}, which has none.")
    numbers = torch.as_tensor(values, dtype=parameter.dtype)
    if numbers.shape != parameter.shape or not torch.isfinite(numbers).all():
        raise ValueError(f"{name}: expected {parameter.numel()} finite numbers, got {list(values)}.")
    with torch.no_grad():
        parameter.copy_(numbers)
