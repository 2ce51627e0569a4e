"""What all policies that plan share, whichever algorithm of Stable-Baselines3 they are for."""

from __future__ import annotations

import logging
import math
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from dilqr_rl.agents.actor import PLANNING, ActorSettings, PlanningActor
from dilqr_rl.agents.checkpoints import load_policy, save_policy
from dilqr_rl.agents.copies import reduced
from dilqr_rl.agents.cost_map import CostMap
from dilqr_rl.agents.discrete import controls_of
from dilqr_rl.agents.environments import as_task, calling_algorithm
from dilqr_rl.agents.health import SolverHealth
from dilqr_rl.agents.learnable import parameter_values
from dilqr_rl.agents.names import refuse_unknown_names
from dilqr_rl.agents.observations import STATE
from dilqr_rl.agents.plan_state import PlanState, State, last_plans
from dilqr_rl.agents.q_values import refuse_other_kinds
from dilqr_rl.agents.rates import make_optimiser
from dilqr_rl.agents.spaces import check_spaces, state_box, state_part
from dilqr_rl.agents.wrappers import AlgorithmsStates, refuse_changes, task_of
from dilqr_rl.checks import number, plain
from dilqr_rl.guess import Guess
from dilqr_rl.options import ILQROptions
from dilqr_rl.planner import ILQR
from dilqr_rl.problem import ControlProblem
from dilqr_rl.solution import Solution, Status
from dilqr_rl.tasks import ControlTask, find_task

__all__ = ["PlanningPolicy"]

Observation = NDArray[Any] | dict[str, NDArray[Any]]
_log = logging.getLogger("dilqr_rl")


