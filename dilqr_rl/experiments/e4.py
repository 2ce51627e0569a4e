"""E4: imitation of a nonlinear controller, every method ([DiffMPC] 5.3, Fig. 4; [DiLQR] 5.2, Fig. 3a).

The network has 1,500 epochs without patience, which would stop some of them early, where the papers have 10,000: some 2.3 hours
of processor time for all 24 of them, and 15 with 10,000.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from dilqr_rl.experiments.experiment import Claim
from dilqr_rl.experiments.figures import new_figure, save_figure
from dilqr_rl.experiments.imitation import expert_plans, fit_options, fit_summary, make_learner
from dilqr_rl.experiments.systems import SYSTEMS
from dilqr_rl.experiments.tables import Row
from dilqr_rl.experiments.trials import Record, Trial

__all__ = ["claims", "draw", "rows", "run", "title", "trials", "workers"]

title = "Imitation of a nonlinear controller"
workers: int | None = None

_SYSTEMS = {"pendulum": "pendulum", "cartpole": "cart-pole"}
_PLANNERS = ("dx", "cost", "cost_dx")
_HELD_OUT = (10, 10)  # validation, test
_LONGER = 2  # RMSprop takes more epochs to a cost than to physics
_REPRODUCED = 1e-6  # (N m)^2 or N^2: the expert's plans, but for digits that nobody would see
_FLOOR = 1e-30  # drawn, and in ratios: float64's own
# Training sizes, seeds, epochs of the published optimisers (the papers: 10,000), and of Levenberg-Marquardt.
_SIZES: dict[str, dict[str, Any]] = {
    "smoke": {"sizes": (6,), "seeds": 1, "systems": ("pendulum",), "epochs": {"adam": 2, "rmsprop": 2, "lm": 8}},
    "quick": {"sizes": (10, 50), "seeds": 1, "systems": (*_SYSTEMS,), "epochs": {"adam": 100, "rmsprop": 200, "lm": 200}},
    "paper": {"sizes": (10, 50, 100), "seeds": 4, "systems": (*_SYSTEMS,), "epochs": {"adam": 1500, "rmsprop": 500, "lm": 200}},
}


def trials(preset: str) -> list[Trial]:
    """One for each system, method, optimiser, gradient, training size and seed."""
    chosen = _SIZES[preset]
    found = []
    for system in chosen["systems"]:
        for method, optimizer, gradient in _ways():
            for size in chosen["sizes"]:
                for seed in range(chosen["seeds"]):
                    settings = {
                        "system": system,
                        "method": method,
                        "optimizer": optimizer,
                        "gradient": gradient,
                        "size": size,
                        "epochs": chosen["epochs"][optimizer] * (_LONGER if optimizer == "rmsprop" and "cost" in method else 1),
                        "seed": seed,
                    }
                    name = "-".join(part for part in (system, method, gradient, optimizer) if part)
                    cost = {"adam": 10.0, "rmsprop": 1.0, "lm": 20.0}[optimizer] * settings["epochs"] * (1 + size // 32)
                    found.append(Trial(f"{name}-n{size}-seed{seed}", settings, cost))
    return found


def _ways() -> list[tuple[str, str, str]]:
    """Method, optimiser and gradient."""
    planners = [
        (method, optimizer, g) for method in _PLANNERS for optimizer in ("rmsprop", "lm") for g in ("implicit", "diffmpc")
    ]
    return [("nn", "adam", ""), ("sysid", "rmsprop", ""), ("sysid", "lm", ""), *planners]


def run(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """One fit; the best validation epoch's test loss."""
    system, seed, optimizer = settings["system"], settings["seed"], settings["optimizer"]
    train, validation, test = expert_plans(system, (settings["size"], *_HELD_OUT), seed)
    learner = make_learner(
        system,
        settings["method"],
        settings["gradient"] or "implicit",
        SYSTEMS[system].learner,
        published=optimizer != "lm",
        seed=seed,
    )
    options = fit_options(learner, optimizer, settings["epochs"], seed)
    slow = optimizer == "adam"  # goes on where it was cut off; the others take seconds
    result = learner.fit(train, validation, options, folder=folder if slow else None, resume=slow)
    return fit_summary(learner, result, test)


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each trial."""
    names = (
        "test_loss",
        "validation_loss",
        "prediction_loss",
        "start_loss",
        "best_epoch",
        "epochs",
        "fit_seconds",
        "impossible",
    )
    found = []
    for record in records:
        more = {name: record.result[name] for name in ("physics_loss", "cost_loss") if name in record.result}
        found.append({**record.settings, **{name: record.result[name] for name in names}, **more})
    return found


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Test losses over training sizes, as [DiffMPC] Fig. 4, and learning curves of Levenberg-Marquardt beside RMSprop."""
    return [path for path in (_draw_losses(records, folder), _draw_curves(records, folder)) if path is not None]


