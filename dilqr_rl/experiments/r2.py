"""R2: a learnt terminal value, so that a planner that looks 5 steps ahead acts like one that looks 20 steps ahead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from dilqr_rl.agents import MPCPolicy
from dilqr_rl.experiments.experiment import Claim
from dilqr_rl.experiments.figures import draw_spread, new_figure, save_figure
from dilqr_rl.experiments.reinforcement import SYSTEMS, PPOSettings, evaluate, make_envs, told, train, true_task
from dilqr_rl.experiments.trials import Record, Trial

__all__ = ["claims", "draw", "rows", "run", "title", "trials", "workers"]

title = "A learnt terminal value"
workers: int | None = None

_SYSTEM = SYSTEMS["pendulum"]
_SHORT, _LONG = 5, 20
_SEEDS = {"smoke": 1, "quick": 2, "paper": 5}
_STEPS = {"smoke": 2_048, "quick": 32_768, "paper": 65_536}
_EVERY = 8_192
_FINAL_EPISODES = {"smoke": 2, "quick": 50, "paper": 100}
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
    """One for each seed; and plans of both lengths as they are, from the same starts."""
    episodes = _FINAL_EPISODES[preset]
    learnt = [
        Trial(f"learnt-seed{seed}", {"what": "learnt", "seed": seed, "steps": _STEPS[preset], "episodes": episodes}, 100.0)
        for seed in range(_SEEDS[preset])
    ]
    return [*learnt, Trial("plain", {"what": "plain", "seed": 0, "episodes": episodes})]


def run(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Train the terminal value alone; the physics and the stage cost are the true ones."""
    if settings["what"] == "plain":
        return {str(horizon): _plain(horizon, settings["episodes"]) for horizon in (_SHORT, _LONG)}
    policy = {"task": true_task(_SYSTEM), "horizon": _SHORT, "learn": ("terminal",), "terminal_value": (32, 32)}
    chosen = PPOSettings(32, settings["steps"], _EVERY, _ARGUMENTS, policy, decays=True)
    model, curve = train(
        _SYSTEM, "MPCPolicy", chosen, settings["seed"], lambda m: {"return": evaluate(m.policy, _SYSTEM, 20).mean_return}
    )
    return {"curve": curve, "return": evaluate(model.policy, _SYSTEM, settings["episodes"]).mean_return}


def _plain(horizon: int, episodes: int) -> float:
    """The mean return of plans of this length."""
    envs = make_envs(_SYSTEM, 1)
    policy = MPCPolicy(envs.observation_space, envs.action_space, lambda _: 0.0, task=true_task(_SYSTEM), horizon=horizon)
    envs.close()
    return evaluate(policy, _SYSTEM, episodes).mean_return


def _parts(records: Sequence[Record]) -> tuple[list[Record], Record | None]:
    plain = [r for r in records if r.settings["what"] == "plain"]
    return [r for r in records if r.settings["what"] == "learnt"], plain[0] if plain else None


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each point of each curve."""
    return [
        {"seed": record.settings["seed"], "steps": steps, "return": value}
        for record in _parts(records)[0]
        for steps, value in zip(record.result["curve"]["steps"], record.result["curve"]["return"], strict=True)
    ]


def claims(records: Sequence[Record]) -> list[Claim]:
    """What was wanted, beside what came out."""
    learnt, plain = _parts(records)
    if not learnt or plain is None:
        return []
    returns = [r.result["return"] for r in learnt]
    short, long = plain.result[str(_SHORT)], plain.result[str(_LONG)]
    gap = mean(returns) / long - 1
    ours = (
        f"{told(returns, '.1f')}, mean {mean(returns):.1f}: {100 * gap:.1f} % below; T = {_LONG} {long:.1f}, T = {_SHORT} "
        f"without it {short:.1f}"
    )
    text = f"Pendulum-v1: the mean return of T = {_SHORT} with a learnt terminal value comes close to that of T = {_LONG}"
    return [Claim(text, "wanted: within 5 %", ours, "reached" if gap <= 0.05 else "not reached")]


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Returns over steps, between those of both lengths as they are."""
    learnt, plain = _parts(records)
    figure = new_figure(6.0, 3.8)
    axes = figure.subplots()
    if learnt:
        curves = [r.result["curve"] for r in learnt]
        look = {"color": "tab:blue", "label": f"T = {_SHORT}, learnt terminal value"}
        draw_spread(axes, curves[0]["steps"], [curve["return"] for curve in curves], look)
    for horizon, style in ((_LONG, "--"), (_SHORT, ":")):
        if plain is not None:
            axes.axhline(plain.result[str(horizon)], color="grey", linestyle=style, label=f"T = {horizon}, none")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("mean return")
    axes.set_title(_SYSTEM.env_id)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return [save_figure(figure, folder / "curves.png")]
