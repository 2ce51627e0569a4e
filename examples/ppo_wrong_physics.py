"""PPO with a planner as its actor: from physics that are wrong by a factor of two, and a goal that is off, to a swing-up.

Run it: `python examples/ppo_wrong_physics.py`. It takes about half a minute on one core. At first the mean return on
Pendulum-v1 is -752, after 3072 steps about -130. `dilqr reproduce r1` has the curves over seeds, beside a network's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from dilqr_rl import QuadraticCost, find_task
from dilqr_rl.agents import MPCPolicy, SolverHealthCallback
from dilqr_rl.signals import until_interrupted


@dataclass(frozen=True)
class Args:
    steps: int = 3_072
    seed: int = 0
    episodes: int = 20
    """of each evaluation"""
    out: Path | None = None
    """where to keep the model, a .zip; Ctrl-C, SIGTERM and SIGHUP end the training early, and it is kept all the same"""


def mean_return(model: PPO, args: Args) -> float:
    envs = make_vec_env("Pendulum-v1", args.episodes, seed=10_000)
    value, _ = evaluate_policy(model, envs, args.episodes)
    return float(value)  # type: ignore[arg-type]


def main(args: Args) -> dict[str, float]:
    torch.set_num_threads(1)  # these tensors are small
    task = find_task(gym.make("Pendulum-v1"))
    wrong_goal = QuadraticCost([1.0, 1.0, 0.1, 0.001], goal=[0.9, 0.4, 0.0, 0.0])  # leans by 24 degrees
    envs = VecNormalize(make_vec_env("Pendulum-v1", 8), norm_obs=False, gamma=0.95)
    model = PPO(
        MPCPolicy,
        envs,
        policy_kwargs={
            "task": replace(task, stage_cost=wrong_goal),
            "horizon": 20,
            "physics": {"mass": 0.5, "length": 2.0, "gravity": 5.0},  # true: 1, 1, 10
            "learn": ("physics", "goal"),
            "log_std_init": 0.3,
        },
        use_sde=True,  # noise that keeps its sign for long enough to swing the rod
        sde_sample_freq=4,
        n_steps=32,
        batch_size=64,
        gamma=0.95,
        learning_rate=0.03,  # of logarithms: 3 % a step
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
    print(f"after {model.num_timesteps} steps: mean return {after:.0f}")
    for name, value in model.policy.parameter_values().items():  # type: ignore[operator]
        print(f"  {name} {[round(number, 2) for number in value.flatten().tolist()]}")
    return {"before": before, "after": after}


if __name__ == "__main__":
    main(tyro.cli(Args))
