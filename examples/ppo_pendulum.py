"""Stock PPO of Stable-Baselines3 swings a pendulum up, from its state or from pixels, on a native batch of environments.

Run it: `python examples/ppo_pendulum.py state` takes some five seconds on one core, `python examples/ppo_pendulum.py pixels`
some two and a half minutes. Before learning, the mean return is about -1100; at the end, over seeds 0 to 4, it is between
-136 and -126 from states and between -160 and -134 from pixels. Table and picture of each are in examples/results, made with
`--seeds 0 1 2 3 4 --out examples/results`. Ctrl-C, SIGTERM and SIGHUP end it early, with those of what has been learnt.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize

from dilqr_rl.agents import SB3VecEnv
from dilqr_rl.signals import until_interrupted

ENVIRONMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "state": ("dilqr_rl/Pendulum-v0", {}),
    "pixels": ("dilqr_rl/PendulumPixels-v0", {"grey": True}),
}
# Noise that is a function of the state keeps its sign for long enough to swing the rod, and the rewards of the next second
# tell how well that went: hence use_sde and a gamma that small.
PPO_SETTINGS: dict[str, Any] = {
    "n_steps": 64, "batch_size": 256, "n_epochs": 10, "gamma": 0.95, "use_sde": True, "sde_sample_freq": 4, "device": "cpu",
}  # fmt: skip
POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    "state": ("MlpPolicy", {"learning_rate": LinearSchedule(3e-3, 0.0, 1.0)}),
    "pixels": ("CnnPolicy", {"learning_rate": LinearSchedule(5e-4, 0.0, 1.0), "policy_kwargs": {"log_std_init": -2.0}}),
}
EVALUATION_EPISODES = 20
EVALUATION_SEED = 10_000


@dataclass(frozen=True)
class Args:
    sees: tyro.conf.Positional[Literal["state", "pixels"]] = "state"
    steps: int = 24_576
    """of all environments together, for each seed"""
    evaluate_every: int = 2_048
    seeds: tuple[int, ...] = (0,)
    environments: int = 32
    out: Path = Path("ppo_results")
    """folder for the table and the picture"""


class Point(NamedTuple):
    """One evaluation: the mean return of deterministic actions from fixed starts."""

    seed: int
    steps: int
    seconds: float
    mean_return: float


class Evaluations(BaseCallback):
    def __init__(self, envs: VecEnv, every: int, seed: int) -> None:
        super().__init__()
        self.envs, self.every, self.seed = envs, every, seed
        self.points: list[Point] = []

    def _on_training_start(self) -> None:
        self.began = time.perf_counter()

    def _on_rollout_start(self) -> None:
        if self.num_timesteps >= self.every * len(self.points):
            self.evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.evaluate()

    def evaluate(self) -> None:
        self.envs.seed(EVALUATION_SEED)
        mean_return, _ = evaluate_policy(self.model, self.envs, n_eval_episodes=EVALUATION_EPISODES)
        seconds = time.perf_counter() - self.began
        self.points.append(Point(self.seed, self.num_timesteps, round(seconds, 1), round(float(mean_return), 1)))  # type: ignore[arg-type]
        print("seed {}  steps {:6d}  {:5.1f} s  mean return {:7.1f}".format(*self.points[-1]), flush=True)


def make_envs(sees: str, count: int) -> VecMonitor:
    env_id, env_kwargs = ENVIRONMENTS[sees]
    return VecMonitor(SB3VecEnv.make(env_id, count, **env_kwargs))


def learn(args: Args, seed: int, curves: list[list[Point]]) -> None:
    """Train with one seed; its curve is among the others from the start, so that one that is cut off is there too."""
    policy, settings = POLICIES[args.sees]
    envs = VecNormalize(make_envs(args.sees, args.environments), norm_obs=False, gamma=PPO_SETTINGS["gamma"])
    evaluations = Evaluations(make_envs(args.sees, EVALUATION_EPISODES), args.evaluate_every, seed)
    curves.append(evaluations.points)
    PPO(policy, envs, seed=seed, **PPO_SETTINGS, **settings).learn(args.steps, callback=evaluations)


def write_table(path: Path, points: Iterable[Point]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Point._fields)
        writer.writerows(points)


def draw(path: Path, args: Args, curves: list[list[Point]]) -> None:
    steps = [point.steps for point in curves[0]]
    returns = np.array([[point.mean_return for point in curve] for curve in curves])
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.fill_between(steps, returns.min(axis=0), returns.max(axis=0), alpha=0.2, linewidth=0, label="worst to best")
    axes.plot(steps, returns.T, color="C0", linewidth=0.5, alpha=0.6)
    axes.plot(steps, returns.mean(axis=0), color="C0", linewidth=2, label="mean")
    axes.axhline(-250, color="grey", linewidth=1, linestyle=":", label="-250")
    axes.set_xlabel("environment steps")
    axes.set_ylabel(f"mean return of {EVALUATION_EPISODES} episodes")
    axes.set_title(f"PPO on {ENVIRONMENTS[args.sees][0]}, seeds {', '.join(map(str, args.seeds))}")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


def main(args: Args) -> list[Point]:
    torch.set_num_threads(1)  # these tensors are small
    curves: list[list[Point]] = []
    with until_interrupted():
        for seed in args.seeds:
            learn(args, seed, curves)
    curves = [curve for curve in curves if curve]
    points = [point for curve in curves for point in curve]
    if not points:
        return []
    args.out.mkdir(parents=True, exist_ok=True)
    write_table(args.out / f"ppo_{args.sees}.csv", points)
    draw(args.out / f"ppo_{args.sees}.png", args, [curve for curve in curves if len(curve) == len(curves[0])])
    for curve in curves:
        first = next((point for point in curve if point.mean_return > -250), None)
        reached = "not reached" if first is None else f"first at {first.steps} steps, {first.seconds:.0f} s"
        print(f"seed {curve[0].seed}  at the end {curve[-1].mean_return:.0f}, -250 {reached}")
    return points


if __name__ == "__main__":
    main(tyro.cli(Args))
