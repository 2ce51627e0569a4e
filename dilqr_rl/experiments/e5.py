"""E5: model loss with the implicit gradient and with DiffMPC's, on the cart-pole ([DiLQR] 5.2, Fig. 3b, and its website)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dilqr_rl import ILQR, ControlProblem
from dilqr_rl.agents import PhysicsLearner, PlanningLearner
from dilqr_rl.agents.learners.segments import Segments, cut
from dilqr_rl.experiments.experiment import Claim
from dilqr_rl.experiments.figures import draw_spread, new_figure, save_figure
from dilqr_rl.experiments.imitation import (
    HORIZON,
    expert_plans,
    fit_options,
    fit_summary,
    make_learner,
    model_losses,
    published_task,
)
from dilqr_rl.experiments.systems import SYSTEMS
from dilqr_rl.experiments.tables import Row
from dilqr_rl.experiments.trials import Record, Trial

__all__ = ["claims", "draw", "rows", "run", "title", "trials", "workers"]

title = "Model loss with two gradients"
workers: int | None = None

_SYSTEM = "cartpole"
_POSITIVE = ("cart_mass", "pole_mass", "length")
_GRADIENTS: tuple[Literal["implicit", "diffmpc"], ...] = ("implicit", "diffmpc")
_KINDS = {"cost": "cost", "dx": "physics, positive by construction", "dx-free": "physics, as published"}
_AT = "at the best validation epoch"
_SIZES = {"smoke": (6, 1, 4), "quick": (50, 2, 200), "paper": (50, 6, 1000)}  # trajectories, seeds, epochs


class _FreePhysicsLearner(PhysicsLearner):
    """As published: nothing keeps masses and lengths positive, nothing refuses others, and steps are in their own units."""

    def release(self, problem: ControlProblem) -> None:
        """Only what is learnt, as it is."""
        problem.dynamics.positive = ()  # type: ignore[assignment]  # of this copy
        physics = SYSTEMS[_SYSTEM].physics
        for name, parameter in problem.named_parameters():
            parameter.requires_grad_(name.removeprefix("dynamics.") in physics)


def trials(preset: str) -> list[Trial]:
    """One for each kind of learning, gradient and seed."""
    size, seeds, epochs = _SIZES[preset]
    return [
        Trial(
            f"{kind}-{gradient}-seed{seed}",
            {"kind": kind, "gradient": gradient, "size": size, "epochs": epochs, "seed": seed},
            float(epochs),
        )
        for kind in _KINDS
        for gradient in _GRADIENTS
        for seed in range(seeds)
    ]


def run(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """One fit, with the model loss and the angle between the two gradients at each look."""
    train, validation, test = expert_plans(_SYSTEM, (settings["size"], 10, 10), settings["seed"])
    learner = _make(settings)
    segments = cut(learner.task, train, HORIZON, learner.device)
    options = fit_options(learner, "rmsprop", settings["epochs"], settings["seed"])

    def measure(fitted: PlanningLearner) -> dict[str, float]:
        values = {name.rpartition(".")[2]: value for name, value in fitted.readable_parameters().items()}
        masses = {name: float(values[name]) for name in _POSITIVE if name in values}
        return {**model_losses(fitted), **masses, "angle": _angle(fitted, segments)}

    result = learner.fit(train, validation, options, measure=measure)
    last = {name: result.column(name)[1][-1] for name in _POSITIVE if result.column(name)[1]}
    return {**fit_summary(learner, result, test), "impossible_at_the_end": any(value <= 0 for value in last.values())}


def _make(settings: Mapping[str, Any]) -> PlanningLearner:
    physics, gradient = SYSTEMS[_SYSTEM].learner, settings["gradient"]
    if settings["kind"] == "dx-free":
        return _FreePhysicsLearner(published_task(_SYSTEM), horizon=HORIZON, physics=physics, gradient=gradient)
    found = make_learner(_SYSTEM, settings["kind"], gradient, physics, published=True, seed=settings["seed"])
    if not isinstance(found, PlanningLearner):
        raise TypeError(f"kind: expected a learner that plans, got {settings['kind']!r}.")
    return found


def _angle(learner: PlanningLearner, segments: Segments) -> float:
    """Between the two gradients of the training loss, in degrees; NaN where one of them is zero."""
    with _all_trained(learner) as parameters, torch.enable_grad():
        first, second = (_gradient(ILQR(learner.problem, learner.planner.options, g), segments, parameters) for g in _GRADIENTS)
    norms = float(first.norm() * second.norm())
    return math.degrees(math.acos(max(-1.0, min(1.0, float(first @ second) / norms)))) if norms > 0 else math.nan


@contextmanager
def _all_trained(learner: PlanningLearner) -> Iterator[list[Tensor]]:
    """The trained parameters, also those that rest at the moment."""
    parameters = list(learner.trained_parameters().values())
    resting = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in resting:
        parameter.requires_grad_(True)
    try:
        yield list(parameters)
    finally:
        for parameter in resting:
            parameter.requires_grad_(False)


def _gradient(planner: ILQR, segments: Segments, parameters: list[Tensor]) -> Tensor:
    loss = (planner(segments.states[:, 0]).controls - segments.controls).square().mean()
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, parameters)])


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each trial."""
    names = ("test_loss", "best_epoch", "physics_loss", "cost_loss", "impossible", "impossible_at_the_end", "fit_seconds")
    found = []
    for record in records:
        more = {name: record.result[name] for name in names if name in record.result}
        if record.settings["kind"] == "cost":
            more["scaled_cost_loss"] = _shape_error(record.result["parameters"])
        angles = [angle for angle in record.result.get("curve", {}).get("angle", []) if angle <= 180]
        found.append({**record.settings, **more, **({"median_angle": median(angles)} if angles else {})})
    return found


