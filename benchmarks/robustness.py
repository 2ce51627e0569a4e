"""How the ready controller holds what the planner isn't told: `python -m benchmarks.robustness`.

Each cell is 100 episodes of 200 steps of one system, with noise on what is observed, or with physics of which the planner
isn't told: `MPCPolicy.for_env`, with its default horizon and with 20. A controller hangs where the mean cosine of an angle over
the last 30 steps is below 0.8 (the quadrotor: the mean distance above 0.5 m), or the episode ended before. Where more than one
episode in a hundred hangs, it is measured whether the system can be held: by planning at each step from 19 starts with the true
model. Then the latencies of single decisions, in processor time. The tables that are printed stand in docs/robustness.md too.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from numpy.typing import NDArray

import dilqr_rl.envs  # noqa: F401 - registers the environments
from benchmarks.cells import Record, machine
from dilqr_rl import MPCPolicy
from dilqr_rl.agents.actor import PLANNING

STEPS, LAST = 200, 30
HELD = 0.01  # the share of episodes that may hang
STARTS = 19


@dataclass(frozen=True)
class System:
    """An environment, and what of its observation is noisy.

    Attributes:
        env_id: its id.
        angles: places of cosine, sine and rate of each angle.
        places: places that are noisy by centimetres instead.
        worlds: physics of which the planner isn't told, by name.
    """

    env_id: str
    angles: tuple[tuple[int, int, int], ...]
    places: tuple[int, ...] = ()
    worlds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


def scaled(masses: Mapping[str, float], lengths: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Worlds with other masses, and with other lengths."""
    both = {"mass": masses, "length": lengths}
    return {
        f"{what} x {s}": {name: s * value for name, value in numbers.items()}
        for what, numbers in both.items()
        for s in (0.8, 1.2)
    }


SYSTEMS = {
    "pendulum": System(
        "dilqr_rl/Pendulum-v0",
        ((0, 1, 2),),
        worlds=scaled({"mass": 1.0}, {"length": 1.0}) | {"damping 0.05": {"damping": 0.05}},
    ),
    "cart-pole": System(
        "dilqr_rl/CartPole-v0", ((2, 3, 4),), worlds=scaled({"cart_mass": 1.0, "pole_mass": 0.1}, {"length": 0.5})
    ),
    "quadrotor": System("dilqr_rl/Quadrotor-v0", (), (0, 2), scaled({"mass": 1.0}, {"arm": 0.3})),
    "double cart-pole": System(
        "dilqr_rl/DoubleCartPole-v0",
        ((2, 3, 4), (5, 6, 7)),
        worlds=scaled({"cart_mass": 1.0, "mass_1": 0.1, "mass_2": 0.1}, {"length_1": 1.0, "length_2": 1.0}),
    ),
}
NOISE = {"no noise": (0.0, 0.0, 0.0), "0.5 deg": (0.5, 0.05, 0.01), "1.5 deg": (1.5, 0.2, 0.03)}  # degrees, rad/s, m


@dataclass(frozen=True)
class Args:
    """Measure how the ready controller holds."""

    quick: bool = False
    """Two episodes a cell, to see that it runs; the figures mean nothing."""
    only: tuple[str, ...] = ()
    """Names of systems; all of them unless given."""
    results: Path | None = None
    """File of the results; benchmarks/results/robustness.json unless given, or build/bench/robustness.json for a quick run."""
    report: bool = False
    """Measure nothing: print the tables of what has been measured."""


def main(args: Args) -> Record:
    """Measure, write and print; returns what was written."""
    home = Path(__file__).parents[1]
    folder = home / "build" / "bench" if args.quick else home / "benchmarks" / "results"
    file = args.results or folder / "robustness.json"
    found: Record = (
        json.loads(file.read_text(encoding="utf-8")) if file.is_file() and not args.quick else {"cells": [], "latency": []}
    )
    if not args.report:
        torch.set_num_threads(1)
        found |= {"machine": machine(), "versions": {name: version(name) for name in ("dilqr_rl", "torch", "gymnasium")}}
        for name in args.only or SYSTEMS:
            found["cells"] = [cell for cell in found["cells"] if cell["system"] != name] + cells_of(
                name, 2 if args.quick else 100
            )
            found["latency"] = [row for row in found["latency"] if row["system"] != name] + latencies_of(
                name, 2 if args.quick else 20
            )
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print("\n\n".join(tables(found)))
    return found


def cells_of(name: str, episodes: int) -> list[Record]:
    """All cells of a system, at both horizons."""
    system = SYSTEMS[name]
    cases: list[tuple[str, Mapping[str, float]]] = [*((noise, {}) for noise in NOISE), *system.worlds.items()]
    found = []
    for horizon in (None, 20):
        for case, physics in cases:
            hangs, returns = run(system, episodes, NOISE.get(case, NOISE["no noise"]), physics, horizon=horizon)
            cell = {
                "system": name,
                "horizon": horizon or "default",
                "case": case,
                "hangs": hangs,
                "return": returns,
                "of": episodes,
            }
            if hangs > HELD * episodes:  # with the true model, from 19 starts: can anybody hold it?
                best, _ = run(system, episodes, NOISE.get(case, NOISE["no noise"]), physics, horizon=horizon, told=True)
                cell["hangs_at_best"] = best
            found.append(cell)
            print(cell, flush=True)
    return found


