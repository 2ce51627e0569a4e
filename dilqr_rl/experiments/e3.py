"""E3: imitation of an LQR controller ([DiffMPC] 5.2, Fig. 3), which sticks in local minima, and what restarts bring."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor

from dilqr_rl import ILQR, ControlProblem, ILQROptions
from dilqr_rl.agents import Demonstrations, FitOptions, FitResult
from dilqr_rl.agents.learners import LinearLearner
from dilqr_rl.experiments.experiment import Claim
from dilqr_rl.experiments.figures import new_figure, save_figure
from dilqr_rl.experiments.systems import linear_problem, linear_starts
from dilqr_rl.experiments.tables import Row
from dilqr_rl.experiments.trials import Record, Trial
from dilqr_rl.solution import Solution
from dilqr_rl.tasks import ControlTask

__all__ = ["claims", "draw", "rows", "run", "title", "trials", "workers"]

title = "Imitation of an LQR controller"
workers: int | None = None

HORIZON, BATCH = 5, 128
_SIZE = 3  # n and m
Compared = Literal["controls", "states_and_controls"]
_METHODS: dict[str, tuple[Literal["lm", "rmsprop"], int, Compared, str]] = {  # optimiser, restarts, what is compared, label
    "rmsprop": ("rmsprop", 0, "states_and_controls", "RMSprop, as published"),
    "lm": ("lm", 0, "states_and_controls", "Levenberg-Marquardt"),
    "lm-restarts": ("lm", 7, "states_and_controls", "Levenberg-Marquardt, 7 restarts"),
    "lm-controls": ("lm", 7, "controls", "the same, by controls alone"),
}
_SIZES = {"smoke": (1, 1, 20), "quick": (1, 8, 1000), "paper": (2, 8, 5000)}  # experts, trials for each, steps of RMSprop
_PLANS = {"rmsprop": 10 * BATCH, "lm": BATCH}  # to learn from; published are fresh ones at each step
_SOLVED = 1e-3  # of the loss at the start: what RMSprop's constant step leaves where it doesn't stick
_EXACT = 1e-10  # of the same: solved to rounding, or to the planner's tolerance
_EXPERT = ILQROptions(tolerance=1e-9)
_DIVERGED, _LEAST = 1e300, 1e-32  # what stands for infinity in a file, and what is drawn of zero
_LOOKS = 100  # at the losses, during RMSprop


def trials(preset: str) -> list[Trial]:
    """One for each method, expert and start."""
    experts, starts, steps = _SIZES[preset]
    return [
        Trial(
            f"{method}-expert{expert}-start{start}",
            {"method": method, "expert": expert, "start": start, "steps": steps if optimizer == "rmsprop" else 800},
            float(steps if optimizer == "rmsprop" else 400),
        )
        for method, (optimizer, *_) in _METHODS.items()
        for expert in range(experts)
        for start in range(starts)
    ]


def run(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """One fit; the imitation loss is that of states and controls, on other plans, whatever is learnt from."""
    optimizer, _, compare, _ = _METHODS[settings["method"]]
    expert = linear_problem(HORIZON, settings["expert"])
    train, validation, test = (_plans(expert, count, seed) for count, seed in ((_PLANS[optimizer], 1), (BATCH, 2), (BATCH, 3)))
    learner = LinearLearner(_task(expert), compare=compare, seed=settings["start"])
    result = learner.fit(
        _demonstrations(train),
        _demonstrations(validation),
        _options(settings),
        measure=lambda fitted: _losses(fitted, expert, test),
    )
    curve = _curve(result, _PLANS[optimizer] // BATCH)
    return {
        "start_loss": curve["imitation"][0],
        **{f"{name}_loss": value for name, value in _losses(learner, expert, test).items()},
        "best_step": result.best_epoch * (_PLANS[optimizer] // BATCH),
        "fit_seconds": result.seconds,
        "curve": curve,
    }


def _task(expert: ControlProblem) -> ControlTask:
    return ControlTask(
        name="linear",
        dynamics=expert.dynamics,
        stage_cost=expert.stage_cost,
        observation_to_state=_itself,
        horizon=HORIZON,
        state_size=_SIZE,
        control_size=_SIZE,
        u_min=-math.inf,
        u_max=math.inf,
    )


def _itself(observation: Tensor) -> Tensor:
    return observation


@torch.no_grad()
def _plans(expert: ControlProblem, count: int, seed: int) -> Solution:
    return ILQR(expert, _EXPERT)(linear_starts(count, seed))


def _demonstrations(plans: Solution) -> Demonstrations:
    return Demonstrations.from_arrays("linear", plans.states.numpy(), plans.controls.numpy(), open_loop=True)


def _options(settings: Mapping[str, Any]) -> FitOptions:
    optimizer, restarts, *_ = _METHODS[settings["method"]]
    epochs = max(1, settings["steps"] * BATCH // _PLANS[optimizer])
    if optimizer == "lm":
        return FitOptions(optimizer="lm", epochs=epochs, restarts=restarts)
    looks = max(1, epochs // _LOOKS)
    return FitOptions(optimizer="rmsprop", epochs=epochs, batch_size=BATCH, learning_rate=1e-2, validate_every=looks)


@torch.no_grad()
def _losses(learner: LinearLearner, expert: ControlProblem, test: Solution) -> dict[str, float]:
    """Mean squared errors: of the planned states and controls, and of A plus that of B."""
    planned = learner.planner(test.states[:, 0])
    errors = torch.cat(((planned.states - test.states)[:, 1:].flatten(1), (planned.controls - test.controls).flatten(1)), dim=1)
    learnt = learner.readable_parameters()
    model = sum((value - expert.get_parameter(name)).square().mean() for name, value in learnt.items())
    return {
        "imitation": float(torch.nan_to_num(errors.square().mean(), nan=_DIVERGED, posinf=_DIVERGED)),
        "model": float(torch.nan_to_num(torch.as_tensor(model), nan=_DIVERGED, posinf=_DIVERGED)),
    }


def _curve(result: FitResult, steps_per_epoch: int) -> dict[str, list[float]]:
    epochs, imitation = result.column("imitation")
    steps = [float(epoch * steps_per_epoch) for epoch in epochs]
    return {"step": steps, "imitation": imitation, "model": result.column("model")[1]}


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each trial."""
    names = ("start_loss", "imitation_loss", "model_loss", "best_step", "fit_seconds")
    return [{**r.settings, **{name: r.result[name] for name in names}, "solved": _solved(r.result)} for r in records]