def _shape_error(parameters: Mapping[str, list[float]]) -> float:
    """Mean squared error of the weights and of weights times goal, the weights scaled to the length of the true ones."""
    true = SYSTEMS[_SYSTEM]
    weights, goal = (np.array(parameters[f"stage_cost.{name}"]) for name in ("weights", "goal"))
    true_weights, true_goal = np.array(true.weights), np.array(true.goal)
    weights *= np.linalg.norm(true_weights) / np.linalg.norm(weights)
    errors = np.concatenate((weights - true_weights, weights * goal - true_weights * true_goal))
    return float(np.square(errors).mean())


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Model loss and angle over epochs, a column for each kind of learning ([DiLQR] Fig. 3b)."""
    kinds = [kind for kind in _KINDS if _curves(records, kind, _GRADIENTS[0], "validation_loss")[1]]
    if not kinds:
        return []
    figure = new_figure(4.0 * len(kinds), 7.5)
    panels = figure.subplots(3, len(kinds), squeeze=False, sharex="col")
    for column, kind in enumerate(kinds):
        names = ("cost_loss" if kind == "cost" else "physics_loss", "validation_loss", "angle")
        for row, name in enumerate(names):
            panel = panels[row][column]
            for gradient, colour in zip(_GRADIENTS, ("tab:blue", "tab:orange"), strict=True):
                epochs, curves = _curves(records, kind, gradient, name)
                if curves:
                    draw_spread(panel, epochs, curves, {"color": colour, "label": gradient})
            panel.set_yscale("linear" if name == "angle" else "log")
            panel.grid(alpha=0.3)
        panels[0][column].set_title(f"learns {_KINDS[kind]}")
        panels[2][column].set_xlabel("epoch")
    for row, label in enumerate(("model loss", "imitation loss, validation", "angle between the gradients, degrees")):
        panels[row][0].set_ylabel(label)
    panels[0][0].legend()
    return [save_figure(figure, folder / "model_loss.png")]


def _curves(records: Sequence[Record], kind: str, gradient: str, name: str) -> tuple[list[float], list[list[float]]]:
    """The epochs, and a curve for each seed that came to an end."""
    curves = [record.result["curve"] for record in _of(records, kind, gradient)]
    found = [[value if value < 1e300 else math.nan for value in curve[name]] for curve in curves if name in curve]
    return (curves[0]["epoch"] if curves else []), found


def _of(records: Sequence[Record], kind: str, gradient: str) -> list[Record]:
    return [r for r in records if (r.settings["kind"], r.settings["gradient"]) == (kind, gradient)]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The claims of [DiLQR] on model loss, whichever way they go."""
    lower = f"The implicit gradient leads to a lower cost error than DiffMPC's, {_AT}, by"
    scaled = "Cost error of weights scaled to the true ones' length (plans don't depend on the scale), by the implicit gradient"
    found = [
        _compared(rows, "cost", "cost_loss", lower, 18),
        _compared(rows, "cost", "scaled_cost_loss", scaled),
        _compared(rows, "cost", "test_loss", "Test imitation loss of the learnt cost, by the implicit gradient"),
        _compared(rows, "dx", "physics_loss", f"The same, for the physics (positive by construction), {_AT}, by", 41),
        _compared(rows, "dx-free", "physics_loss", f"The same, for the physics (as published), {_AT}, by", 41),
        _share_claim(rows),
        _angle_claim(rows),
    ]
    return [claim for claim in found if claim is not None]


