"""Episodes of a policy, in several environments side by side, so that their plans are solved as one batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy

from dilqr_rl.agents.demonstrations import Demonstrations, Episode
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.policy import MPCPolicy

__all__ = ["RollOuts", "roll_out"]


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
    observations: list[NDArray[Any]]
    actions: list[NDArray[Any]] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False

    def step(self, action: NDArray[Any]) -> bool:
        observation, reward, self.terminated, self.truncated, _ = self.env.step(action)
        self.observations.append(observation)
        self.actions.append(action)
        self.rewards.append(float(reward))
        return not (self.terminated or self.truncated)

    def episode(self) -> Episode:
        return Episode(
            np.array(self.observations), np.array(self.actions), np.array(self.rewards), self.terminated, self.truncated
        )


def roll_out(
    policy: BasePolicy,
    env_id: str,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    episodes: int,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> RollOuts:
    """Run a policy's deterministic actions for a number of episodes.

    Args:
        policy: any Stable-Baselines3 policy.
        env_id: of an environment with a time limit.
        env_kwargs: what to make it with.
        episodes: how many; episode i is reset with seed + i.
        seed: of the first.
        on_step: called with the number of actions just taken.

    Raises:
        ValueError: there is no such environment, or no episode is asked for.
    """
    if episodes < 1:
        raise ValueError(f"episodes: expected at least 1, got {episodes}.")
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}.")
    runs = []
    for number in range(episodes):
        env = make_env(env_id, env_kwargs)
        runs.append(_Run(env, [env.reset(seed=seed + number)[0]]))
    tally = _Tally()
    try:
        _run(policy, runs, tally, on_step or (lambda _: None))
    finally:
        for run in runs:
            run.env.close()
    found = Demonstrations(env_id.rpartition(":")[2], dict(env_kwargs or {}), tuple(run.episode() for run in runs))
    return RollOuts(found, float(np.median(tally.seconds)), tally.mean(tally.converged), tally.mean(tally.iterations))


def _run(policy: BasePolicy, runs: list[_Run], tally: _Tally, on_step: Callable[[int], None]) -> None:
    going, state, start = runs, None, np.ones(len(runs), dtype=bool)
    while going:
        seen = np.stack([run.observations[-1] for run in going])
        began = time.perf_counter()
        if isinstance(policy, MPCPolicy):
            actions, state, plan = policy.act(seen, state, start)
            tally.converged.append(plan.converged)
            tally.iterations.append(plan.num_iterations)
        else:
            actions, state = policy.predict(seen, state, start, deterministic=True)
        tally.seconds.append(time.perf_counter() - began)
        goes_on = np.array([run.step(action) for run, action in zip(going, actions, strict=True)])
        on_step(len(going))
        going = [run for run, more in zip(going, goes_on, strict=True) if more]
        state = None if state is None else tuple(part[goes_on] for part in state)
        start = np.zeros(len(going), dtype=bool)
