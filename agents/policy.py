"""`MPCPolicy`: a Stable-Baselines3 policy whose mean action is the first control of a plan."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from dilqr_rl.agents.checkpoints import load_policy, save_policy
from dilqr_rl.agents.cold_start import best_of_swings
from dilqr_rl.agents.environments import as_task, refuse_normalised
from dilqr_rl.agents.learnable import make_learnable, parameter_values, set_physics
from dilqr_rl.options import ILQROptions
from dilqr_rl.planner import ILQR
from dilqr_rl.problem import ControlProblem
from dilqr_rl.solution import Solution
from dilqr_rl.tasks import ControlTask, find_task

__all__ = ["MPCPolicy"]

_PLANNING = ILQROptions(max_iterations=50, tolerance=1e-5)


class MPCPolicy(ActorCriticPolicy):
    """Plans from every observation with a model of the environment, and acts with the plan's first control.

    `MPCPolicy.for_env(env)` makes a ready controller. As a Stable-Baselines3 policy: PPO(MPCPolicy, env,
    policy_kwargs={"task": ...}). What `learn` names is trained by any loss on the actions; the rest of the model stays as
    it is.

    `predict` carries the last plan in its `state` and starts the next one from it. All else (`forward`, `evaluate_actions`,
    `get_distribution`, and so cloning and PPO) plans anew from zero controls: equal observations give equal actions. With
    warm_start=False `predict` does so too.

    Args:
        observation_space: a Box, of the shape that the task's `observation_to_state` takes.
        action_space: a Box.
        lr_schedule: learning rate, from Stable-Baselines3.
        task: the environment's model, or the id of an environment whose model is known.
        horizon: steps to look ahead; the task's default if None.
        physics: replaces parameters of the model's dynamics, by name; for a model that is wrong on purpose, say.
        learn: what is trained: "physics", "weights", "goal", "terminal", or names such as "dynamics.mass". Masses, lengths
            and weights stay positive by construction.
        options: of the solver.
        gradient: of the planner.
        warm_start: let `predict` start each plan from the last one, and an episode's first plan from the best of several
            guessed swings; else from zero controls.
        **kwargs: Stable-Baselines3's own arguments of `ActorCriticPolicy`.

    Raises:
        ValueError: no task, or spaces that don't fit it; unknown names in `physics` or `learn`.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        task: ControlTask | str | None = None,
        horizon: int | None = None,
        physics: Mapping[str, float] | None = None,
        learn: Sequence[str] = ("physics",),
        options: ILQROptions = _PLANNING,
        gradient: Literal["implicit", "diffmpc", "unroll"] = "implicit",
        warm_start: bool = True,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("use_sde"):
            raise ValueError("use_sde: expected False, got True: state-dependent noise needs features, and a plan has none.")
        if kwargs.get("features_extractor_class", FlattenExtractor) is not FlattenExtractor:
            raise ValueError("features_extractor_class: expected the default; a plan starts from the observation itself.")
        self.task = as_task(task)
        _check_spaces(self.task, observation_space, action_space)
        self.settings: dict[str, Any] = {
            "horizon": horizon,
            "physics": dict(physics or {}),
            "learn": learn if isinstance(learn, str) else tuple(learn),
            "options": options,
            "gradient": gradient,
            "warm_start": warm_start,
        }
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    @classmethod
    def for_env(cls, env: gym.Env[Any, Any], **kwargs: Any) -> Self:
        """A controller for an environment whose model is known.

        Args:
            env: one of dilqr_rl.envs, Gymnasium's Pendulum-v1, or any other that `dilqr_rl.find_task` knows.
            **kwargs: of the class.

        Raises:
            ValueError: the environment's model isn't known, or an argument is wrong.
        """
        if not isinstance(env, gym.Env):
            raise ValueError(f"env: expected a Gymnasium environment, got {env!r}. Make it with gymnasium.make first.")
        refuse_normalised(env)
        return cls(env.observation_space, env.action_space, lambda _: 3e-4, task=find_task(env), **kwargs)

    def plan(
        self, observation: Tensor | NDArray[Any], params: Mapping[str, Tensor] | None = None, u_init: Tensor | None = None
    ) -> Solution:
        """The whole plan from observations (B, k), or (k,) for one; differentiable in what is learnt.

        Args:
            observation: as the environment gives it.
            params: replaces parameters of the model, as for `ILQR`.
            u_init: controls to start from, (B, T, m), in the model's unit; zero by default.
        """
        seen = torch.as_tensor(observation, device=self.device)
        if not torch.isfinite(seen).all():
            raise ValueError(f"observation: expected finite numbers, got {seen[~torch.isfinite(seen)][0].item()}.")
        return self.planner(self.task.observation_to_state(seen), params, u_init)

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Act, with the last plan as the start of the next.

        Args:
            observation: (k,), or (B, k) from a vector environment.
            state: what the last call returned; None at first.
            episode_start: (B,) bool, where `state` belongs to an episode that has ended. All, if there is no state.
            deterministic: the plan's own control; else a sample around it.

        Returns:
            The action (m,) or (B, m), and the state: the plans' controls (B, T, m), moved on by one step.

        Raises:
            ValueError: the state is of another batch or horizon.
        """
        actions, state, _ = self.act(observation, state, episode_start, deterministic)
        return actions, state

    @torch.no_grad()
    def act(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...], Solution]:
        """What `predict` returns, and the plans (B, ...) behind it, which tell how the solver fared."""
        self.set_training_mode(False)
        seen, vectorised = self.obs_to_tensor(observation)
        if not isinstance(seen, Tensor):
            raise ValueError(f"observation: expected an array, as the policy's space has it, got {type(observation).__name__}.")
        solution = self.plan(seen, u_init=self._start_controls(seen, state, episode_start))
        actions = solution.controls[:, 0] / self.task.control_per_action
        if not deterministic:
            actions = self._distribution_around(actions).sample()
        low, high = self.action_space.low, self.action_space.high  # type: ignore[attr-defined]
        clipped = np.clip(actions.cpu().numpy().astype(self.action_space.dtype), low, high)
        ahead = torch.cat((solution.controls[:, 1:], torch.zeros_like(solution.controls[:, :1])), dim=1)
        return clipped if vectorised else clipped[0], (ahead.cpu().numpy(),), solution

    @property
    def planner(self) -> ILQR:
        """The planner, the actor's part of the policy."""
        actor: _Actor = self.action_net  # type: ignore[assignment]
        return actor.planner

    @property
    def problem(self) -> ControlProblem:
        """What it solves; its parameters are the policy's."""
        return self.planner.problem

    def constructor_arguments(self) -> dict[str, Any]:
        """What rebuilds this policy, by name."""
        return self._get_constructor_parameters()

    def parameter_values(self) -> dict[str, Tensor]:
        """The model's parameters as they stand, by name: "dynamics.mass", "stage_cost.goal", ..."""
        return parameter_values(self.problem)

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a checkpoint (safetensors, with its settings as JSON inside), whole or not at all.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
            ValueError: the task can't be found again by its id.
        """
        save_policy(self, path, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "auto") -> Self:
        """Read a checkpoint of `save`. It holds numbers and settings only: nothing in it is ever executed.

        Raises:
            CheckpointError: a ValueError; the file isn't such a checkpoint, or of another version.
        """
        return load_policy(cls, path, device)

    def __reduce__(self) -> tuple[Any, ...]:
        """How to pickle and copy: torch refuses to pickle the parametrised modules inside as they are."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        state = _State(self.state_dict(), self.optimizer.state_dict(), trained, self.training, self.device)
        return _rebuild, (type(self), self._get_constructor_parameters(), state)

    def _start_controls(
        self, seen: Tensor, state: tuple[NDArray[Any], ...] | None, episode_start: NDArray[Any] | None
    ) -> Tensor | None:
        """Where each plan starts (B, T, m): from the last one, or at an episode's start from a guess."""
        if not self.settings["warm_start"]:
            return None
        shape = (seen.shape[0], self.problem.horizon, self.problem.control_size)
        last, fresh = _last_plans(shape, state, episode_start)
        controls = torch.as_tensor(last, dtype=torch.float64, device=seen.device)
        begins = torch.as_tensor(fresh.nonzero()[0], device=seen.device)
        if len(begins) == 0:
            return controls
        return controls.index_put((begins,), best_of_swings(self.planner, self.task.observation_to_state(seen[begins])))

    def _distribution_around(self, actions: Tensor) -> Any:
        return self.action_dist.proba_distribution(actions, self.log_std)

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = _Critic(self.features_dim, self.net_arch, self.activation_fn, self.device)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        task = self.task
        problem = copy.deepcopy(task).problem(self.settings["horizon"])
        set_physics(problem.dynamics, self.settings["physics"])
        make_learnable(problem, self.settings["learn"])
        planner = ILQR(problem, self.settings["options"], self.settings["gradient"])
        self.action_net = _Actor(planner, task)
        # Again, now that the planner's parameters are among them.
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "task": self.task, **self.settings}