def run(
    system: System,
    episodes: int,
    noise: tuple[float, float, float],
    physics: Mapping[str, float],
    *,
    horizon: int | None,
    told: bool = False,
) -> tuple[int, float]:
    """How many episodes hang, and the mean return; `told`: with the true model, from 19 starts at each step."""
    settings: dict[str, Any] = {"horizon": horizon}
    settings |= {"starts": STARTS if system.places == () else 2 * STARTS - 1, "warm_start": False} if told else {}
    with gym.make(system.env_id, physics=dict(physics) if told else None) as one:
        policy = MPCPolicy.for_env(one, **settings)
    envs = gym.make_vec(system.env_id, num_envs=episodes, physics=dict(physics) or None)
    generator = np.random.default_rng(0)
    observation, _ = envs.reset(seed=0)
    state, returns, lasts, last = None, np.zeros(episodes), np.ones(episodes, dtype=bool), []
    for step in range(STEPS):
        seen = disturbed(system, observation, noise, generator)
        action, state, _ = policy.act(seen, state)
        observation, reward, terminated, _, _ = envs.step(action)
        returns += reward * lasts
        lasts &= ~terminated
        if step >= STEPS - LAST:
            last.append(observation)
    envs.close()
    return int((hanging(system, np.stack(last)) | ~lasts).sum()), float(returns.mean())


def disturbed(
    system: System, observation: NDArray[Any], noise: tuple[float, float, float], generator: np.random.Generator
) -> NDArray[np.float32]:
    """What a noisy sensor sees of observations (N, k)."""
    degrees, rates, metres = noise
    seen = observation.astype(np.float64)
    for cosine, sine, rate in system.angles:
        angle = np.arctan2(seen[:, sine], seen[:, cosine]) + np.deg2rad(degrees) * generator.standard_normal(len(seen))
        seen[:, cosine], seen[:, sine] = np.cos(angle), np.sin(angle)
        seen[:, rate] += rates * generator.standard_normal(len(seen))
    for place in system.places:
        seen[:, place] += metres * generator.standard_normal(len(seen))
    return seen.astype(np.float32)


def hanging(system: System, last: NDArray[Any]) -> NDArray[np.bool_]:
    """Of observations (steps, N, k), which environments (N,) aren't held."""
    if system.places:
        distance: NDArray[Any] = np.hypot(*(last[..., place] for place in system.places)).mean(0)
        return distance > 0.5
    cosines = [last[..., cosine].mean(0) for cosine, _, _ in system.angles]
    return np.asarray(np.min(cosines, axis=0) < 0.8)


def latencies_of(name: str, episodes: int) -> list[Record]:
    """Percentiles of the processor time of one decision, without a budget and with one of 2 ms."""
    found = []
    for budget in (None, 0.002):
        with gym.make(SYSTEMS[name].env_id) as env:
            policy = MPCPolicy.for_env(env, options=replace(PLANNING, max_seconds=budget))
            policy.predict(env.reset(seed=0)[0])  # compiles
            gc.collect()
            gc.freeze()  # as a control loop should: a collection of everything that torch brought takes 150 ms
            times, episode = [], 0
            for episode in range(episodes):
                observation, state = env.reset(seed=episode)[0], None
                for _ in range(STEPS):
                    began = time.process_time()
                    action, state = policy.predict(observation, state)
                    times.append(1e3 * (time.process_time() - began))
                    observation, _, terminated, _, _ = env.step(action)
                    if terminated:
                        break
            gc.unfreeze()
        shares = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "largest": 100.0}
        row = {"system": name, "budget_ms": None if budget is None else 1e3 * budget, "steps": len(times)}
        found.append(row | {share: float(np.percentile(times, percent)) for share, percent in shares.items()})
        print(found[-1], flush=True)
    return found


def tables(found: Record) -> list[str]:
    """Both tables in Markdown."""
    return [*(hang_table(found["cells"], horizon) for horizon in ("default", 20)), latency_table(found["latency"])]


def hang_table(cells: list[Record], horizon: str | int) -> str:
    """Returns, and of a hundred episodes those that hang, where any do."""
    rows = [cell for cell in cells if cell["horizon"] == horizon]
    systems = list(dict.fromkeys(cell["system"] for cell in rows))
    cases = list(dict.fromkeys(cell["case"] for cell in rows))
    by = {(cell["system"], cell["case"]): cell for cell in rows}
    lines = [f"| horizon: {horizon} | {' | '.join(systems)} |", "|---|" + "---:|" * len(systems)]
    lines += [f"| {case} | {' | '.join(written(by.get((system, case))) for system in systems)} |" for case in cases]
    return "\n".join(lines)


def written(cell: Record | None) -> str:
    """A cell: the return; and how many hang, beside how many do at best."""
    if cell is None:
        return ""
    text = f"{cell['return']:.0f}"
    if cell["hangs"]:
        best = cell.get("hangs_at_best")
        text += f" ({cell['hangs']} hang)" if best is None else f" ({cell['hangs']} hang; at best {best})"
    return text


def latency_table(rows: list[Record]) -> str:
    """Percentiles in ms."""
    shares = ("p50", "p99", "p99.9", "largest")
    lines = [f"| CPU ms of a decision | budget | {' | '.join(shares)} |", "|---|---|" + "---:|" * len(shares)]
    for row in rows:
        budget = "none" if row["budget_ms"] is None else f"{row['budget_ms']:.0f} ms"
        lines.append(f"| {row['system']} | {budget} | {' | '.join(f'{row[share]:.2f}' for share in shares)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