class PlanningPolicy(BasePolicy):
    """Plans from every observation with a model of the environment, and acts with the plan's first control.

    A subclass goes before one of Stable-Baselines3's policies, whose actor its plans replace.

    Observations are a flat Box, which the task turns into states, or a Dict: its "state" is that Box, and everything in it
    goes to the critic and to the cost map. A VecNormalize may normalise the rest (norm_obs_keys=["obs"]), never the state.

    Args:
        observation_space: a Box of the shape that the task's `observation_to_state` takes, or a Dict with one as "state".
        action_space: a Box, or Discrete with a task that has `discrete_controls`.
        lr_schedule: learning rate, from Stable-Baselines3.
        task: the environment's model, or the id of an environment whose model is known. None: the model of the algorithm's own
            environment, if that is known.
        horizon: steps to look ahead; the task's default if None.
        physics: replaces parameters of the model's dynamics, by name; for a model that is wrong on purpose, say.
        learn: what is trained: "physics", "weights", "goal", "terminal" (the terminal cost, `terminal_value` included), or
            names such as "dynamics.mass"; () for nothing. None: the physics, of a model that has any. Masses, lengths and
            weights stay positive by construction.
        options: of the solver. Of max_seconds half a millisecond is kept for what `predict` does beside it; where less is left
            than one iteration takes, again and again, nothing is planned, and the log says so.
        gradient: of the planner.
        warm_start: let `predict` start each plan from the last one, too, with feedback around it, which it carries in its
            `state`, and an episode's first plan from all `dilqr_rl.multi_start.swings`.
        starts: from how many of these swings each plan begins, of which the cheapest is taken, wherever the policy plans; the
            first is zero controls, the others are for plans with several local minima.
        cost_map: a network that writes parameters of the cost from the observation, for each problem and step.
        model_rate: how many times further the optimiser steps in the model's own numbers than in networks' weights.
        terminal_value: widths of the hidden layers of a network whose value is added at the end of each plan, so that a short
            horizon can act like a long one; "terminal" in `learn` trains it. None: no network.
        **kwargs: Stable-Baselines3's own arguments of the policy.

    Raises:
        ValueError: no task, or spaces or a model that don't fit it; observations that a wrapper changes from what the task
            reads; unknown names in `physics`, `learn` or `cost_map`; an algorithm for another kind of policy.
    """

    checkpoint_format: ClassVar[str]
    collects_by_predict: ClassVar[bool] = False  # its algorithm, which keeps no state in between

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        task: ControlTask | str | None = None,
        horizon: int | None = None,
        physics: Mapping[str, float] | None = None,
        learn: Sequence[str] | None = None,
        options: ILQROptions = PLANNING,
        gradient: Literal["implicit", "diffmpc", "unroll"] = "implicit",
        warm_start: bool = False,
        starts: int = 1,
        cost_map: CostMap | None = None,
        terminal_value: Sequence[int] | None = None,
        model_rate: float = 1.0,
        **kwargs: Any,
    ) -> None:
        model_rate = number("model_rate", model_rate, "a number above 0", lambda value: 0 < value < math.inf)
        algorithm = calling_algorithm()
        refuse_other_kinds(type(self), algorithm)
        refuse_unknown_names(type(self), kwargs)
        self.task = as_task(task) if task is not None or algorithm is None else task_of(algorithm)
        self._algorithm = None if algorithm is None else AlgorithmsStates(algorithm, self.task)
        if self._algorithm is not None:
            self._algorithm.check()
        check_spaces(self.task, observation_space, action_space)
        if self.collects_by_predict:
            _refuse_off_policy(action_space, warm_start=warm_start and algorithm is not None)
        self.settings: dict[str, Any] = {
            "horizon": plain(horizon),
            "physics": plain(physics or {}),
            "learn": learn if isinstance(learn, str | None) else tuple(learn),
            "options": options,
            "gradient": gradient,
            "warm_start": warm_start,
            "starts": plain(starts),
            "cost_map": _checked_map(cost_map),
            "terminal_value": _checked_widths(terminal_value),
            "model_rate": model_rate,
        }
        by_space = CombinedExtractor if isinstance(observation_space, spaces.Dict) else FlattenExtractor
        super().__init__(observation_space, action_space, lr_schedule, **{"features_extractor_class": by_space, **kwargs})

    @classmethod
    def for_env(cls, env: gym.Env[Any, Any], **kwargs: Any) -> Self:
        """A controller for an environment whose model is known; with a warm start and the task's starts, unless told otherwise.

        Args:
            env: one of dilqr_rl.envs, of Gymnasium's own those of classic control, or any other that `dilqr_rl.find_task`
                knows.
            **kwargs: of the class; with a `task` of your own the environment's model needn't be known, and with one that has an
                `observation_to_state` of its own wrappers may change the observations.

        Raises:
            ValueError: the environment's model isn't known, a wrapper changes what it reads or what its actions mean, or an
                argument is wrong.
        """
        if not isinstance(env, gym.Env):
            raise ValueError(f"env: expected a Gymnasium environment, got {env!r}. Make it with gymnasium.make first.")
        given = kwargs.pop("task", None)
        refuse_changes(env, None if given is None else as_task(given))
        task = as_task(find_task(env) if given is None else given)
        chosen = {"task": task, "warm_start": True, "starts": task.starts, **kwargs}
        return cls(env.observation_space, env.action_space, lambda _: 3e-4, **chosen)

    @property
    @abstractmethod
    def planning(self) -> PlanningActor:
        """The actor."""

    @abstractmethod
    def features(self, observation: PyTorchObs) -> Tensor:
        """What the cost map sees of a batch of observations (B, F)."""

    @abstractmethod
    def sample_around(self, actions: Tensor, observation: PyTorchObs) -> Tensor:
        """Actions (B, m) drawn around planned ones (B, m), in the environment's unit."""

    def plan(
        self, observation: Tensor | Observation, params: Mapping[str, Tensor] | None = None, u_init: Tensor | None = None
    ) -> Solution:
        """The whole plan from observations (B, k), or (k,) for one; differentiable in what is learnt.

        Args:
            observation: as the environment gives it; for a space with several parts, a dict of these.
            params: replaces parameters of the model, as for `ILQR`.
            u_init: controls to start from, (B, T, m), in the model's unit; the policy's starts by default.
        """
        if isinstance(observation, dict):
            seen: Any = {name: torch.as_tensor(part, device=self.device) for name, part in observation.items()}
        else:
            seen = torch.as_tensor(observation, device=self.device)
        state = state_part(seen)
        self._refuse_nan(seen)
        if state.ndim == 1:
            one = {name: part.unsqueeze(0) for name, part in seen.items()} if isinstance(seen, dict) else seen.unsqueeze(0)
            return self.planning.plan(*self._read(one), params, None if u_init is None else Guess(u_init)).squeeze()
        return self.planning.plan(*self._read(seen), params, None if u_init is None else Guess(u_init))

    def _refuse_nan(self, seen: PyTorchObs) -> None:
        state = state_part(seen)
        if not torch.isfinite(state).all():
            raise ValueError(f"observation: expected finite numbers, got {state[~torch.isfinite(state)][0].item()}.")

    def _read(self, seen: PyTorchObs) -> tuple[Tensor, Tensor]:
        """The observation of the state (B, k), and the features (B, F), which only a cost map looks at."""
        state = state_part(seen)
        return state, state if self.settings["cost_map"] is None else self.features(seen)

    def predict(
        self,
        observation: Observation,
        state: State | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], State | None]:
        """Act, with the last plan as the start of the next where the policy has a warm start.

        Args:
            observation: (k,), or (B, k) from a vector environment.
            state: what the last call returned; None at first.
            episode_start: (B,) bool, where `state` belongs to an episode that has ended. All, if there is no state.
            deterministic: the plan's own control; else a sample around it.

        Returns:
            The action (m,) or (B, m), and the state, a `PlanState`: the plans, moved on by one step. Where a plan isn't
            finite, the action is the last plan's next control, or the middle of the bounds where there is none; a line in
            the log says so.

        Raises:
            ValueError: the state is of another batch or horizon.
        """
        actions, state, _ = self.act(observation, state, episode_start, deterministic)
        return actions, state

    @torch.no_grad()
    def act(
        self,
        observation: Observation,
        state: State | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], State, Solution]:
        """What `predict` returns, and the plans (B, ...) behind it, which tell how the solver fared."""
        began = time.monotonic()
        self.set_training_mode(False)
        if isinstance(observation, dict) != isinstance(self.observation_space, spaces.Dict) or isinstance(observation, tuple):
            raise ValueError(
                f"observation: expected one of {self.observation_space}, got a {type(observation).__name__}. Gymnasium's reset "
                "gives the observation and an info; only the first goes here."
            )
        seen, vectorised = self.obs_to_tensor(observation)
        seen = _single(seen)
        self._refuse_nan(seen)
        last, fresh = last_plans(state, episode_start, len(state_part(seen)), self.problem)
        if self.settings["warm_start"]:
            begins = torch.as_tensor(fresh, device=self.device)
            solution = self.planning.plan_on(*self._read(seen), last.guess(self.device), begins, began)
        else:
            solution = self.planning.plan(*self._read(seen))
        usable = (solution.status != Status.NONFINITE).cpu().numpy()
        actions = self.planning.actions(solution) if usable.all() else self._replaced(solution, usable, last)
        found, state = self._chosen(actions, seen, last.after(solution, usable), deterministic)
        return found if vectorised else found[0], state, solution

    def _chosen(
        self, planned: Tensor, seen: PyTorchObs, state: PlanState, deterministic: bool
    ) -> tuple[NDArray[Any], PlanState]:
        """Actions (B, ...) of the action space, from planned ones (B, m), and the state that knows of them."""
        space: Any = self.action_space
        if not isinstance(space, spaces.Discrete):
            actions = planned if deterministic else self.sample_around(planned, seen)
            return np.clip(actions.cpu().numpy().astype(space.dtype), space.low, space.high), state
        controls = controls_of(self.task)
        if deterministic:
            chosen, state = state.choose(planned.double().cpu().numpy(), controls)
        else:
            chosen = self.sample_around(planned, seen).cpu().numpy()
            state = state._replace(previous=controls[chosen])
        return space.start + chosen, state

    def _replaced(self, solution: Solution, usable: NDArray[np.bool_], last: PlanState) -> Tensor:
        """The actions (B, m), those of unusable plans from the last ones."""
        _log.warning("%d of %d plans aren't finite: acting by the last ones instead", (~usable).sum(), len(usable))
        new, old = solution.controls[:, 0], torch.as_tensor(last.controls[:, 0], device=self.device)
        chosen = torch.where(torch.as_tensor(usable, device=self.device).unsqueeze(1), new, old.to(new))
        return chosen / self.planning.control_per_action

    @property
    def planner(self) -> ILQR:
        """The planner, the actor's part of the policy."""
        return self.planning.planner

    @property
    def problem(self) -> ControlProblem:
        """What it solves; its parameters are the policy's."""
        return self.planner.problem

    @property
    def health(self) -> SolverHealth:
        """How its plans ended so far; `SolverHealthCallback` logs it."""
        return self.planning.health

    def set_training_mode(self, mode: bool) -> None:
        """As `BasePolicy`. Every rollout begins so, hence also one in an environment that the algorithm was given meanwhile.

        Raises:
            ValueError: a VecNormalize normalises its states, or another wrapper changes them.
        """
        if self._algorithm is not None:
            self._algorithm.check()
        super().set_training_mode(mode)

    def follow_actor(self) -> None:
        """Tell target networks, where there are any, that the actor was changed from outside."""

    def constructor_arguments(self) -> dict[str, Any]:
        """What rebuilds this policy, by name."""
        return self._get_constructor_parameters()

    def actor_settings(self) -> ActorSettings:
        """What the actor plans with."""
        chosen = {name: value for name, value in self.settings.items() if name not in ("warm_start", "model_rate")}
        return ActorSettings(**chosen)

    def parameter_values(self) -> dict[str, Tensor]:
        """The model's parameters as they stand, by name: "dynamics.mass", "stage_cost.goal", ..."""
        return parameter_values(self.problem)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a checkpoint (safetensors, with its settings as JSON inside), whole or not at all.

        Of a task that isn't known by its id the model isn't kept: give it to `load` again.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
            CheckpointError: parameters are NaN or infinite, or physics that must be above 0 aren't.
            ValueError: the policy plans or sees something else than what is found by its task's id; or spaces without words.
        """
        save_policy(self, path, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "auto", task: ControlTask | None = None) -> Self:
        """Read a checkpoint of `save`. It holds numbers and settings only: nothing in it is ever executed.

        Args:
            path: of the file.
            device: where the policy is to be.
            task: the model, where it isn't known by the environment's id: a file never chooses what is imported.

        Raises:
            CheckpointError: a ValueError; the file isn't such a checkpoint, or of another version.
        """
        return load_policy(cls, path, device, task)

    def __reduce__(self) -> tuple[Any, ...]:
        """How to pickle and copy: torch refuses to pickle the parametrised modules inside as they are."""
        return reduced(self, self._get_constructor_parameters())

    def _make_optimiser(self, module: nn.Module, lr_schedule: Schedule) -> torch.optim.Optimizer:
        rates = lr_schedule(1), self.settings["model_rate"]
        return make_optimiser(self.optimizer_class, self.optimizer_kwargs, module, self.planning, *rates)

    @property
    def _state_size(self) -> int:
        """k, of what the plans start from."""
        (size,) = state_box(self.observation_space).shape
        return size

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "task": self.task, **self.settings}


def _refuse_off_policy(action_space: spaces.Space[Any], *, warm_start: bool) -> None:
    if warm_start:
        raise ValueError(
            "warm_start: expected False for an off-policy algorithm, got True: it collects with `predict` and keeps no "
            "state, so that each plan would start from guessed swings."
        )
    if isinstance(action_space, spaces.Discrete):
        raise ValueError(f"action_space: expected a Box, since off-policy algorithms take numbers, got {action_space}.")


def _checked_map(cost_map: Any) -> CostMap | None:
    if not isinstance(cost_map, CostMap | None):
        raise ValueError(f"cost_map: expected a dilqr_rl.agents.CostMap or None, got {cost_map!r}.")
    return cost_map


def _checked_widths(widths: Any) -> tuple[int, ...] | None:
    if isinstance(widths, str) or not isinstance(widths, Sequence | None):
        raise ValueError(f"terminal_value: expected widths of layers, such as (32, 32), or None, got {widths!r}.")
    return None if widths is None else tuple(plain(list(widths)))


def _single(seen: PyTorchObs) -> PyTorchObs:
    """In the precision that Stable-Baselines3 trains with, so that `predict` sees what training sees."""
    if not isinstance(seen, dict):
        return seen.float()
    return {name: part.float() if name == STATE or part.is_floating_point() else part for name, part in seen.items()}