class _Critic(MlpExtractor):
    """Hands the observation itself to the actor, which plans from it; the critic has its layers as ever."""

    def __init__(self, features_dim: int, net_arch: Any, activation_fn: type[nn.Module], device: torch.device) -> None:
        layers = net_arch.get("vf", []) if isinstance(net_arch, dict) else net_arch
        super().__init__(features_dim, {"pi": [], "vf": layers}, activation_fn, device)


class _Actor(nn.Module):
    """Observations (B, k) -> mean actions (B, m)."""

    def __init__(self, planner: ILQR, task: ControlTask) -> None:
        super().__init__()
        self.planner = planner
        self.observation_to_state = task.observation_to_state
        self.control_per_action = task.control_per_action

    def forward(self, observation: Tensor) -> Tensor:
        return self.planner(self.observation_to_state(observation)).controls[:, 0] / self.control_per_action


class _State(NamedTuple):
    """What a copy of a policy takes over beside its constructor's arguments."""

    weights: dict[str, Any]
    optimiser: dict[str, Any]
    trained: set[str]
    training: bool
    device: torch.device


def _rebuild(policy_class: type[MPCPolicy], arguments: dict[str, Any], state: _State) -> MPCPolicy:
    policy = policy_class(**arguments).to(state.device)
    policy.load_state_dict(state.weights)
    policy.optimizer.load_state_dict(state.optimiser)
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name in state.trained)
    return policy.train(state.training)


