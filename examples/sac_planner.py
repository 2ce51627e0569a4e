"""SAC with a planner as its actor: from a goal that is off to a swing-up.

Run it: `python examples/sac_planner.py`. It takes one to two minutes on one core. The planner wants the pendulum to lean by 24
degrees: at first the mean return on Pendulum-v1 is -259. For some two thousand steps it falls, because the critic, whose slope
the goal follows, knows nothing yet; at the end it is about -130.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import torch
import tyro
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from dilqr_rl import QuadraticCost, find_task
from dilqr_rl.agents import MPCSACPolicy, SolverHealthCallback
from dilqr_rl.signals import until_interrupted


@dataclass(frozen=True)
class Args:
    steps: int = 4_500
    seed: int = 0
    episodes: int = 20
    """of each evaluation"""
    out: Path | None = None
    """where to keep the model, a .zip; Ctrl-C, SIGTERM and SIGHUP end the training early, and it is kept all the same"""


def mean_return(model: SAC, args: Args) -> float:
    envs = make_vec_env("Pendulum-v1", args.episodes, seed=10_000)
    value, _ = evaluate_policy(model, envs, args.episodes)
    return float(value)  # type: ignore[arg-type]


def main(args: Args) -> dict[str, float]:
    torch.set_num_threads(1)  # these tensors are small
    task = find_task(gym.make("Pendulum-v1"))
    wrong_goal = QuadraticCost([1.0, 1.0, 0.1, 0.001], goal=[0.9, 0.4, 0.0, 0.0])
    policy = {
        "task": replace(task, stage_cost=wrong_goal),
        "horizon": 20,
        "learn": ("goal",),
        "model_rate": 0.5,  # four numbers are spoilt faster than a network, while the critic is still wrong
        "net_arch": {"qf": [128, 128]},
        "log_std_init": -0.5,
    }
    model = SAC(
        MPCSACPolicy,
        "Pendulum-v1",
        policy_kwargs=policy,
        learning_starts=200,
        batch_size=64,
        learning_rate=1e-3,
        gamma=0.95,
        ent_coef=0.02,
        seed=args.seed,
        device="cpu",
    )
    before = mean_return(model, args)
    print(f"before: mean return {before:.0f}")
    with until_interrupted():
        model.learn(args.steps, callback=SolverHealthCallback())
    if args.out is not None:
        model.save(args.out)
    after = mean_return(model, args)
    goal = [round(number, 2) for number in model.policy.parameter_values()["stage_cost.goal"].tolist()]  # type: ignore[operator]
    print(f"after {model.num_timesteps} steps: mean return {after:.0f}, goal {goal}")
    return {"before": before, "after": after}


if __name__ == "__main__":
    main(tyro.cli(Args))
