"""E6: an expert outside the learners' model class ([DiffMPC] 5.4, Fig. 5)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from dilqr_rl import ILQR
from dilqr_rl.agents import Demonstrations, Learner
from dilqr_rl.agents.learnable import set_physics
from dilqr_rl.agents.learners.segments import cut
from dilqr_rl.experiments.experiment import Claim
from dilqr_rl.experiments.figures import draw_spread, new_figure, save_figure
from dilqr_rl.experiments.imitation import (
    HORIZON,
    expert_plans,
    fit_options,
    fit_summary,
    make_learner,
    prediction_loss,
    published_task,
)
from dilqr_rl.experiments.tables import Row
from dilqr_rl.experiments.trials import Record, Trial

__all__ = ["claims", "draw", "rows", "run", "title", "trials", "workers"]

title = "An expert outside the model class"
workers: int | None = None

_SYSTEM = "pendulum-complex"
_NAMES = ("gravity", "mass", "length")
_METHODS = {"sysid": "tab:orange", "dx": "tab:blue"}
_OPTIMIZERS = {"rmsprop": "RMSprop", "lm": "scan and Levenberg-Marquardt"}
# Trajectories to train, to validate and to test on (the few of E4 would hide the difference in noise), seeds, epochs.
_SIZES = {"smoke": ((6, 4, 8), 1, 4), "quick": ((100, 50, 200), 2, 100), "paper": ((100, 50, 300), 8, 250)}
_GRID = {"smoke": 3, "quick": 13, "paper": 25}  # a side
_DETERMINED = ("gravity/length", "mass length^2")  # which all of a plan depends on
_RANGES = ((5.0, 11.0), (0.6, 1.6))  # of these


def trials(preset: str) -> list[Trial]:
    """One for each method, optimiser and seed; and the best that any physics could do."""
    sizes, seeds, epochs = _SIZES[preset]
    fits = [
        Trial(
            f"{method}-{optimizer}-seed{seed}",
            {"method": method, "optimizer": optimizer, "sizes": sizes, "epochs": epochs, "seed": seed},
            float(epochs),
        )
        for method in _METHODS
        for optimizer in _OPTIMIZERS
        for seed in range(seeds)
    ]
    return [*fits, Trial("grid", {"method": "grid", "optimizer": "", "sizes": sizes, "side": _GRID[preset], "seed": 0}, 100.0)]


def run(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """One fit, with the imitation and the prediction loss on held-out trajectories at each look."""
    train, validation, test = expert_plans(_SYSTEM, settings["sizes"], settings["seed"])
    if settings["method"] == "grid":
        return _best(test, settings["side"])
    learner = make_learner(
        _SYSTEM, settings["method"], "implicit", _start(settings["seed"]), published=True, seed=settings["seed"]
    )
    options = fit_options(learner, settings["optimizer"], settings["epochs"], settings["seed"])
    result = learner.fit(train, validation, options, measure=lambda fitted: _both(fitted, test))
    return {**fit_summary(learner, result, test), "start": _start(settings["seed"])}


def _best(data: Demonstrations, side: int) -> dict[str, Any]:
    """The lowest imitation loss over a grid of physics."""
    task, found = published_task(_SYSTEM), []
    tested, plans = task.problem(), cut(task, data, HORIZON, torch.device("cpu"))
    planner = ILQR(tested)
    for pull, inertia in itertools.product(*(np.linspace(*ends, side).tolist() for ends in _RANGES)):
        set_physics(tested.dynamics, {"gravity": pull, "mass": inertia})
        with torch.no_grad():
            controls = planner(plans.states[:, 0]).controls
        found.append((float((controls - plans.controls).square().mean()), pull, inertia))
    loss, pull, inertia = min(found)
    return {"test_loss": loss, **dict(zip(_DETERMINED, (pull, inertia), strict=True))}


def _start(seed: int) -> dict[str, float]:
    """(5, 1, 1) + (3, 1, 1) (U - 1/2) of gravity, mass and length, with three draws U from (0, 1)."""
    draws = np.random.default_rng(seed).uniform(size=3)
    values = np.array((5.0, 1.0, 1.0)) + np.array((3.0, 1.0, 1.0)) * (draws - 0.5)
    return dict(zip(_NAMES, values.tolist(), strict=True))


def _both(learner: Learner, test: Demonstrations) -> dict[str, float]:
    predicted = prediction_loss(learner, test)
    return {"imitation": learner.imitation_loss(test), "prediction": math.nan if predicted is None else predicted}


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each trial."""
    names = ("test_loss", "prediction_loss", "best_epoch", "epochs", "fit_seconds", "impossible", *_DETERMINED)
    return [{**r.settings, **{name: r.result[name] for name in names if name in r.result}} for r in records]


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Both losses over epochs for both methods, as [DiffMPC] Fig. 5, a column for each optimiser."""
    if not records:
        return []
    figure = new_figure(8.5, 6.0)
    panels = figure.subplots(2, len(_OPTIMIZERS), squeeze=False, sharex="col", sharey="row")
    for column, (optimizer, label) in enumerate(_OPTIMIZERS.items()):
        for row, name in enumerate(("prediction", "imitation")):
            for method, colour in _METHODS.items():
                epochs, curves = _curves(records, method, optimizer, name)
                if curves:
                    draw_spread(panels[row][column], epochs, curves, {"color": colour, "label": method})
            panels[row][column].set_yscale("log")
            panels[row][column].grid(alpha=0.3)
        panels[0][column].set_title(label)
        panels[1][column].set_xlabel("epoch")
    panels[0][0].set_ylabel("prediction loss, test (sysid's own)")
    panels[1][0].set_ylabel("imitation loss, test (dx's own)")
    panels[0][0].legend()
    return [save_figure(figure, folder / "losses.png")]


def _curves(records: Sequence[Record], method: str, optimizer: str, name: str) -> tuple[list[float], list[list[float]]]:
    """Epochs, and for each seed the loss of what the fit would keep, were it to end there: the best validation epoch's."""
    curves = [record.result["curve"] for record in _of(records, method, optimizer)]
    if not curves:
        return [], []
    epochs = max((curve["epoch"] for curve in curves), key=len)
    kept = []
    for curve in curves:
        best = np.minimum.accumulate(curve["validation_loss"])
        places = [int(np.argmax(np.array(curve["validation_loss"]) == value)) for value in best]
        values = [curve[name][place] for place in places]
        kept.append(values + values[-1:] * (len(epochs) - len(values)))
    return epochs, kept


