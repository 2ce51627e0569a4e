"""Episodes of a policy: in environments side by side, so that their plans are solved as one batch, or in anybody's own."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from dilqr_rl.agents.demonstrations import Demonstrations, Episode
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.learners import Learner
from dilqr_rl.agents.observations import by_episode, checked_array, checked_observations, stacked
from dilqr_rl.agents.origin import arguments_of
from dilqr_rl.agents.planning_policy import PlanningPolicy
from dilqr_rl.agents.spaces import fitted
from dilqr_rl.agents.wrappers import changes, refuse_changes
from dilqr_rl.checks import MOST, whole
from dilqr_rl.tasks import ControlTask, find_task

__all__ = ["RollOuts", "record", "record_plans", "roll_out"]

_log = logging.getLogger("dilqr_rl")


@dataclass(frozen=True)
class RollOuts:
    """Episodes, and how the planner fared.

    Attributes:
        demonstrations: the episodes.
        seconds_per_step: median time of one decision for all environments that still run.
        converged: share of plans that converged; NaN for a policy that doesn't plan.
        iterations: mean iterations of a plan; NaN likewise.
    """

    demonstrations: Demonstrations
    seconds_per_step: float
    converged: float
    iterations: float

    @property
    def returns(self) -> NDArray[np.float64]:
        """(episodes,)."""
        return self.demonstrations.returns


@dataclass
class _Tally:
    seconds: list[float] = field(default_factory=list)
    converged: list[torch.Tensor] = field(default_factory=list)
    iterations: list[torch.Tensor] = field(default_factory=list)

    def mean(self, parts: list[torch.Tensor]) -> float:
        return float(torch.cat(parts).double().mean()) if parts else float("nan")


@dataclass
class _Run:
    """One environment and its episode so far."""

    env: gym.Env[Any, Any]
    observations: list[Any]
    actions: list[NDArray[Any]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False

    def step(self, action: NDArray[Any]) -> bool:
        observation, reward, self.terminated, self.truncated, _ = self.env.step(action)
        self.observations.append(copy.deepcopy(observation))  # for environments that reuse their arrays
        self.actions.append(np.array(action, ndmin=1))  # of a discrete one its number
        self.rewards.append(float(reward))
        return not (self.terminated or self.truncated)

    def episode(self) -> Episode:
        seen = stacked(self.observations)
        parts = checked_observations("observations", by_episode([seen])[0])
        actions = checked_array("actions", self.actions, ndim=2)
        return Episode(parts, actions, np.array(self.rewards), self.terminated, self.truncated)


def roll_out(
    policy: BasePolicy | Learner,
    env_id: str,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    episodes: int,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> RollOuts:
    """Run a policy's deterministic actions for a number of episodes.

    Args:
        policy: any Stable-Baselines3 policy, or a learner.
        env_id: of an environment with a time limit.
        env_kwargs: what to make it with.
        episodes: how many; episode i is reset with seed + i.
        seed: of the first.
        on_step: called with the number of actions just taken.

    Raises:
        ValueError: there is no such environment, or no episode is asked for.
    """
    episodes, seed = _checked_numbers(episodes, seed)
    runs = []
    for number in range(episodes):
        env = make_env(env_id, env_kwargs)
        runs.append(_Run(env, [copy.deepcopy(env.reset(seed=seed + number)[0])]))
    tally = _Tally()
    try:
        _run(policy, runs, tally, on_step or (lambda _: None))
    finally:
        for run in runs:
            run.env.close()
    found = Demonstrations(env_id.rpartition(":")[2], dict(env_kwargs or {}), tuple(run.episode() for run in runs))
    return RollOuts(found, float(np.median(tally.seconds)), tally.mean(tally.converged), tally.mean(tally.iterations))


def record(env: gym.Env[Any, Any], policy: Callable[[Any], ArrayLike] | Any, *, episodes: int, seed: int = 0) -> Demonstrations:
    """Run anybody's policy in anybody's environment, made and wrapped as they like, one episode after the other.

    Observations and actions are recorded as the outermost wrapper gives and takes them; `env_kwargs` tell how the environment
    was made, but not of wrappers put around it. To plan from such observations, a task says what state they mean: see
    `ControlTask.observation_to_state` and `register_task`. A policy that plans without such a task is refused where a wrapper
    changes what its model reads or what its actions mean; of others a line in the log says so.

    Args:
        env: one that ends its episodes, by itself or by a time limit.
        policy: with a method `predict` like Stable-Baselines3's (the deterministic actions are taken), or a function of an
            observation (k,), or of the dictionary that the environment gives, that returns an action (m,).
        episodes: how many; episode i is reset with seed + i.
        seed: of the first.

    Raises:
        ValueError: the environment is a batch or has no id, its observations aren't a flat box or a dictionary of arrays, or
            its actions aren't a flat box; the policy is none, its model doesn't read these observations, or its actions aren't
            in the action space; no episode is asked for.
    """
    episodes, seed = _checked_numbers(episodes, seed)
    _check_recordable(env)
    _check_reader(env, policy)
    runs = []
    for number in range(episodes):
        decide = _decider(policy)
        run = _Run(env, [copy.deepcopy(env.reset(seed=seed + number)[0])])
        while run.step(_checked_action(decide(run.observations[-1]), env)):
            pass
        runs.append(run)
    spec: Any = env.spec
    return Demonstrations(spec.id, arguments_of(spec), tuple(run.episode() for run in runs))


def record_plans(env: gym.Env[Any, Any], learner: Learner, *, episodes: int, seed: int = 0) -> Demonstrations:
    """Plan once from each of a number of starts, carry each plan out as it was made, and record it: open_loop demonstrations.

    Args:
        env: see `record`.
        learner: one that plans with the true physics and cost is an expert.
        episodes: how many; episode i is reset with seed + i.
        seed: of the first.

    Raises:
        ValueError: as for `record`; or the environment ends an episode before its plan does.
    """
    episodes, seed = _checked_numbers(episodes, seed)
    _check_recordable(env)
    refuse_changes(env, learner.task)
    starts = stacked([copy.deepcopy(env.reset(seed=seed + number)[0]) for number in range(episodes)])
    runs = []
    for number, controls in enumerate(learner.plan(starts)):
        run = _Run(env, [copy.deepcopy(env.reset(seed=seed + number)[0])])
        for step, action in enumerate(learner.as_actions(controls), start=1):
            if not run.step(_checked_action(action, env)) and step < len(controls):
                raise ValueError(
                    f"env: expected plans of {len(controls)} steps to be carried out, but episode {number} ended after {step}. "
                    "Shorten the horizon, or widen the environment's limits."
                )
        runs.append(run)
    spec: Any = env.spec
    return Demonstrations(spec.id, arguments_of(spec), tuple(run.episode() for run in runs), open_loop=True)


def _checked_numbers(episodes: int, seed: int) -> tuple[int, int]:
    return whole("episodes", episodes, "at least 1", most=MOST), whole("seed", seed, "0 or more", 0)


def _check_recordable(env: gym.Env[Any, Any]) -> None:
    if not isinstance(env, gym.Env):
        raise ValueError(f"env: expected a single Gymnasium environment, got {env!r}. Make one with gymnasium.make.")
    if env.spec is None:
        raise ValueError(
            f"env: expected one made by gymnasium.make, so that it has an id, got {env!r}. Register its class with "
            "gymnasium.register, then make it by its id."
        )
    named = isinstance(env.observation_space, spaces.Dict)
    for name, space in (("observations", env.observation_space), ("actions", env.action_space)):
        of_parts = named and name == "observations"
        part = _no_array(space) if of_parts else ""
        if part or not (of_parts or _is_flat(space)):
            what = f"{space}, of which {part!r} holds no array" if part else space
            how = "gymnasium.wrappers.FlattenObservation, or one that keeps what the state can be read from"
            real = "Learners fit real numbers: record what discrete actions stand for, by a wrapper that takes it."
            what_to_do = f"Wrap it in {how}." if name == "observations" else real
            raise ValueError(f"env: expected flat {name}, a Box of one axis, got {what}. {what_to_do}")


def _is_flat(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 1


def _no_array(space: spaces.Space[Any], name: str = "") -> str:
    """The first part that holds something else than an array of numbers; "" if none does."""
    if isinstance(space, spaces.Dict):
        return next(filter(None, (_no_array(part, f"{name}/{key}".strip("/")) for key, part in space.spaces.items())), "")
    return "" if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary) else name


def _check_reader(env: gym.Env[Any, Any], policy: Any) -> None:
    """Refuse a policy whose model doesn't read what the environment shows, or whose actions mean something else there.

    Of others a line in the log says it: no model is to be fitted to what is recorded.
    """
    owner = policy.policy if isinstance(policy, BaseAlgorithm) else policy
    task = getattr(owner, "task", None)
    if isinstance(task, ControlTask):
        refuse_changes(env, task)
    elif _has_model(env):
        for told in changes(env):
            _log.warning("these demonstrations are for learners with a task of their own; %s", told)


def _has_model(env: gym.Env[Any, Any]) -> bool:
    try:
        find_task(env)
    except ValueError:
        return False
    return True


def _decider(policy: Any) -> Callable[[Any], ArrayLike]:
    """How a policy decides during one episode, whose state it carries along."""
    if not hasattr(policy, "predict"):
        if not callable(policy):
            raise ValueError(f"policy: expected a function or an object with a method predict, got {policy!r}.")
        decide: Callable[[Any], ArrayLike] = policy
        return decide
    state, start = None, np.ones(1, dtype=bool)

    def predict(observation: Any) -> ArrayLike:
        nonlocal state, start
        action, state = policy.predict(observation, state, start, deterministic=True)
        start = np.zeros(1, dtype=bool)
        return np.asarray(action)

    return predict


def _checked_action(action: ArrayLike, env: gym.Env[Any, Any]) -> NDArray[Any]:
    space: Any = env.action_space
    array = fitted(action, space)
    if not space.contains(array):  # NaN isn't within bounds either
        raise ValueError(
            f"policy: expected actions within {space}, got {action!r} of shape {array.shape}. Clip or scale them first."
        )
    return array


def _run(policy: BasePolicy | Learner, runs: list[_Run], tally: _Tally, on_step: Callable[[int], None]) -> None:
    going, state, start = runs, None, np.ones(len(runs), dtype=bool)
    while going:
        seen = stacked([run.observations[-1] for run in going])
        began = time.perf_counter()
        if isinstance(policy, PlanningPolicy):
            actions, state, plan = policy.act(seen, state, start)
            tally.converged.append(plan.converged)
            tally.iterations.append(plan.num_iterations)
        else:
            actions, state = policy.predict(seen, state, start, deterministic=True)
        tally.seconds.append(time.perf_counter() - began)
        taken = (fitted(action, run.env.action_space) for run, action in zip(going, actions, strict=True))
        goes_on = np.array([run.step(action) for run, action in zip(going, taken, strict=True)])
        on_step(len(going))
        going = [run for run, more in zip(going, goes_on, strict=True) if more]
        axis = 0 if isinstance(policy, PlanningPolicy) else 1  # of the environments: recurrent policies have their layers first
        state = None if state is None else tuple(part.compress(goes_on, axis) for part in state)
        start = np.zeros(len(going), dtype=bool)
