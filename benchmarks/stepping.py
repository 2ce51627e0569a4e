"""How fast the environments are, as ratios to Gymnasium's `Pendulum-v1` in one run: `python -m benchmarks.stepping`.

Everything that is compared is timed in short blocks, one after the other in every round, so that a busy second hits both sides
alike; a ratio is the median over the rounds. Figures of `gymnasium.utils.performance` follow. All times are those of the
processor, on one thread: on a shared machine a clock tells more about the others. The tables that are printed stand in
docs/environments.md too.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cv2
import gymnasium as gym
import torch
import tyro
from gymnasium.utils import performance
from gymnasium.wrappers import AddRenderObservation, ResizeObservation

from benchmarks.cells import Record, machine
from benchmarks.tables import number
from dilqr_rl.envs import ENVIRONMENTS

PEER = "Pendulum-v1"
PIXEL_IDS = [env_id for env_id in ENVIRONMENTS if "Pixels" in env_id]
STATE_IDS = [env_id for env_id in ENVIRONMENTS if env_id not in PIXEL_IDS]
WANTED = {"step": 1, "step, bare": 1, "reset": None, "reset, bare": None, "batch of 1024": 100, "pixels, 64": 50}
TITLES = {"init": "make and reset", "step": "step", "render": "render", "vector_step": "step, batch of 64"}
BATCH, PIXEL_BATCH, SIZE = 1024, 64, 64


@dataclass(frozen=True)
class Args:
    """Measure how fast the environments are."""

    quick: bool = False
    """Some seconds, to see that it runs; the figures mean nothing."""
    results: Path | None = None
    """File of the results; benchmarks/results/stepping.json unless given, or build/bench/stepping.json for a quick run."""
    report: bool = False
    """Measure nothing: print the tables of what has been measured."""


@dataclass(frozen=True)
class Block:
    """A piece of work that is timed.

    Attributes:
        prepare: called before, outside the time.
        run: the work.
        units: how many environment steps, or resets, that is.
    """

    prepare: Callable[[], Any]
    run: Callable[[], Any]
    units: int


def main(args: Args) -> Record:
    """Measure, write and print; returns what was written."""
    home = Path(__file__).parents[1]
    folder = home / "build" / "bench" if args.quick else home / "benchmarks" / "results"
    file = args.results or folder / "stepping.json"
    if args.report:
        found = read(file)
    else:
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame looks for a screen even where it draws into memory
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        found = measure(args.quick)
        write(found, file)
    print(markdown(found))
    return found


def measure(quick: bool) -> Record:
    """All figures, with the machine they come from."""
    load = os.getloadavg()[0]
    cells: dict[str, Record] = {}
    for what, measured in (("step", step_block), ("reset", reset_block)):
        for bare in (False, True):
            blocks = {env_id: measured(alone(env_id, bare=bare)) for env_id in (PEER, *STATE_IDS)}
            cells |= compare(f"{what}, bare" if bare else what, blocks, 3 if quick else 300)
    batches = {PEER: batch_block(gym.make_vec(PEER, BATCH, "sync"), 5)}
    batches |= {env_id: batch_block(native_batch(env_id, BATCH), 201) for env_id in STATE_IDS}
    cells |= compare("batch of 1024", batches, 1 if quick else 60)
    pixels = {PEER: batch_block(gym.vector.SyncVectorEnv([rendered_pendulum] * PIXEL_BATCH), 1)}
    pixels |= {env_id: batch_block(native_batch(env_id, PIXEL_BATCH), 40) for env_id in PIXEL_IDS}
    cells |= compare("pixels, 64", pixels, 1 if quick else 60)
    return {
        "machine": {**machine(), "gymnasium": version("gymnasium")},
        "time": time.strftime("%Y-%m-%d %H:%M"),
        "load": [load, os.getloadavg()[0]],
        "cells": cells,
        "performance": performance_figures(*((0.02, 1) if quick else (0.1, 21))),
    }


def alone(env_id: str, *, bare: bool) -> gym.Env[Any, Any]:
    """One environment, as gymnasium.make wraps it or without its wrappers."""
    env = gym.make(env_id)
    return env.unwrapped if bare else env


def native_batch(env_id: str, count: int) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Environments of ours as one."""
    return gym.make_vec(env_id, count, "vector_entry_point")


def rendered_pendulum() -> gym.Env[Any, Any]:
    """What Gymnasium has in the place of a pixel environment: a picture at its full size, made smaller."""
    return ResizeObservation(AddRenderObservation(gym.make(PEER, render_mode="rgb_array"), render_only=True), (SIZE, SIZE))


def step_block(env: gym.Env[Any, Any]) -> Block:
    """The first 100 steps of an episode, which is shorter than the time limit."""
    actions = sampled(env.action_space, 100)

    def run() -> None:
        for action in actions:
            env.step(action)

    return Block(env.reset, run, len(actions))


def reset_block(env: gym.Env[Any, Any]) -> Block:
    """Starts of episodes, without a seed."""

    def run() -> None:
        for _ in range(50):
            env.reset()

    return Block(env.reset, run, 50)


def batch_block(env: gym.vector.VectorEnv[Any, Any, Any], steps: int) -> Block:
    """Steps of a batch that begins anew by itself. 201 are an episode of 200 and what begins the next one."""
    env.reset(seed=0)
    actions = sampled(env.action_space, steps)

    def run() -> None:
        for action in actions:
            env.step(action)

    return Block(lambda: None, run, steps * env.num_envs)