def _solved(row: Row, share: float = _SOLVED) -> bool:
    return bool(row["imitation_loss"] < share * row["start_loss"])


def claims(rows: Sequence[Row]) -> list[Claim]:
    """How many trials reach zero, by the published optimiser and by ours, and whether A and B are found with it."""
    found = []
    for method, (_, _, _, label) in _METHODS.items():
        mine = [row for row in rows if row["method"] == method]
        if not mine:
            continue
        published = "[DiffMPC] 5.2: half of 8, the others stick in local minima" if method == "rmsprop" else "-"
        share = sum(map(_solved, mine)) / len(mine)
        usual = "reproduced" if 0.25 <= share <= 0.75 else "partly" if share > 0.75 else "not reproduced"
        found.append(
            Claim(
                f"Trials that reach zero imitation loss: {label}", published, _told(mine), usual if published != "-" else "new"
            )
        )
    return [*found, *_model_claims(rows)]


def _told(rows: Sequence[Row]) -> str:
    """How many reach zero for each expert; how many of these exactly, and after how many steps and seconds these do."""
    experts = sorted({row["expert"] for row in rows})
    counts = [[_solved(row) for row in rows if row["expert"] == expert] for expert in experts]
    told = ", ".join(f"{sum(solved)} of {len(solved)}" for solved in counts)
    good = [row for row in rows if _solved(row)]
    if not good:
        return told
    exact = sum(_solved(row, _EXACT) for row in good)
    steps, seconds = (median(row[name] for row in good) for name in ("best_step", "fit_seconds"))
    several = " (experts 1, 2, ...)" if len(experts) > 1 else ""
    which = f"; of these {len(good)}, {exact} below 1e-10 of the start, median {steps:.0f} steps, {seconds:.1f} s"
    return f"{told}{several}{which}"


def _model_claims(rows: Sequence[Row]) -> list[Claim]:
    solved, stuck = ([row["model_loss"] for row in rows if _solved(row) is good] for good in (True, False))
    if not solved:
        return []
    others = f"; where it sticks {median(stuck):.2g}, at least {min(stuck):.2g}" if stuck else ""
    ours = f"model loss {median(solved):.1g} in the median, {max(solved):.1g} at most{others}"
    return [Claim("A and B are found where the imitation loss reaches zero", "-", ours, "new")]


def _of(records: Sequence[Record], method: str) -> list[Record]:
    return [record for record in records if record.settings["method"] == method]


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Both losses over steps as [DiffMPC] Fig. 3, a line for each trial of the first expert, a column for each method."""
    methods = [method for method in _METHODS if _of(records, method)]
    if not methods:
        return []
    figure = new_figure(3.0 * len(methods) + 1.0, 5.5)
    panels = figure.subplots(2, len(methods), squeeze=False, sharex="col", sharey="row")
    for column, method in zip(panels.T, methods, strict=True):
        column[0].set_title(_METHODS[method][3], fontsize="medium")
        column[1].set_xlabel("step")
        for panel, name in zip(column, ("imitation", "model"), strict=True):
            for record in _of(records, method):
                if record.settings["expert"] == 0:
                    curve = record.result["curve"]
                    panel.plot(curve["step"], [max(loss, _LEAST) for loss in curve[name]], lw=1)
            panel.set_yscale("log")
            panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("imitation loss, test")
    panels[1][0].set_ylabel("model loss")
    return [save_figure(figure, folder / "losses.png")]
