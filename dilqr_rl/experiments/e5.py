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
from dilqr_rl.experiments.trials import Record, Trial

__all__ = ["claims", "draw", "rows", "run", "title", "trials", "workers"]

title = "Model loss with two gradients"
workers: int | None = None

_SYSTEM = "cartpole"
_POSITIVE = ("cart_mass", "pole_mass", "length")
_GRADIENTS: tuple[Literal["implicit", "diffmpc"], ...] = ("implicit", "diffmpc")
_KINDS = {"cost": "cost", "dx": "physics, positive by construction", "dx-free": "physics, as published"}
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
        angles = [angle for angle in record.result.get("curve", {}).get("angle", []) if angle <= 180]
        found.append({**record.settings, **more, **({"median_angle": median(angles)} if angles else {})})
    return found


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


def claims(records: Sequence[Record]) -> list[Claim]:
    """The claims of [DiLQR] on model loss, whichever way they go."""
    found = [
        _model_claim(records, "cost", "cost_loss", "The implicit gradient leads to a lower cost error than DiffMPC's", 18),
        _shape_claim(records),
        _model_claim(records, "dx", "physics_loss", "The same, for the physics (positive by construction)", 41),
        _model_claim(records, "dx-free", "physics_loss", "The same, for the physics (as published)", 41),
        _share_claim(records),
        _angle_claim(records),
    ]
    return [claim for claim in found if claim is not None]


def _model_claim(records: Sequence[Record], kind: str, name: str, text: str, published: float) -> Claim | None:
    """The mean over seeds of the final model loss, with each gradient."""
    ends = [
        [r.result[name] for r in _of(records, kind, g) if name in r.result and not r.result["impossible"]] for g in _GRADIENTS
    ]
    if not all(ends):
        return None
    ours, theirs = (mean(values) for values in ends)
    lower = 100 * (1 - ours / theirs) if theirs > 0 else 0.0
    better = sum(a < b for a, b in zip(*ends, strict=False))  # seed by seed
    verdict = "reproduced" if lower >= published and 2 * better > len(ends[0]) else "partly" if lower > 0 else "not reproduced"
    which = "lower" if lower >= 0 else "higher"
    spread = " and ".join(f"{min(values):.1g} to {max(values):.1g}" for values in ends)
    told = (
        f"{abs(lower):.0f} % {which} (means {ours:.2g} and {theirs:.2g}; {spread}); lower in {better} of {len(ends[0])} seeds"
    )
    return Claim(f"{text}, at the best validation epoch, by", f"[DiLQR] Fig. 3b: {published:g} %", told, verdict)


def _shape_claim(records: Sequence[Record]) -> Claim | None:
    """Model and imitation loss where the scale of the cost, which changes no plan, is taken out."""
    told = []
    for gradient in _GRADIENTS:
        found = _of(records, "cost", gradient)
        if found:
            shapes = mean(_shape_error(r.result["parameters"]) for r in found)
            told.append(
                f"{gradient}: {shapes:.2g}, imitation loss {median(r.result['test_loss'] for r in found):.2g} in the median"
            )
    claim = "Cost error of weights scaled to the true ones' length (plans don't depend on the scale), and test imitation loss"
    return Claim(claim, "-", "; ".join(told), "new") if told else None


def _shape_error(parameters: Mapping[str, list[float]]) -> float:
    """Mean squared error of the weights and of weights times goal, the weights scaled to the length of the true ones."""
    true = SYSTEMS[_SYSTEM]
    weights, goal = (np.array(parameters[f"stage_cost.{name}"]) for name in ("weights", "goal"))
    true_weights, true_goal = np.array(true.weights), np.array(true.goal)
    weights *= np.linalg.norm(true_weights) / np.linalg.norm(weights)
    errors = np.concatenate((weights - true_weights, weights * goal - true_weights * true_goal))
    return float(np.square(errors).mean())


def _share_claim(records: Sequence[Record]) -> Claim | None:
    told, shares = [], {}
    for kind in ("dx-free", "dx"):
        for gradient in _GRADIENTS:
            found = _of(records, kind, gradient)
            if found:
                wrong = sum(r.result["impossible"] or r.result.get("impossible_at_the_end", False) for r in found)
                shares[kind, gradient] = wrong / len(found)
                told.append(f"{kind}, {gradient}: {wrong} of {len(found)}")
    free = [shares.get(("dx-free", gradient)) for gradient in _GRADIENTS]
    verdict = "reproduced" if free[0] == 0 and free[1] else "not reproduced"
    claim = "Runs whose kept or last mass or length isn't positive (dx-free: nothing prevents it; dx: our learners)"
    return Claim(claim, "[DiLQR]: 0 % implicit, 16.7 % DiffMPC", "; ".join(told), verdict) if told else None


def _angle_claim(records: Sequence[Record]) -> Claim | None:
    told = []
    for kind in _KINDS:
        for gradient in _GRADIENTS:
            angles = np.array(
                [a for r in _of(records, kind, gradient) for a in r.result.get("curve", {}).get("angle", []) if a <= 180]
            )
            if len(angles):
                low, middle, high = np.percentile(angles, (10, 50, 90))
                told.append(f"{kind}, along {gradient}: {middle:.1f} ({low:.1f} to {high:.1f})")
    claim = "Angle between the two gradients along the way, degrees: median (first to last tenth)"
    return Claim(claim, "-", "; ".join(told), "new") if told else None
