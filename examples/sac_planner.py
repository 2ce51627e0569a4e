"""SAC with a planner as its actor, from physics that are wrong by a factor of two.

Run it: `python examples/sac_planner.py`. It takes about a minute on one core. At first the mean return on Pendulum-v1 is about
-750; after 1500 steps it is about -150.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import tyro
from stable_baselines3 import SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from dilqr_rl.agents import MPCSACPolicy, SolverHealthCallback


@dataclass(frozen=True)
class Args:
    steps: int = 1_500
    seed: int = 0
    episodes: int = 20
    """of each evaluation"""


def mean_return(model: SAC, args: Args) -> float:
    envs = make_vec_env("Pendulum-v1", args.episodes, seed=10_000)
    value, _ = evaluate_policy(model, envs, args.episodes)
    return float(value)  # type: ignore[arg-type]


def main(args: Args) -> dict[str, float]:
    torch.set_num_threads(1)  # these tensors are small
    policy = {
        "task": "Pendulum-v1",
        "horizon": 20,
        "physics": {"mass": 0.5, "length": 2.0, "gravity": 5.0},  # true: 1, 1, 10
        "net_arch": {"pi": [64, 64], "qf": [128, 128]},
        "log_std_init": 0.0,
        "model_rate": 30.0,  # networks want small steps, masses and lengths large ones
    }
    model = SAC(
        MPCSACPolicy,
        "Pendulum-v1",
        policy_kwargs=policy,
        learning_starts=200,
        batch_size=128,
        learning_rate=1e-3,
        gamma=0.95,
        seed=args.seed,
        device="cpu",
    )
    before = mean_return(model, args)
    print(f"before: mean return {before:.0f}")
    model.learn(args.steps, callback=SolverHealthCallback())
    after = mean_return(model, args)
    print(f"after {model.num_timesteps} steps: mean return {after:.0f}")
    return {"before": before, "after": after}


if __name__ == "__main__":
    main(tyro.cli(Args))