def sampled(space: gym.Space[Any], count: int) -> list[Any]:
    """Random actions, the same in every run."""
    space.seed(0)
    return [space.sample() for _ in range(count)]


def compare(what: str, blocks: Mapping[str, Block], rounds: int) -> dict[str, Record]:
    """How much faster each block is than that of `Pendulum-v1`: cells by name."""
    seconds: dict[str, list[float]] = {env_id: [] for env_id in blocks}
    for block in blocks.values():  # once untimed: compiles, and fills caches
        block.prepare()
        block.run()
    for _ in range(rounds):
        for env_id, block in blocks.items():
            block.prepare()
            start = time.process_time()
            block.run()
            seconds[env_id].append((time.process_time() - start) / block.units)
    return {f"{what} | {env_id}": cell(what, env_id, seconds) for env_id in blocks if env_id != PEER}


def cell(what: str, env_id: str, seconds: Mapping[str, list[float]]) -> Record:
    """The record of an environment beside `Pendulum-v1`, of seconds per step in every round."""
    times_as_fast = [theirs / ours for theirs, ours in zip(seconds[PEER], seconds[env_id], strict=True)]
    quartiles = statistics.quantiles(times_as_fast, n=4) if len(times_as_fast) > 1 else times_as_fast * 3
    return {
        "what": what,
        "id": env_id,
        "times_as_fast": significant(statistics.median(times_as_fast)),
        "quartiles": [significant(quartiles[0]), significant(quartiles[2])],
        "per_second": significant(1 / statistics.median(seconds[env_id])),
        "per_second_of_Pendulum-v1": significant(1 / statistics.median(seconds[PEER])),
        "rounds": len(times_as_fast),
        "wanted": WANTED[what],
    }


def performance_figures(seconds: float, rounds: int) -> dict[str, Record]:
    """What `gymnasium.utils.performance` measures, per second, by id: the median of rounds that alternate between the ids."""
    ids = (PEER, *ENVIRONMENTS)
    found: dict[str, dict[str, list[float]]] = {env_id: {name: [] for name in TITLES} for env_id in ids}
    processor_time = SimpleNamespace(time=time.process_time)
    with mock.patch.object(performance, "time", processor_time):
        for _, env_id in itertools.product(range(rounds), ids):
            for name, rate in one_round(env_id, seconds).items():
                found[env_id][name].append(rate)
    return {env_id: {name: significant(statistics.median(rates)) for name, rates in of.items()} for env_id, of in found.items()}


def one_round(env_id: str, seconds: float) -> dict[str, float]:
    """Each of the four figures of one id, measured for a while."""
    env = gym.make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    batch = gym.make_vec(env_id, PIXEL_BATCH, "sync" if env_id == PEER else "vector_entry_point")
    wait: Any = seconds  # declared as whole seconds there
    rates = {
        "init": performance.benchmark_init(lambda: gym.make(env_id), wait),
        "render": performance.benchmark_render(env, wait),
        "step": performance.benchmark_step(gym.make(env_id), wait, seed=0),
        "vector_step": performance.benchmark_vector_step(batch, wait, seed=0),
    }
    env.close()
    batch.close()
    return rates


def markdown(found: Record) -> str:
    """The tables of the page: how many times as fast, and how many per second."""
    cells, kinds = found["cells"], list(WANTED)
    lines = [row("times as fast as Pendulum-v1", *kinds), rule(len(kinds))]
    for env_id in ENVIRONMENTS:
        ratios = [cells.get(f"{kind} | {env_id}", {}).get("times_as_fast") for kind in kinds]
        lines.append(row(f"`{env_id}`", *(number(ratio, "") for ratio in ratios)))
    lines += [row("wanted", *("" if wanted is None else f"{wanted}" for wanted in WANTED.values())), ""]
    lines += [row("per second", *TITLES.values()), rule(len(TITLES))]
    for env_id, rates in found["performance"].items():
        lines.append(row(f"`{env_id}`", *(f"{rates[name]:,.0f}" for name in TITLES)))
    return "\n".join(lines)


def row(*texts: str) -> str:
    """A row of a table in Markdown."""
    return f"| {' | '.join(texts)} |"


def rule(columns: int) -> str:
    """What follows a table's head: the first column to the left, the others to the right."""
    return f"|---|{'---:|' * columns}"


def significant(value: float) -> float:
    """Three digits, more than the machine's noise leaves."""
    return float(f"{value:.3g}")


def write(found: Record, file: Path) -> None:
    """Write the figures, a line a cell."""
    file.parent.mkdir(parents=True, exist_ok=True)
    parts = {name: json.dumps(value) for name, value in found.items() if name not in ("cells", "performance")}
    for name in ("cells", "performance"):
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(record)}" for key, record in found[name].items())
        parts[name] = f"{{\n{lines}\n }}"
    body = ",\n".join(f' "{name}": {text}' for name, text in parts.items())
    file.write_text(f"{{\n{body}\n}}\n", encoding="utf-8")


def read(file: Path) -> Record:
    """What was written.

    Raises:
        ValueError: nothing is there.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no results there yet. Run `python -m benchmarks.stepping` first.")
    found: Record = json.loads(file.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    main(tyro.cli(Args))