def _of(records: Sequence[Record], method: str, optimizer: str) -> list[Record]:
    return [r for r in records if (r.settings["method"], r.settings["optimizer"]) == (method, optimizer)]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """[DiffMPC]'s two claims, by the published optimiser and by ours."""
    found = []
    for optimizer, label in _OPTIMIZERS.items():
        published = "[DiffMPC] 5.4" if optimizer == "rmsprop" else "-"
        pairs = [_fits(rows, method, optimizer) for method in _METHODS]
        if not all(pairs):
            continue
        (seen, imitated), (predicted, planned) = (
            [mean(row[name] for row in fits) for fits in pairs] for name in ("test_loss", "prediction_loss")
        )
        ratio = seen / imitated
        verdict = "reproduced" if ratio >= 1.8 else "partly" if ratio > 1 else "not reproduced"
        ours = f"{ratio:.2f} ({imitated:.3g} and {seen:.3g}, means of {len(pairs[0])} seeds)"
        text = f"dx's imitation loss is below sysid's by a factor of, {label}"
        found.append(
            Claim(text, f"{published}: 1.8" if published != "-" else "-", ours, verdict if published != "-" else "new")
        )
        verdict = "reproduced" if predicted < planned else "not reproduced"
        ours = f"sysid {predicted:.3g}, dx {planned:.3g}"
        text = f"sysid predicts better than dx, {label}"
        found.append(Claim(text, published, ours, verdict if published != "-" else "new"))
    return [*found, *(_grid_claim(row, rows) for row in rows if row["method"] == "grid")]


def _fits(rows: Sequence[Row], method: str, optimizer: str) -> list[Row]:
    return [row for row in rows if (row["method"], row.get("optimizer")) == (method, optimizer)]


def _grid_claim(best: Row, rows: Sequence[Row]) -> Claim:
    """Beside what fits reach on the same plans."""
    loss, pull, inertia = (best[name] for name in ("test_loss", *_DETERMINED))
    ours = f"{loss:.3g}, at gravity/length = {pull:.3g}, mass length² = {inertia:.3g}, over {best['sizes'][-1]} plans"
    same = [row for method in _METHODS for row in _fits(rows, method, "rmsprop") if row["seed"] == best["seed"]]
    ours += "".join(f"; {row['method']} by RMSprop on the same plans {row['test_loss']:.3g}" for row in same)
    return Claim("The lowest imitation loss that any physics of the learners' model has, by a grid", "-", ours, "new")
