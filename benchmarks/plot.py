"""Time against batch size, for every system, horizon and solver."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.cells import Cell, Results
from benchmarks.solvers import SOLVERS
from benchmarks.tables import median_ms

_MARKERS = "osD^v<>Xp*"


def draw_grid(
    results: Results,
    solvers: Sequence[str],
    systems: Sequence[str],
    horizons: Sequence[int],
    batches: Sequence[int],
    file: Path,
) -> None:
    """One panel for each system and horizon; forward and backward together, forward alone where a solver has no gradient."""
    figure = Figure(figsize=(4.4 * len(horizons), 3.6 * len(systems) + 1.2), layout="constrained")
    panels = figure.subplots(len(systems), len(horizons), squeeze=False, sharex=True, sharey="row")
    colours = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    looks = {name: {"color": colours[i % 10], "marker": _MARKERS[i % 10]} for i, name in enumerate(solvers)}
    drawn: dict[str, str] = {}
    for row, system in zip(panels, systems, strict=True):
        for panel, horizon in zip(row, horizons, strict=True):
            for solver in solvers:
                records = {batch: results[Cell(solver, system, horizon, batch)] for batch in batches}
                both = {batch: median_ms(record, "sum") for batch, record in records.items()}
                alone = {batch: median_ms(record, "forward") for batch, record in records.items()}
                style = "-" if any(value is not None for value in both.values()) else ":"
                points = {batch: t for batch, t in (both if style == "-" else alone).items() if t is not None}
                if points:
                    panel.plot(list(points), list(points.values()), style, label=solver, ms=5, lw=1.6, **looks[solver])
                    drawn[solver] = style
            _dress(panel, f"{system}, T = {horizon}", batches)
        row[0].set_ylabel("ms per batch")
    handles = [Line2D([], [], ls=style, **looks[name], label=_label(name, style)) for name, style in drawn.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * len(horizons), frameon=False)
    figure.suptitle("forward and backward, one thread")
    _save(figure, file)


def draw_e2(results: Results, horizon: int, counts: Sequence[int], file: Path) -> None:
    """Backward time over the number of unrolled iterations, with the implicit gradients as level lines."""
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    panel = figure.subplots()
    records = {n: results[Cell(f"unrolled, {n}", "pendulum", horizon, 20)] for n in counts}
    for part, style in (("backward", "-o"), ("forward", "--o")):
        points = {n: t for n, record in records.items() if (t := median_ms(record, part)) is not None}
        if points:
            panel.plot(list(points), list(points.values()), style, color="tab:red", label=f"unrolled, {part}")
    for solver, colour in (("native", "tab:blue"), ("torch", "tab:orange"), ("mpc.pytorch", "tab:green")):
        for part, style in (("backward", "-"), ("forward", "--")):
            time = median_ms(results[Cell(solver, "pendulum", horizon, 20)], part)
            if time is not None:
                panel.axhline(time, ls=style, color=colour, label=f"{solver}, implicit: {part}")
    panel.set(yscale="log", xlabel="unrolled iterations", ylabel="ms per batch", title=f"pendulum, T = {horizon}, B = 20")
    panel.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside right center", frameon=False)
    _save(figure, file)


def _label(solver: str, style: str) -> str:
    limits = [] if style == "-" else ["forward only"]
    limits += [] if SOLVERS[solver].bounded else ["no bounds"]
    return f"{solver} ({', '.join(limits)})" if limits else solver


def _dress(panel: Axes, title: str, batches: Sequence[int]) -> None:
    panel.set(xscale="log", yscale="log", title=title)
    panel.set_xticks(list(batches), [str(batch) for batch in batches], minor=False)
    panel.minorticks_off()
    panel.set_xlabel("B, problems per batch")
    panel.grid(alpha=0.3)


def _save(figure: Figure, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)
