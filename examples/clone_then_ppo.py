"""From cloning to reinforcement: a planner learns a cost from a poor demonstrator, and gets better than him by PPO.

Run it: `python examples/clone_then_ppo.py`. It takes about half a minute on one core. The demonstrator wants the pendulum to
lean by 24 degrees: a mean return of -259. The clone finds that goal from his actions alone, -260; PPO goes on to -136.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from dilqr_rl.agents import CostLearner, SB3VecEnv, record_plans
from dilqr_rl.signals import until_interrupted

ENV_ID = "dilqr_rl/Pendulum-v0"
WEIGHTS = [1.0, 1.0, 0.1, 0.001]


@dataclass(frozen=True)
class Args:
    demonstrations: int = 60
    steps: int = 4_096
    seed: int = 0
    episodes: int = 20
    """of each evaluation"""
    out: Path | None = None
    """where to keep the model, a .zip; Ctrl-C, SIGTERM and SIGHUP end the training early, and it is kept all the same"""


def mean_return(policy: Any, args: Args) -> float:
    envs = VecMonitor(SB3VecEnv.make(ENV_ID, args.episodes))
    envs.seed(10_000)
    value, _ = evaluate_policy(policy, envs, args.episodes)
    return float(value)  # type: ignore[arg-type]


def main(args: Args) -> dict[str, float]:
    torch.set_num_threads(1)  # these tensors are small
    env = gym.make(f"dilqr_rl.envs:{ENV_ID}")
    demonstrator = CostLearner.for_env(env, horizon=20, weights=WEIGHTS, goal=[0.9, 0.4, 0.0, 0.0])
    data = record_plans(env, demonstrator, episodes=args.demonstrations, seed=args.seed)
    clone = CostLearner.for_env(env, horizon=20)
    clone.fit(data)
    found = {"demonstrator": mean_return(demonstrator, args), "clone": mean_return(clone, args)}
    model = clone.to_sb3(
        PPO,
        VecNormalize(VecMonitor(SB3VecEnv.make(ENV_ID, 8)), norm_obs=False, gamma=0.95),
        policy_kwargs={"log_std_init": -0.5},
        use_sde=True,
        sde_sample_freq=4,
        n_steps=64,
        batch_size=128,
        gamma=0.95,
        learning_rate=0.01,
        seed=args.seed,
        device="cpu",
    )
    found["PPO, before"] = mean_return(model, args)
    with until_interrupted():
        model.learn(args.steps)
    if args.out is not None:
        model.save(args.out)
    found["PPO, after"] = mean_return(model, args)
    for name, value in found.items():
        print(f"{name}: mean return {value:.0f}")
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