def _compared(rows: Sequence[Row], kind: str, name: str, text: str, published: float | None = None) -> Claim | None:
    """A loss with each gradient over all runs, those with impossible masses included, and seed by seed.

    Reproduced where median and mean are both lower by as much as is published, and more than half of the seeds; partly where
    either is lower at all.
    """
    ends = [_by_seed(rows, kind, gradient, name) for gradient in _GRADIENTS]
    if not all(ends):
        return None
    ours, theirs = ends
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    better = sum(a < b for a, b in pairs)
    changes = {of.__name__: [of(end.values()) for end in ends] for of in (median, mean)}
    lower = [100 * (1 - a / b) if b > 0 else 0.0 for a, b in changes.values()]
    verdict = "partly" if max(lower) > 0 else "not reproduced"
    if published is None:
        verdict = "new"
    elif min(lower) >= published and 2 * better > len(pairs):
        verdict = "reproduced"
    told = [
        f"{_change(change)} in the {of} ({a:.2g} and {b:.2g})"
        for change, (of, (a, b)) in zip(lower, changes.items(), strict=True)
    ]
    spread = " and ".join(f"{min(end.values()):.1g} to {max(end.values()):.1g}" for end in ends)
    figure = "-" if published is None else f"[DiLQR] Fig. 3b: {published:g} %"
    return Claim(text, figure, f"{', '.join(told)}; from {spread}; lower in {better} of {len(pairs)} seeds", verdict)


def _by_seed(rows: Sequence[Row], kind: str, gradient: str, name: str) -> dict[int, float]:
    mine = [row for row in rows if (row["kind"], row["gradient"]) == (kind, gradient)]
    return {row["seed"]: row[name] for row in mine if row.get(name) is not None}


def _change(lower: float) -> str:
    share = "more than 99" if 99.5 < lower < 100 else f"{abs(lower):.0f}"
    return f"{share} % {'lower' if lower >= 0 else 'higher'}"


def _share_claim(rows: Sequence[Row]) -> Claim | None:
    told, shares = [], {}
    for kind in ("dx-free", "dx"):
        for gradient in _GRADIENTS:
            found = [row for row in rows if (row["kind"], row["gradient"]) == (kind, gradient)]
            if found:
                wrong = sum(bool(row["impossible"] or row.get("impossible_at_the_end")) for row in found)
                shares[kind, gradient] = wrong / len(found)
                told.append(f"{kind}, {gradient}: {wrong} of {len(found)}")
    free = [shares.get(("dx-free", gradient)) for gradient in _GRADIENTS]
    verdict = "reproduced" if free[0] == 0 and free[1] else "not reproduced"
    claim = "Runs whose kept or last mass or length isn't positive (dx-free: nothing prevents it; dx: our learners)"
    return Claim(claim, "[DiLQR]: 0 % implicit, 16.7 % DiffMPC", "; ".join(told), verdict) if told else None


def _angle_claim(rows: Sequence[Row]) -> Claim | None:
    told = []
    for kind in _KINDS:
        for gradient in _GRADIENTS:
            angles = list(_by_seed(rows, kind, gradient, "median_angle").values())
            if angles:
                told.append(f"{kind}, along {gradient}: {median(angles):.1f} ({min(angles):.1f} to {max(angles):.1f})")
    claim = (
        "Angle between the two gradients, degrees, in a run's median look at which neither is zero: median (range) of the runs"
    )
    return Claim(claim, "-", "; ".join(told), "new") if told else None
