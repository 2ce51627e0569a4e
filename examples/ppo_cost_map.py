"""PPO with a planner whose cost a network writes: the observation says where to go, and only the reward says what that means.

Run it: `python examples/ppo_cost_map.py`. It takes about half a minute on one core. A cart is to follow a target; the planner's
own cost knows of none and stays at the middle, with a mean return of -17; with the goals that the cost map learns it is -9.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn

from dilqr_rl import ControlTask, QuadraticCost
from dilqr_rl.agents import CostMap, MPCPolicy
from dilqr_rl.signals import until_interrupted

TIME_STEP = 0.1  # s


class Follow(gym.Env[Any, NDArray[np.float32]]):
    """A cart of 1 kg; the observation has its state (m, m/s) and, beside it, where it should be (m)."""

    def __init__(self) -> None:
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)  # N
        whole: dict[str, gym.Space[Any]] = {
            "state": gym.spaces.Box(-10.0, 10.0, (2,), np.float32),
            "obs": gym.spaces.Box(-1.0, 1.0, (1,), np.float32),
        }
        self.observation_space = gym.spaces.Dict(whole)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.target = self.np_random.uniform(-1.0, 1.0, 2), self.np_random.uniform(-1.0, 1.0)
        return self._seen(), {}

    def step(self, action: NDArray[np.float32]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        position, speed = self.state
        reward = -((position - self.target) ** 2) - 0.01 * float(action[0]) ** 2
        self.state = np.array([position + TIME_STEP * speed, speed + TIME_STEP * float(action[0])])
        return self._seen(), float(reward), False, False, {}

    def _seen(self) -> dict[str, NDArray[np.float32]]:
        return {"state": np.clip(self.state, -10.0, 10.0).astype(np.float32), "obs": np.array([self.target], np.float32)}


class Cart(nn.Module):
    """(x, u) -> next x, of positions and speeds (..., 2) and forces (..., 1)."""

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        position, speed = x.unbind(-1)
        return torch.stack((position + TIME_STEP * speed, speed + TIME_STEP * u[..., 0]), dim=-1)


TASK = ControlTask(
    name="Follow",
    dynamics=Cart(),
    stage_cost=QuadraticCost([1.0, 0.3, 0.3], goal=[0.0, 0.0, 0.0]),
    observation_to_state=lambda seen: seen,
    horizon=15,
    state_size=2,
    control_size=1,
    u_min=-1.0,
    u_max=1.0,
)


@dataclass(frozen=True)
class Args:
    steps: int = 12_288
    seed: int = 0
    episodes: int = 20
    """of each evaluation"""
    out: Path | None = None
    """where to keep the model, a .zip; Ctrl-C, SIGTERM and SIGHUP end the training early, and it is kept all the same"""


def make_env() -> gym.Env[Any, Any]:
    return TimeLimit(Follow(), 50)


def mean_return(model: PPO, args: Args) -> float:
    value, _ = evaluate_policy(model, make_vec_env(make_env, args.episodes, seed=10_000), args.episodes)
    return float(value)  # type: ignore[arg-type]


def main(args: Args) -> dict[str, float]:
    torch.set_num_threads(1)  # these tensors are small
    writes_the_goal = CostMap(writes=("goal",), per_step=False, hidden=(16,))
    envs = VecNormalize(make_vec_env(make_env, 8), norm_obs=False, gamma=0.95)
    model = PPO(
        MPCPolicy,
        envs,
        policy_kwargs={"task": TASK, "learn": (), "cost_map": writes_the_goal, "log_std_init": -0.5},
        n_steps=64,
        batch_size=128,
        learning_rate=0.02,
        gamma=0.95,
        seed=args.seed,
        device="cpu",
    )
    before = mean_return(model, args)
    print(f"before: mean return {before:.1f}")
    with until_interrupted():
        model.learn(args.steps)
    if args.out is not None:
        model.save(args.out)
    after = mean_return(model, args)
    print(f"after {model.num_timesteps} steps: mean return {after:.1f}")
    goals = goals_for(model, np.array([-0.8, 0.0, 0.8], np.float32))
    print(f"goals for targets of -0.8, 0 and 0.8 m: {np.round(goals, 2)}")
    return {"before": before, "after": after, "low": goals[0], "high": goals[-1]}


def goals_for(model: PPO, targets: NDArray[np.float32]) -> list[float]:
    """Where plans from the middle want to go, in m, for each target."""
    policy: Any = model.policy
    seen = {"state": torch.zeros(len(targets), 2), "obs": torch.from_numpy(targets[:, None])}
    with torch.no_grad():
        written = policy.planning.cost_map(policy.features(seen))
    return [float(goal[0]) for goal in written["stage_cost.goal"]]


if __name__ == "__main__":
    main(tyro.cli(Args))
