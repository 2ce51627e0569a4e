"""R2: a learnt terminal value, so that a planner that looks 5 steps ahead acts like one that looks 20 steps ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dilqr_rl.agents import MPCPolicy, TerminalFit, fit_terminal_value
from dilqr_rl.experiments.experiment import Claim
from dilqr_rl.experiments.figures import draw_spread, new_figure, save_figure
from dilqr_rl.experiments.reinforcement import SYSTEMS, PPOSettings, evaluate, make_envs, told, train, true_task
from dilqr_rl.experiments.tables import Row
from dilqr_rl.experiments.trials import Record, Trial

__all__ = ["claims", "draw", "rows", "run", "title", "trials", "workers"]

title = "A learnt terminal value"
workers: int | None = None

_SYSTEM = replace(SYSTEMS["pendulum"], env_id="dilqr_rl/Pendulum-v0")  # Pendulum-v1, a batch at a time
_SHORT, _LONG = 5, 20
_SEEDS = {"smoke": 1, "quick": 2, "paper": 5}
# Of PPO; its rate falls to zero, so the last of its rollouts of 2,048 steps teaches nothing.
_STEPS = {"smoke": 4_096, "quick": 16_384, "paper": 49_152}
_EVERY = 4_096
_FIT = {"smoke": (500, 50), "quick": (8_000, 4_000), "paper": (8_000, 4_000)}  # states, steps
_FINAL_EPISODES = {"smoke": 2, "quick": 50, "paper": 100}
_METHODS = {"plans": "longer plans", "reward": "reward, by PPO"}
_ARGUMENTS = {
    "use_sde": True,
    "sde_sample_freq": 4,
    "n_steps": 64,
    "batch_size": 256,
    "n_epochs": 10,
    "gamma": 0.98,
    "learning_rate": 5e-3,
}


def trials(preset: str) -> list[Trial]:
    """One for each method and seed; and plans of both lengths as they are, from the same starts."""
    common = {"episodes": _FINAL_EPISODES[preset], "steps": _STEPS[preset], "fit": _FIT[preset]}
    learnt = [
        Trial(f"{what}-seed{seed}", {"what": what, "seed": seed, **common}, 100.0 if what == "reward" else 30.0)
        for what in _METHODS
        for seed in range(_SEEDS[preset])
    ]
    return [*learnt, Trial("plain", {"what": "plain", "seed": 0, **common})]


def run(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Learn the terminal value alone; the physics and the stage cost are the true ones."""
    episodes = settings["episodes"]
    if settings["what"] == "plain":
        return {str(horizon): evaluate(_policy(horizon=horizon), _SYSTEM, episodes).mean_return for horizon in (_SHORT, _LONG)}
    arguments = {"horizon": _SHORT, "learn": ("terminal",), "terminal_value": (32, 32)}
    if settings["what"] == "plans":
        states, steps = settings["fit"]
        torch.manual_seed(settings["seed"])
        policy = _policy(**arguments)
        observations = _everywhere(states, settings["seed"])
        loss = fit_terminal_value(policy, observations, _LONG - _SHORT, TerminalFit(steps=steps, seed=settings["seed"]))
        return {"loss": loss, "return": evaluate(policy, _SYSTEM, episodes).mean_return}
    chosen = PPOSettings(32, settings["steps"], _EVERY, _ARGUMENTS, {"task": true_task(_SYSTEM), **arguments}, decays=True)
    model, curve = train(
        _SYSTEM, "MPCPolicy", chosen, settings["seed"], lambda m: {"return": evaluate(m.policy, _SYSTEM, 20).mean_return}
    )
    return {"curve": curve, "return": evaluate(model.policy, _SYSTEM, episodes).mean_return}


def _everywhere(count: int, seed: int) -> NDArray[np.floating[Any]]:
    """Observations (count, 3) at any angle and speed that the environment has."""
    angle, rate = np.random.default_rng(seed).uniform((-np.pi, -8.0), (np.pi, 8.0), (count, 2)).T
    return np.stack((np.cos(angle), np.sin(angle), rate), axis=1)


def _policy(**arguments: Any) -> MPCPolicy:
    with closing(make_envs(_SYSTEM, 1)) as envs:
        return MPCPolicy(envs.observation_space, envs.action_space, lambda _: 0.0, task=true_task(_SYSTEM), **arguments)


def _of(records: Sequence[Record], what: str) -> list[Record]:
    return [record for record in records if record.settings["what"] == what]


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each seed's end, for each horizon as it is, and for each point of each curve."""
    found: list[dict[str, Any]] = []
    for record in records:
        where, result = {name: record.settings[name] for name in ("what", "seed")}, record.result
        if where["what"] == "plain":
            found += [{**where, "return": result[str(horizon)], "horizon": horizon} for horizon in (_SHORT, _LONG)]
            continue
        found.append({**where, "return": result["return"], "horizon": _SHORT})
        curve = result.get("curve", {"steps": (), "return": ()})
        points = zip(curve["steps"], curve["return"], strict=True)
        found += [{**where, "steps": steps, "return": value} for steps, value in points]
    return found


def claims(rows: Sequence[Row]) -> list[Claim]:
    """What was wanted, beside what came out."""
    plain = {row["horizon"]: row["return"] for row in rows if row["what"] == "plain"}
    if not plain:
        return []
    (short, long), found = (plain[horizon] for horizon in (_SHORT, _LONG)), []
    for what, label in _METHODS.items():
        returns = [row["return"] for row in rows if row["what"] == what and row.get("steps") is None]
        if not returns:
            continue
        gap = mean(returns) / long - 1
        ours = (
            f"mean {mean(returns):.1f}, {100 * gap:.1f} % below; seeds {told(returns, '.1f')}; T = {_LONG} {long:.1f}, "
            f"T = {_SHORT} without it {short:.1f}"
        )
        text = f"Pendulum, T = {_SHORT} with a terminal value learnt from {label}: the mean return beside that of T = {_LONG}"
        found.append(Claim(text, "wanted: within 5 %", ours, "reached" if gap <= 0.05 else "not reached"))
    return found


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Returns over steps, between those of both lengths as they are, and what longer plans teach without a step."""
    figure = new_figure(6.0, 3.8)
    axes = figure.subplots()
    curves = [r.result["curve"] for r in _of(records, "reward")]
    if curves:
        look = {"color": "tab:blue", "label": f"T = {_SHORT}, value from {_METHODS['reward']}"}
        draw_spread(axes, curves[0]["steps"], [curve["return"] for curve in curves], look)
    taught = [r.result["return"] for r in _of(records, "plans")]
    if taught:
        axes.axhspan(min(taught), max(taught), color="tab:green", alpha=0.3, lw=0)
        axes.axhline(mean(taught), color="tab:green", label=f"T = {_SHORT}, value from {_METHODS['plans']}, no steps")
    for plain in _of(records, "plain"):
        for horizon, style in ((_LONG, "--"), (_SHORT, ":")):
            axes.axhline(plain.result[str(horizon)], color="grey", linestyle=style, label=f"T = {horizon}, none")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("mean return")
    axes.set_title("Pendulum-v1")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(loc="lower right", fontsize=8)
    return [save_figure(figure, folder / "curves.png")]
