"""What the experiments on reinforcement learning share: systems, stock PPO with a planner or a network, and evaluations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize

from dilqr_rl import ControlTask, QuadraticCost, find_task
from dilqr_rl.agents import SB3VecEnv
from dilqr_rl.agents.environments import make_env

__all__ = [
    "SYSTEMS",
    "Evaluation",
    "PPOSettings",
    "System",
    "evaluate",
    "first_step_above",
    "make_envs",
    "told",
    "train",
    "true_task",
    "wrong_task",
]

_EVALUATION_SEED = 10_000
_UPRIGHT, _LAST = 0.9, 50  # cosine, for as many steps at the end of an episode


@dataclass(frozen=True)
class System:
    """An environment, and how a planner for it is put wrong.

    Attributes:
        env_id: of Gymnasium.
        horizon: of plans.
        physics: where the planner starts, each number wrong by a factor of two.
        goal: where its cost's goal starts.
        own: the environment's own masses and lengths, which are changed after training.
        cosine: the place of the angle's cosine in an observation.
    """

    env_id: str
    horizon: int
    physics: Mapping[str, float]
    goal: tuple[float, ...]
    own: Mapping[str, float]
    cosine: int


SYSTEMS = {
    "pendulum": System(
        "Pendulum-v1",
        20,
        {"mass": 0.5, "length": 2.0, "gravity": 5.0},
        (0.9, 0.4, 0.0, 0.0),
        {"mass": 1.0, "length": 1.0},
        0,
    ),
    "cartpole": System(
        "dilqr_rl/CartPole-v0",
        20,
        {"cart_mass": 0.5, "pole_mass": 0.05, "length": 0.25},
        (0.0, 0.0, 0.9, 0.4, 0.0, 0.0),
        {"cart_mass": 1.0, "pole_mass": 0.1, "length": 0.5},
        2,
    ),
}
_PENDULUM_V1 = {"mass": "m", "length": "l", "gravity": "g"}  # names of Gymnasium's own


@dataclass(frozen=True)
class PPOSettings:
    """How stock PPO is run.

    Attributes:
        envs: environments side by side.
        steps: of all environments together.
        every: steps between two evaluations, a multiple of the rollout's.
        decays: whether the learning rate falls linearly to zero.
        normalise_reward: by VecNormalize.
        arguments: of PPO.
        policy: arguments of its policy.
    """

    envs: int
    steps: int
    every: int
    arguments: Mapping[str, Any]
    policy: Mapping[str, Any]
    decays: bool = False
    normalise_reward: bool = True

    @property
    def rollout(self) -> int:
        """Steps of all environments between two updates."""
        steps: int = self.envs * self.arguments["n_steps"]
        return steps


@dataclass(frozen=True)
class Evaluation:
    """Deterministic actions from fixed starts.

    Attributes:
        mean_return: over the episodes.
        upright: the share of episodes that end upright, after 50 steps without a fall.
    """

    mean_return: float
    upright: float


def make_envs(system: System, count: int, physics: Mapping[str, float] | None = None) -> VecEnv:
    """Environments of a system, perhaps with other physics than its own."""
    if system.env_id.startswith("dilqr_rl/"):
        return VecMonitor(SB3VecEnv.make(system.env_id, count, physics=dict(physics or {})))

    def changed() -> gym.Env[Any, Any]:
        env = gym.make(system.env_id)
        for name, value in (physics or {}).items():
            setattr(env.unwrapped, _PENDULUM_V1[name], value)
        return env

    return make_vec_env(changed, count)


def true_task(system: System) -> ControlTask:
    """The system's own model."""
    with closing(make_env(system.env_id)) as env:
        return find_task(env)


def wrong_task(system: System) -> ControlTask:
    """The system's model with a goal that is off."""
    task = true_task(system)
    weights: Any = task.stage_cost.weights
    return replace(task, stage_cost=QuadraticCost(weights.detach(), system.goal))


def train(
    system: System, policy: str, settings: PPOSettings, seed: int, measure: Callable[[PPO], Mapping[str, float]]
) -> tuple[PPO, dict[str, list[float]]]:
    """Train PPO.

    Returns:
        The model, and the curve: "steps" and, under the same names, what `measure` found there.
    """
    envs = make_envs(system, settings.envs)
    arguments = dict(settings.arguments)
    if settings.normalise_reward:
        envs = VecNormalize(envs, norm_obs=False, gamma=arguments.get("gamma", 0.99))
    if settings.decays:
        arguments["learning_rate"] = LinearSchedule(arguments["learning_rate"], 0.0, 1.0)
    curve = _Curve(settings.every, measure)
    model = PPO(policy, envs, policy_kwargs=dict(settings.policy), seed=seed, device="cpu", **arguments)
    model.learn(settings.steps, callback=curve)
    envs.close()
    return model, curve.points


class _Curve(BaseCallback):
    """Measures a model before it learns, in even distances, and at the end."""

    def __init__(self, every: int, measure: Callable[[PPO], Mapping[str, float]]) -> None:
        super().__init__()
        self.every, self.measure = every, measure
        self.points: dict[str, list[float]] = {"steps": []}

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.every * len(self.points["steps"]):
            self._add()

    def _on_training_end(self) -> None:
        self._add()

    def _add(self) -> None:
        self.points["steps"].append(self.num_timesteps)
        for name, value in self.measure(self.model).items():  # type: ignore[arg-type]
            self.points.setdefault(name, []).append(value)


@torch.no_grad()
def evaluate(policy: Any, system: System, episodes: int, physics: Mapping[str, float] | None = None) -> Evaluation:
    """The first episode of each of several environments with fixed seeds."""
    envs = make_envs(system, episodes, physics)
    envs.seed(_EVALUATION_SEED)
    seen, state, start = envs.reset(), None, np.ones(episodes, dtype=bool)
    returns, going, streak = np.zeros(episodes), np.ones(episodes, dtype=bool), np.zeros(episodes)
    upright = np.zeros(episodes, dtype=bool)
    while going.any():
        actions, state = policy.predict(seen, state, start, deterministic=True)
        streak = np.where(np.asarray(seen)[:, system.cosine] > _UPRIGHT, streak + 1, 0)
        seen, rewards, start, infos = envs.step(actions)
        returns += rewards * going
        ended = going & start
        truncated = np.array([bool(info.get("TimeLimit.truncated")) for info in infos])
        upright[ended] = (truncated & (streak >= _LAST))[ended]
        going &= ~start
    envs.close()
    return Evaluation(float(returns.mean()), float(upright.mean()))


def first_step_above(curve: Mapping[str, Sequence[float]], name: str, threshold: float) -> float:
    """The first steps at which a measure reaches a threshold; infinity if none."""
    return next((step for step, value in zip(curve["steps"], curve[name], strict=True) if value >= threshold), math.inf)


def told(values: Sequence[float], form: str = ".0f") -> str:
    """The median and the range, for a person; "not" for what was never reached."""
    low, mid, high = (("not reached" if math.isinf(v) else format(v, form)) for v in (min(values), median(values), max(values)))
    return f"{mid} ({low} to {high})"
