"""E1: how accurate the gradients are, against central differences of the converged solution. The papers only claim it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch import Tensor

from dilqr_rl import ILQR, ControlProblem
from dilqr_rl.experiments.accuracy import GRADIENTS, TIGHT, differences, fixed_point_gradients, gradients, relative_error
from dilqr_rl.experiments.experiment import Claim
from dilqr_rl.experiments.figures import new_figure, save_figure
from dilqr_rl.experiments.systems import closed_problem, linear_problem, linear_starts, problem, starts
from dilqr_rl.experiments.tables import Row
from dilqr_rl.experiments.trials import Record, Trial

__all__ = ["claims", "draw", "rows", "run", "title", "trials", "workers"]

title = "Accuracy of the gradients"
workers: int | None = None

GROUPS = ("physics", "weights", "goal", "bounds", "start state")
THETAS = (0.1, 1.0, 10.0)
CLOSED = {0.1: (-0.131170, -0.902803), 1.0: (-0.410245, -0.132900), 10.0: (-0.676582, -0.00929891)}  # u*, du*/dtheta
SYSTEM_NAMES = {
    "pendulum": "pendulum",
    "pendulum-upright": "pendulum near upright",
    "cartpole": "cart-pole",
    "cartpole-upright": "cart-pole near upright",
    "linear": "linear",
}
_SIZES = {"smoke": ((8,), 4), "quick": ((8, 20), 20), "paper": ((8, 10, 20, 50), 50)}  # horizons, starts
_DENSE_HORIZON = 4
_DENSE = "implicit, against eq. 10"
_SAME = 1e-6  # largest difference of a control at which two solves ended at the same local solution
_KINK = 1e-5  # relative: where differences over h and h/2 are further apart, the solution has a kink between
_NO_ERROR = 1e-9  # what is below is the error of the differences, or that of a gradient of zero
_LEAST = 1e-13  # drawn
_LABELS = {"implicit": "implicit", "diffmpc": "DiffMPC", "unroll": "unrolled", "differences": "the differences' own"}
_LOOKS = {
    "implicit": ("tab:blue", "o"),
    "diffmpc": ("tab:orange", "s"),
    "unroll": ("tab:green", "^"),
    "differences": ("grey", "_"),
}


def trials(preset: str) -> list[Trial]:
    """One for each system and horizon, with all methods; one for the closed example; one dense check for each system."""
    horizons, count = _SIZES[preset]
    found = [
        Trial(f"{system}-t{T}", {"kind": "accuracy", "system": system, "horizon": T, "starts": count, "seed": 0}, T**2 * count)
        for system in SYSTEM_NAMES
        for T in horizons
    ]
    found.append(Trial("closed", {"kind": "closed", "thetas": THETAS}, 10.0))
    for system in ("pendulum", "cartpole", "linear"):
        settings = {"kind": "dense", "system": system, "horizon": _DENSE_HORIZON, "starts": min(count, 10), "seed": 0}
        found.append(Trial(f"dense-{system}", settings, 10.0))
    return found


def run(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """One trial; see `trials`."""
    kinds = {"accuracy": _accuracy, "closed": _closed, "dense": _dense}
    return kinds[settings["kind"]](settings)


def _accuracy(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Relative errors by method and group, one for each start on which all methods are compared."""
    tested, x0 = _problem(settings)
    groups = _groups(tested)
    names = tuple(name for group in groups.values() for name in group if name != "x0")
    found = {method: gradients(tested, names, x0, method) for method in GRADIENTS}
    _, solution = found["implicit"]
    u = solution.controls.detach()
    truth = differences(tested, names, x0, u)
    same = [((other.controls - u).abs().amax((1, 2)) < _SAME) & other.converged for _, other in found.values()]
    usable = torch.stack(same).all(0) & truth.usable
    errors: dict[str, dict[str, list[float | None]]] = {method: {} for method in (*GRADIENTS, "differences")}
    for group, members in groups.items():
        doubt = relative_error(truth.rough, truth.quotients, members)
        smooth = usable & (doubt < _KINK)
        seen: dict[str, Tensor] = {
            method: relative_error(parts, truth.quotients, members) for method, (parts, _) in found.items()
        }
        for method, error in {**seen, "differences": doubt}.items():
            errors[method][group] = [float(e) if ok else None for e, ok in zip(error, smooth, strict=True)]
    held = ((u <= tested.u_min) | (u >= tested.u_max))[:, :-1]  # the last control moves nothing
    return {
        "errors": errors,
        "apart": (~usable).tolist(),
        "held_controls": float(held.double().mean()),
        "held_starts": float(held.all(2).all(1).double().mean()),
        "iterations": solution.num_iterations.tolist(),
    }


