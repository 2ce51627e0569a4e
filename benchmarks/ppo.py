"""How fast stock PPO trains with the planner as actor, beside its own network: `python -m benchmarks.ppo`.

Same environment, same hyperparameters (Stable-Baselines3's defaults, 8 environments), a planner that looks 10 or 20 steps
ahead. The models take turns of some thousand steps, so that a busy second hits all alike; a ratio is the median over the turns.
Times are those of the processor, on one thread. `--install` sets up mpc.pytorch with Stable-Baselines3 in an environment of its
own and measures it in the same place, once. Memory is that of a process in the course of 100,000 predictions. The tables that
are printed stand in docs/results.md too.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.cells import Record, machine
from benchmarks.environments import MissingError, default_folder, install, python
from benchmarks.solvers import PPO_SOLVER
from benchmarks.stepping import row, rule
from benchmarks.tables import number
from dilqr_rl.agents import MPCPolicy, SB3VecEnv
from dilqr_rl.agents.environments import make_env

IDS = ("dilqr_rl/Pendulum-v0", "dilqr_rl/CartPole-v0")
HORIZONS = (10, 20)
ENVIRONMENTS, STEPS = 8, 256  # a rollout
WANTED = 0.5
_PEER_STEPS = 64  # of each environment: one rollout and one update
_CHECKOUT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Args:
    """Measure how fast PPO trains with a planner."""

    quick: bool = False
    """Some seconds, to see that it runs; the figures mean nothing."""
    install: bool = False
    """Set up mpc.pytorch, some 1 GB in your cache, and measure it too; without, what was measured of it before stays."""
    results: Path | None = None
    """File of the results; benchmarks/results/ppo.json unless given, or build/bench/ppo.json for a quick run."""
    report: bool = False
    """Measure nothing: print the tables of what has been measured."""


def main(args: Args) -> Record:
    """Measure, write and print; returns what was written."""
    folder = _CHECKOUT / "build" / "bench" if args.quick else _CHECKOUT / "benchmarks" / "results"
    file = args.results or folder / "ppo.json"
    if args.report:
        found = read(file)
    else:
        torch.set_num_threads(1)
        found = measure(args)
        if "mpc.pytorch" not in found and file.is_file():
            found |= {name: value for name, value in read(file).items() if name == "mpc.pytorch"}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(markdown(found))
    return found


def measure(args: Args) -> Record:
    """All figures, with the machine they come from."""
    load = os.getloadavg()[0]
    rounds, predictions = (1, 200) if args.quick else (5, 100_000)
    found: Record = {
        "speed": {env_id: speed(env_id, rounds, 32 if args.quick else STEPS) for env_id in IDS},
        "memory": memory(predictions),
        "machine": {**machine(), "stable_baselines3": version("stable_baselines3")},
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "load": [load, os.getloadavg()[0]],
    }
    if args.install:
        install(PPO_SOLVER, default_folder())
        found["mpc.pytorch"] = {str(horizon): peer_speed(horizon) for horizon in HORIZONS}
    return found


def speed(env_id: str, rounds: int, steps: int) -> Record:
    """Steps per second of processor time, and the ratio to the network's."""
    models = {"MlpPolicy": _model("MlpPolicy", env_id, steps, {})}
    for horizon in HORIZONS:
        models[str(horizon)] = _model("MPCPolicy", env_id, steps, {"task": env_id, "horizon": horizon})
    per_round = [{name: _rate(model, steps) for name, model in models.items()} for _ in range(rounds + 1)][1:]
    return {
        name: {
            "steps_per_second": round(statistics.median(rates[name] for rates in per_round)),
            "ratio": round(statistics.median(rates[name] / rates["MlpPolicy"] for rates in per_round), 3),
        }
        for name in models
    }


def _model(policy: str, env_id: str, steps: int, settings: Record) -> PPO:
    envs: VecEnv = SB3VecEnv.make(env_id, ENVIRONMENTS)
    return PPO(policy, envs, n_steps=steps, policy_kwargs=settings, device="cpu", seed=0)


def _rate(model: PPO, steps: int) -> float:
    """Of one rollout and one update."""
    began = time.process_time()
    model.learn(ENVIRONMENTS * steps, reset_num_timesteps=False)
    return ENVIRONMENTS * steps / (time.process_time() - began)


def peer_speed(horizon: int) -> float:
    """Steps per second of PPO with mpc.pytorch as the actor, in its own environment.

    Raises:
        MissingError: its process failed.
    """
    command = [
        str(python(PPO_SOLVER, default_folder())),
        "-m",
        "benchmarks.peers.mpc_pytorch_ppo",
        str(horizon),
        str(_PEER_STEPS),
    ]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=_CHECKOUT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise MissingError(done.stderr[-500:])
    return float(done.stdout.split()[-1])


def memory(predictions: int) -> Record:
    """What a process holds, in MB, after a tenth of the predictions and after all: one at a time, with a warm start."""
    env = make_env(IDS[0])
    policy = MPCPolicy.for_env(env, horizon=10)
    observation, _ = env.reset(seed=0)
    state: Any = None

    def predict(count: int) -> None:
        nonlocal observation, state
        for _ in range(count):
            action, state = policy.predict(observation, state, np.array([state is None]))
            observation, _, _, truncated, _ = env.step(action)
            if truncated:
                observation, _ = env.reset()
                state = None

    held = [_held_after(lambda: predict(predictions // 10)), _held_after(lambda: predict(predictions - predictions // 10))]
    env.close()
    return {"predictions": predictions, "after_a_tenth": held[0], "after_all": held[1]}


def _held_after(work: Callable[[], None]) -> float:
    work()
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 1e6, 1)


def markdown(found: Record) -> str:
    """The tables, for a terminal and a page alike."""
    lines = [row("PPO, steps per second", "MlpPolicy", *(f"MPCPolicy, T = {h}" for h in HORIZONS)), rule(1 + len(HORIZONS))]
    for env_id, rates in found["speed"].items():
        ours = (f"{rates[str(h)]['steps_per_second']} ({number(rates[str(h)]['ratio'])})" for h in HORIZONS)
        lines.append(row(f"`{env_id}`", str(rates["MlpPolicy"]["steps_per_second"]), *ours))
    if "mpc.pytorch" in found:
        peers = found["mpc.pytorch"]
        ours = found["speed"][IDS[0]]
        ratios = (
            f"{number(peers[str(h)])} (1/{ours[str(h)]['steps_per_second'] / peers[str(h)]:.0f} of ours)" for h in HORIZONS
        )
        lines.append(row("mpc.pytorch in the planner's place, `Pendulum-v1`", "", *ratios))
    lines.append(row("wanted", "", *(f"({WANTED})" for _ in HORIZONS)))
    count, first, last = (found["memory"][name] for name in ("predictions", "after_a_tenth", "after_all"))
    told = f"{first} MB after {count // 10:,} predictions, {last} MB after {count:,}"
    return "\n".join([*lines, "", f"Memory of the process: {told}."])


def read(file: Path) -> Record:
    """What was written.

    Raises:
        ValueError: nothing is there.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no results there yet. Run `python -m benchmarks.ppo` first.")
    found: Record = json.loads(file.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