def _draw_losses(records: Sequence[Record], folder: Path) -> Path | None:
    systems = [name for name in _SYSTEMS if any(record.settings["system"] == name for record in records)]
    sizes = sorted({record.settings["size"] for record in records})
    if not records:
        return None
    found, figure = rows(records), new_figure(3.6 * len(sizes) + 1, 3.4 * len(systems) + 0.6)
    panels = figure.subplots(len(systems), len(sizes), squeeze=False, sharey="row")
    for row, system in zip(panels, systems, strict=True):
        for panel, size in zip(row, sizes, strict=True):
            for place, way in enumerate(_ways()):
                losses = _losses(found, system, way, size)
                if losses:
                    colour = {"adam": "black", "rmsprop": "tab:orange", "lm": "tab:blue"}[way[1]]
                    panel.plot([place] * len(losses), losses, "_", color=colour, ms=9, alpha=0.5, mew=1.5)
                    panel.plot(place, median(losses), "o", color=colour, ms=6, mfc="white" if way[2] == "diffmpc" else colour)
            panel.set(yscale="log", title=f"{_SYSTEMS[system]}, {size} trajectories")
            panel.set_xticks(range(len(_ways())), [_label(way) for way in _ways()], rotation=60, ha="right", fontsize=7)
            panel.grid(alpha=0.3, axis="y")
        row[0].set_ylabel("imitation loss, test")
    figure.supxlabel(
        "orange: RMSprop; blue: scan and Levenberg-Marquardt; black: network; hollow: DiffMPC's gradient", fontsize=9
    )
    return save_figure(figure, folder / "imitation.png")


def _draw_curves(records: Sequence[Record], folder: Path) -> Path | None:
    chosen = [record for record in records if record.settings["method"] == "dx" and record.settings["gradient"] == "implicit"]
    systems = [name for name in _SYSTEMS if any(record.settings["system"] == name for record in chosen)]
    if not systems:
        return None
    figure = new_figure(4.4 * len(systems), 3.4)
    panels = figure.subplots(1, len(systems), squeeze=False)[0]
    size = 50 if any(record.settings["size"] == 50 for record in chosen) else chosen[0].settings["size"]
    for panel, system in zip(panels, systems, strict=True):
        for record in chosen:
            if record.settings["system"] == system and record.settings["size"] == size:
                colour = "tab:blue" if record.settings["optimizer"] == "lm" else "tab:orange"
                curve = record.result["curve"]
                losses = [max(loss, _FLOOR) for loss in curve["validation_loss"]]
                panel.plot([max(epoch, 0.5) for epoch in curve["epoch"]], losses, color=colour, alpha=0.7)
        panel.set(xscale="log", yscale="log", xlabel="epoch", title=f"dx, {_SYSTEMS[system]}, {size} trajectories")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("imitation loss, validation")
    panels[0].plot([], [], color="tab:blue", label="scan, then Levenberg-Marquardt")
    panels[0].plot([], [], color="tab:orange", label="RMSprop")
    panels[0].legend(fontsize=8)
    return save_figure(figure, folder / "optimisers.png")


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The papers' claims on imitation, and what this library adds."""
    found: list[Claim | None] = []
    for system, published in (("pendulum", "1e6"), ("cartpole", "1e4")):
        found.append(_ratio_claim(rows, system, ("dx", "rmsprop"), f"[DiLQR] 5.2: {published}", float(published)))
        found.append(_ratio_claim(rows, system, ("dx", "lm"), "-", float(published)))
        found.append(_ratio_claim(rows, system, ("cost", "rmsprop"), "[DiLQR] 5.2: dozens", 24.0))
        found.append(_ratio_claim(rows, system, ("cost", "lm"), "-", 100.0))
        found.append(_solved_claim(rows, system))
        found.append(_sysid_claim(rows, system))
        found.append(_gradient_claim(rows, system))
    return [claim for claim in (*found, _impossible_claim(rows), _time_claim(rows)) if claim is not None]


def _ratio_claim(rows: Sequence[Row], system: str, way: tuple[str, str], published: str, wanted: float) -> Claim | None:
    """How far below the network's a method's test loss is: the ratio of the medians over seeds, at each training size."""
    told, ratios, (method, optimizer) = [], [], way
    for size in sorted({row["size"] for row in rows}):
        network = _losses(rows, system, ("nn", "adam", ""), size)
        planner = _losses(rows, system, (method, optimizer, "implicit"), size)
        if network and planner:
            ratios.append(median(network) / median(planner))
            spread = f"{median(planner):.0e}, worst seed {max(planner):.0e}; nn {median(network):.1g}, best {min(network):.1g}"
            told.append(f"{ratios[-1]:.0e} (n = {size}: {spread})")
    if not told:
        return None
    verdict = "reproduced" if min(ratios) >= wanted else "partly" if max(ratios) >= wanted else "not reproduced"
    if verdict == "reproduced" and _network_still_learns(rows, system) and min(ratios) < 1000 * wanted:
        verdict = "partly"  # longer training might close the gap
    name = {"rmsprop": "RMSprop", "lm": "scan and Levenberg-Marquardt"}[optimizer]
    claim = f"{method} by {name} imitates better than nn ({_network_epochs(rows)}) by a factor of, {_SYSTEMS[system]}"
    return Claim(claim, published, "; ".join(told), "new" if published == "-" else verdict)