def _closed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """u* and du*/dtheta of [DiLQR] A.4.2 by every method, with the truth by bisection and the implicit function theorem."""
    found = []
    for theta in settings["thetas"]:
        u = _closed_control(theta)
        slope = -4 * (u + 1) ** 3 / (2 + 12 * theta * (u + 1) ** 2)
        for method in GRADIENTS:
            example = closed_problem(theta)
            value = example.get_parameter("terminal_cost.theta")
            control = ILQR(example, TIGHT, gradient=method)(torch.ones(2, dtype=torch.float64)).controls.sum()
            (derivative,) = torch.autograd.grad(control, value)
            errors = {"control_error": abs(control.item() - u), "slope_error": abs(derivative.item() - slope)}
            found.append({"theta": theta, "method": method, "control": control.item(), "slope": derivative.item(), **errors})
    return {"closed": found}


def _closed_control(theta: float) -> float:
    """Where 2 u + 4 theta (u + 1)^3, which grows with u, is zero."""
    low, high = -1.0, 0.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if 2 * middle + 4 * theta * (middle + 1) ** 3 < 0 else (low, middle)
    return (low + high) / 2


def _dense(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The largest difference between the adjoint and [DiLQR] eq. 10 over all starts, relative to the largest derivative."""
    tested, x0 = _problem(settings)
    names = tuple(name for group in _groups(tested).values() for name in group if name != "x0")
    found, _ = gradients(tested, names, x0, "implicit")
    worst = 0.0
    for place in range(len(x0)):
        for name, expected in fixed_point_gradients(tested, names, x0[place : place + 1]).items():
            scale = max(1.0, float(expected.abs().max()))
            worst = max(worst, float((found[name][place] - expected[0]).abs().max()) / scale)
    return {"dense_error": worst}


def _problem(settings: Mapping[str, Any]) -> tuple[ControlProblem, Tensor]:
    system, T, count, seed = (settings[name] for name in ("system", "horizon", "starts", "seed"))
    if system == "linear":
        return linear_problem(T, seed, bound=0.5), linear_starts(count, seed)
    return problem(system, T), starts(system, count, seed)


def _groups(tested: ControlProblem) -> dict[str, tuple[str, ...]]:
    """Names of what is differentiated, by GROUPS."""
    physics = tuple(name for name, _ in tested.named_parameters() if name.startswith("dynamics."))
    members = (physics, ("stage_cost.weights",), ("stage_cost.goal",), ("u_min", "u_max"), ("x0",))
    return dict(zip(GROUPS, members, strict=True))


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each gradient: of a system, horizon, group and start, every method's error and, if none, why it is left out."""
    found: list[dict[str, Any]] = []
    for record in _of_kind(records, "accuracy"):
        found += _accuracy_rows(record)
    for record in _of_kind(records, "closed"):
        found += [{"system": "closed", "horizon": 1, **row} for row in record.result["closed"]]
    for record in _of_kind(records, "dense"):
        found.append({**_where(record), "method": _DENSE, "largest": record.result["dense_error"]})
    return found


def _accuracy_rows(record: Record) -> list[dict[str, Any]]:
    """The errors with the three digits that anybody could want of them; and what is held, in a row of its own."""
    found: list[dict[str, Any]] = []
    for group in GROUPS:
        for start, apart in enumerate(record.result["apart"]):
            errors = {method: groups[group][start] for method, groups in record.result["errors"].items()}
            known = {method: float(f"{error:.2e}") for method, error in errors.items() if error is not None}
            reason = {} if known else {"left_out": "apart" if apart else "kink"}
            found.append({**_where(record), "group": group, "start": start, **known, **reason})
    return [*found, {**_where(record), **{name: record.result[name] for name in ("held_controls", "held_starts")}}]


def _where(record: Record) -> dict[str, Any]:
    return {name: record.settings[name] for name in ("system", "horizon")}


def _of_kind(records: Sequence[Record], kind: str) -> list[Record]:
    return [record for record in records if record.settings["kind"] == kind]


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Error of each group and method over the starts, a panel for each system and horizon: the median, and all of them."""
    accuracy = _of_kind(records, "accuracy")
    systems = [name for name in SYSTEM_NAMES if any(record.settings["system"] == name for record in accuracy)]
    horizons = sorted({record.settings["horizon"] for record in accuracy})
    if not accuracy:
        return []
    figure = new_figure(3.2 * len(horizons) + 1.2, 2.4 * len(systems) + 0.6)
    panels = figure.subplots(len(systems), len(horizons), squeeze=False, sharex=True, sharey=True)
    for record in accuracy:
        row, column = systems.index(record.settings["system"]), horizons.index(record.settings["horizon"])
        _draw_panel(panels[row][column], record)
    for row, system in zip(panels, systems, strict=True):
        row[0].set_ylabel(f"{SYSTEM_NAMES[system]}\nrelative error")
    for panel, horizon in zip(panels[0], horizons, strict=True):
        panel.set_title(f"T = {horizon}")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), frameon=False)
    return [save_figure(figure, folder / "accuracy.png")]


def _draw_panel(panel: Any, record: Record) -> None:
    for shift, (method, (colour, marker)) in enumerate(_LOOKS.items()):
        for place, group in enumerate(GROUPS):
            errors = [max(error, _LEAST) for error in record.result["errors"][method][group] if error is not None]
            if errors:
                x, label = place + 0.2 * (shift - 1.5), _LABELS[method] if place == 0 else None
                panel.plot([x] * len(errors), errors, marker, color=colour, ms=2.5, alpha=0.25, mew=1)
                panel.plot(x, median(errors), marker, color=colour, ms=8, mew=2, label=label)
    panel.set(yscale="log", ylim=(_LEAST / 3, 1e3))
    panel.set_xticks(range(len(GROUPS)), GROUPS, rotation=30, ha="right")
    panel.grid(alpha=0.3, axis="y")


def claims(rows: Sequence[Row]) -> list[Claim]:
    """What is published on accuracy, and what came out."""
    found = [_implicit_claim(rows), *_diffmpc_claims(rows), _unroll_claim(rows), *_closed_claims(rows)]
    found.append(_held_claim(rows))
    dense = [row["largest"] for row in rows if row.get("method") == _DENSE]
    if dense:
        text = f"largest difference between the two {max(dense):.0e}, relative, over {len(dense)} systems, T = {_DENSE_HORIZON}"
        verdict = "reproduced" if max(dense) < 1e-9 else "not reproduced"
        found.append(Claim("The dense system of eq. 10 has the adjoint's solution", "[DiLQR] eq. 10", text, verdict))
    return [claim for claim in found if claim is not None]


def _implicit_claim(rows: Sequence[Row]) -> Claim | None:
    errors = _errors(rows, "implicit")
    if not errors:
        return None
    kinks, apart = (sum(row.get("left_out") == reason for row in rows) for reason in ("kink", "apart"))
    ours = (
        f"relative error {median(errors):.0e} in the median, {max(errors):.0e} at most, over {len(errors)} gradients; at "
        f"{kinks} more the solution has a kink, at {apart} the methods ended apart or a neighbour didn't converge. The "
        f"differences' own: {max(_errors(rows, 'differences')):.0e}"
    )
    verdict = "reproduced" if max(errors) < _KINK else "not reproduced"
    return Claim(
        "The implicit gradient is exact: physics, weights, goal, bounds, start state", "[DiLQR] 4, not measured", ours, verdict
    )


def _diffmpc_claims(rows: Sequence[Row]) -> list[Claim | None]:
    """Where the published formula leaves the dynamics' curvature out."""
    upright, swinging = ("pendulum-upright",), ("cartpole", "cartpole-upright", "pendulum")
    linear = _errors(rows, "diffmpc", ("linear",))
    exact = (
        Claim(
            "DiffMPC's formula is exact where the dynamics are linear",
            "follows from [DiffMPC] 4",
            f"relative error {max(linear):.0e} at most, the differences' own",
            "reproduced" if max(linear) < _KINK else "not reproduced",
        )
        if linear
        else None
    )
    return [
        _spread_claim(rows, "DiffMPC's formula errs on the pendulum near upright", "1e-4", upright, (1e-5, 1e-3)),
        _spread_claim(rows, "DiffMPC's formula errs on the cart-pole", "2.5 to 19 %", swinging[:2], (0.025, 0.19)),
        _spread_claim(rows, "DiffMPC's formula errs on the pendulum, published starts", "-", swinging[2:], (0.0, 0.0)),
        exact,
    ]


def _spread_claim(
    rows: Sequence[Row], text: str, published: str, systems: tuple[str, ...], usual: tuple[float, float]
) -> Claim | None:
    """The errors of the gradients that aren't zero; reproduced if the first system's median is a usual one."""
    told, medians = [], []
    for system in systems:
        errors = [error for error in _errors(rows, "diffmpc", (system,)) if error > _NO_ERROR]
        if errors:
            tenths = quantiles(errors, n=10) if len(errors) > 1 else errors * 9
            told.append(f"{SYSTEM_NAMES[system]}: {_share(tenths[0])} to {_share(tenths[8])} (median {_share(median(errors))})")
            medians.append(median(errors))
    if not told:
        return None
    low, high = usual
    verdict = "new" if published == "-" else "reproduced" if low <= medians[0] <= high else "partly"
    return Claim(
        text, published, "; ".join(told) + ", of the gradients that aren't zero, from the first to the last tenth", verdict
    )


def _share(error: float) -> str:
    return f"{error:.0e}" if error < 0.01 else f"{100 * error:.1f} %" if error < 0.1 else f"{100 * error:.0f} %"


def _unroll_claim(rows: Sequence[Row]) -> Claim | None:
    worst: dict[str, float] = {}
    for row in rows:
        if row.get("unroll") is not None:
            key = f"{row['system']}-t{row['horizon']}"
            worst[key] = max(worst.get(key, 0.0), row["unroll"])
    if not worst:
        return None
    wrong = [f"{key} (up to {error:.0e})" for key, error in worst.items() if error > _KINK]
    explosion = f", but for {', '.join(wrong)}: it explodes over many iterations" if wrong else ""
    ours = f"as exact as the implicit gradient{explosion}"
    return Claim("The gradient through the unrolled iterations is exact at convergence", "-", ours, "new")


def _held_claim(rows: Sequence[Row]) -> Claim | None:
    told = [
        f"T = {row['horizon']}: {_share(row['held_controls'])} and {_share(row['held_starts'])}"
        for row in sorted(rows, key=lambda row: row["horizon"])
        if row["system"] == "pendulum" and row.get("held_controls") is not None
    ]
    claim = "Pendulum: the share of controls at a bound, and of starts where all of them are, so that physics move none"
    return Claim(claim, "-", "; ".join(told), "new") if told else None


def _closed_claims(rows: Sequence[Row]) -> list[Claim]:
    found = [row for row in rows if row["system"] == "closed"]
    if not found:
        return []
    digits = all(
        abs(row[name] - expected) <= 1e-5 * abs(expected)
        for row in found
        for name, expected in zip(("control", "slope"), CLOSED[row["theta"]], strict=True)
    )
    worst = max(row["slope_error"] for row in found)
    published = "; ".join(f"{slope:.6g} at θ = {theta:g}" for theta, (_, slope) in CLOSED.items())
    slopes = "; ".join(f"{row['slope']:.6g}" for row in found if row["method"] == "implicit")
    return [
        Claim(
            "du*/dθ of the closed example", f"[DiLQR] A.4.2: {published}", slopes, "reproduced" if digits else "not reproduced"
        ),
        Claim(
            "On the closed example the methods differ",
            "[DiLQR] A.4.2 reads it so",
            f"all three are exact ({worst:.0e} at most): its dynamics are linear",
            "not reproduced" if worst < _KINK else "reproduced",
        ),
    ]


def _errors(rows: Sequence[Row], method: str, systems: Sequence[str] = ()) -> list[float]:
    return [row[method] for row in rows if row.get(method) is not None and (not systems or row["system"] in systems)]