def _last_plans(
    shape: tuple[int, ...], state: tuple[NDArray[Any], ...] | None, episode_start: NDArray[Any] | None
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The plans (B, T, m) in `predict`'s state, and for which (B,) of them an episode begins."""
    fresh = np.full(shape[0], state is None) if episode_start is None else np.asarray(episode_start, dtype=bool)
    if fresh.shape != shape[:1]:
        raise ValueError(f"episode_start: expected the shape {shape[:1]}, got {fresh.shape}.")
    if state is None:
        return np.zeros(shape), np.ones(shape[0], dtype=bool)
    if len(state) != 1 or np.shape(state[0]) != shape:
        raise ValueError(
            f"state: expected one array {shape}, as the last predict returned it, got {[np.shape(part) for part in state]}."
        )
    return state[0], fresh


def _check_spaces(task: ControlTask, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    if not isinstance(observation_space, spaces.Box) or len(observation_space.shape) != 1:
        raise ValueError(
            f"observation_space: expected a flat Box, which {task.name}'s model turns into states, got {observation_space}."
        )
    if not isinstance(action_space, spaces.Box) or action_space.shape != (task.control_size,):
        raise ValueError(
            f"action_space: expected a Box of shape ({task.control_size},), as {task.name}'s model has, got {action_space}."
        )
    low, high = task.u_min / task.control_per_action, task.u_max / task.control_per_action
    if not (np.allclose(action_space.low, low) and np.allclose(action_space.high, high)):
        raise ValueError(
            f"action_space: expected actions from {low:g} to {high:g}, the bounds of {task.name}'s model, got {action_space}."
        )
    state = task.observation_to_state(torch.zeros(1, *observation_space.shape))
    if state.shape != (1, task.state_size):
        raise ValueError(
            f"observation_space: observation_to_state of {task.name}'s model makes shape {tuple(state.shape)[1:]} of an "
            f"observation {observation_space.shape}, but its states have ({task.state_size},)."
        )