def _network_epochs(rows: Sequence[Row]) -> str:
    """How long the networks were trained, whatever they were asked for."""
    epochs = [row["epochs"] for row in rows if row["method"] == "nn"]
    least, most = min(epochs, default=0), max(epochs, default=0)
    return f"the best of {most if least == most else f'{least} to {most}'} epochs, the papers' 10,000"


def _network_still_learns(rows: Sequence[Row], system: str) -> bool:
    """Whether the best epochs of most networks are among the last tenth."""
    networks = [row for row in rows if (row["method"], row["system"]) == ("nn", system)]
    return sum(row["best_epoch"] > 0.9 * row["epochs"] for row in networks) > len(networks) / 2


def _solved_claim(rows: Sequence[Row], system: str) -> Claim | None:
    """How many fits reproduce the expert, after restarts, with each gradient."""
    told = []
    for method in ("dx", "cost", "cost_dx"):
        for gradient in ("implicit", "diffmpc"):
            losses = _all_losses(rows, system, (method, "lm", gradient))
            if losses:
                told.append(f"{method}, {gradient}: {sum(loss < _REPRODUCED for loss in losses)} of {len(losses)}")
    claim = f"Fits by Levenberg-Marquardt, up to 7 restarts, with a test loss below {_REPRODUCED:g}, {_SYSTEMS[system]}"
    return Claim(claim, "-", "; ".join(told), "new") if told else None


def _sysid_claim(rows: Sequence[Row], system: str) -> Claim | None:
    told, ratios = [], {}
    for optimizer in ("rmsprop", "lm"):
        seen = _all_losses(rows, system, ("sysid", optimizer, ""))
        unseen = _all_losses(rows, system, ("dx", optimizer, "implicit"))
        if seen and unseen:
            told.append(f"{optimizer}: dx {median(unseen):.1e}, sysid {median(seen):.1e}")
            ratios[optimizer] = median(unseen) / median(seen)
    if "rmsprop" not in ratios:
        return None
    verdict = "reproduced" if 0.1 < ratios["rmsprop"] < 10 else "partly" if 0.01 < ratios["rmsprop"] < 100 else "not reproduced"
    claim = f"dx about equals sysid (within a factor of 10) without seeing states, {_SYSTEMS[system]}"
    return Claim(claim, "[DiffMPC] 5.3", "; ".join(told), verdict)


def _gradient_claim(rows: Sequence[Row], system: str) -> Claim | None:
    told = []
    for method in _PLANNERS:
        for optimizer in ("rmsprop", "lm"):
            pair = [_all_losses(rows, system, (method, optimizer, gradient)) for gradient in ("implicit", "diffmpc")]
            if all(pair):
                told.append(f"{method}, {optimizer}: {median(pair[0]):.1e} and {median(pair[1]):.1e}")
    claim = f"Test loss with the implicit gradient and with DiffMPC's, medians over sizes and seeds, {_SYSTEMS[system]}"
    return Claim(claim, "-", "; ".join(told), "new") if told else None


def _impossible_claim(rows: Sequence[Row]) -> Claim | None:
    planners = [row for row in rows if row["method"] != "nn"]
    wrong = sum(row["impossible"] for row in planners)
    ours = f"{wrong} of {len(planners)}, by construction; E5 has learners without it"
    return Claim("Runs that end with a mass, length or weight that isn't positive", "-", ours, "new") if planners else None


def _time_claim(rows: Sequence[Row]) -> Claim | None:
    told, longest = [], 0.0
    for system in _SYSTEMS:
        for optimizer in ("rmsprop", "lm"):
            wanted = {"system": system, "method": "dx", "optimizer": optimizer, "size": 50}
            seconds = [row["fit_seconds"] for row in rows if wanted.items() <= row.items()]
            if seconds:
                told.append(f"{_SYSTEMS[system]}, {optimizer}: {median(seconds):.1f} s (most {max(seconds):.1f} s)")
                longest = max(longest, *seconds)
    verdict = "reproduced" if longest < 60 else "not reproduced"
    claim = "A dx trial with 50 trajectories takes below 60 s on one (shared) core"
    return Claim(claim, "[DiffMPC] 5.3: 1 to 2 hours, 10,000 epochs", "; ".join(told), verdict) if told else None


def _losses(rows: Sequence[Row], system: str, way: tuple[str, str, str], size: int) -> list[float]:
    wanted = {"system": system, "method": way[0], "optimizer": way[1], "size": size}
    mine = [row for row in rows if wanted.items() <= row.items() and (row.get("gradient") or "") == way[2]]
    return [max(row["test_loss"], _FLOOR) for row in mine]


def _all_losses(rows: Sequence[Row], system: str, way: tuple[str, str, str]) -> list[float]:
    return [loss for size in {row["size"] for row in rows} for loss in _losses(rows, system, way, size)]


def _label(way: tuple[str, str, str]) -> str:
    method, optimizer, gradient = way
    return " ".join(
        part for part in (method, "LM" if optimizer == "lm" else "", "" if gradient != "diffmpc" else "diffmpc") if part
    )
