"""E2: time and memory of the implicit gradient beside those of unrolled iterations ([DiLQR] Fig. 2, [DiffMPC] Fig. 2).

Pendulum, B = 20, one thread. The published unrolled baselines take 50 to 300 iterations whatever convergence needs, so ours is
timed at those numbers and at the iterations that it really takes. mpc.pytorch has an environment of its own: its figures are
those of `dilqr bench`, where a checkout has them.
"""

from __future__ import annotations

import gc
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

import dilqr_rl
from dilqr_rl import ILQR, ILQROptions
from dilqr_rl.experiments.experiment import Claim
from dilqr_rl.experiments.figures import new_figure, save_figure
from dilqr_rl.experiments.systems import problem, starts
from dilqr_rl.experiments.tables import Row
from dilqr_rl.experiments.trials import Record, Trial

__all__ = ["claims", "draw", "rows", "run", "title", "trials", "workers"]

title = "Time and memory of the gradients"
workers: int | None = 1

_SIZES = {  # horizons, unrolled iterations, batch, seconds to repeat for
    "smoke": ((5,), (10,), 4, 0.2),
    "quick": ((10,), (50, 300), 20, 2.0),
    "paper": ((10, 20, 50), (50, 100, 200, 300), 20, 5.0),
}
_PARTS = ("forward", "backward")
_STYLES = {"backward": "-", "forward": "--"}
_METHODS = ("native", "torch", "unrolled")
_MOST_REPEATS = 15
_TOLERANCE, _MAX_ITERATIONS = 1e-8, 300
_PUBLISHED = {
    50: (1.41, 21.0),
    300: (8.57, 128.0),
}  # [DiLQR] Fig. 2, T = 10: seconds unrolled, and how many times the implicit's
_PEER = "mpc.pytorch"
_LOOKS = {
    "native": ("tab:blue", "implicit, native"),
    "torch": ("tab:orange", "implicit, torch"),
    _PEER: ("tab:green", _PEER),
}


class _Exactly(ILQROptions):
    """Options without their checks: no residual meets a negative tolerance, so every problem takes all iterations."""

    def __post_init__(self) -> None:
        pass


def trials(preset: str) -> list[Trial]:
    """One for each horizon and method; unrolled ones with "iterations" None take as many as convergence needs."""
    horizons, counts, batch, budget = _SIZES[preset]
    found = []
    for T in horizons:
        common = {"system": "pendulum", "horizon": T, "batch": batch, "seed": 10, "budget_seconds": budget}
        found += [Trial(f"{name}-t{T}", {**common, "method": name, "iterations": None}, T + 100.0) for name in _METHODS]
        for n in counts:
            found.append(Trial(f"unrolled-{n}-t{T}", {**common, "method": "unrolled", "iterations": n}, 100.0 + n * T / 10))
    return found


def run(settings: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """Seconds of the forward and backward passes, repeated, and the memory that the first of them needs on top."""
    planner, batch = _planner(settings), settings["batch"]
    x0 = starts(settings["system"], batch, settings["seed"])
    parameters = [planner.problem.get_parameter(f"dynamics.{name}") for name in ("gravity", "mass", "length")]

    def forward(x0: torch.Tensor) -> tuple[torch.Tensor, Any]:
        solution = planner(x0)
        return solution.controls.square().sum(), solution

    torch.autograd.grad(forward(x0[:1])[0], parameters)  # imports, compiles and allocates what the first call does
    before = _forget_peak()
    seconds: dict[str, list[float]] = {"forward": [], "backward": []}
    memory, end, solution = 0, math.inf, None
    while not seconds["forward"] or (len(seconds["forward"]) < _MOST_REPEATS and time.perf_counter() < end):
        (loss, solution), took = _timed(partial(forward, x0))
        seconds["forward"].append(took)
        gradient, took = _timed(partial(torch.autograd.grad, loss, parameters))
        seconds["backward"].append(took)
        del loss
        if end == math.inf:
            memory, end = max(0, _peak() - before), time.perf_counter() + settings["budget_seconds"]
    return {
        "forward_seconds": seconds["forward"],
        "backward_seconds": seconds["backward"],
        "memory_bytes": memory,
        "iterations": solution.num_iterations.tolist() if solution is not None else [],
        "residual": float(solution.residual.max()) if solution is not None else None,
        "gradient": [float(part) for part in gradient],
    }


def _planner(settings: Mapping[str, Any]) -> ILQR:
    tested, method, iterations = problem(settings["system"], settings["horizon"]), settings["method"], settings["iterations"]
    if iterations is not None:
        exactly = _Exactly(max_iterations=iterations, tolerance=-1.0, backend="torch", regularisation_max=math.inf)
        return ILQR(tested, exactly, gradient="unroll")
    options = ILQROptions(_MAX_ITERATIONS, _TOLERANCE, backend="native" if method == "native" else "torch")
    return ILQR(tested, options, gradient="unroll" if method == "unrolled" else "implicit")


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    gc.collect()
    start = time.perf_counter()
    found = function()
    return found, time.perf_counter() - start


def _forget_peak() -> int:
    """Forget the largest resident size so far where the system can (Linux); returns the largest now, in bytes."""
    gc.collect()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _peak()


def _peak() -> int:
    """The largest resident size of this process, in bytes."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError, ValueError):  # not Linux: macOS counts in bytes, others in KiB
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """A row for each trial, and for each figure of mpc.pytorch, with the run of `dilqr bench` that it comes from."""
    found = []
    for record in records:
        iterations = record.result["iterations"]
        found.append(
            {
                "method": record.settings["method"],
                "horizon": record.settings["horizon"],
                "batch": record.settings["batch"],
                "asked": record.settings["iterations"],
                "iterations": median(iterations),
                "most": max(iterations),
                "forward_ms": 1e3 * _seconds(record, "forward"),
                "backward_ms": 1e3 * _seconds(record, "backward"),
                "memory_MB": record.result["memory_bytes"] / 1e6,
                "repeats": len(record.result["forward_seconds"]),
            }
        )
    return found + _mpc_pytorch(sorted({record.settings["horizon"] for record in records}))


def _seconds(record: Record, part: str) -> float:
    """The shortest of the repeats: whatever else the machine does only adds to it."""
    return float(min(record.result[f"{part}_seconds"]))


def _mpc_pytorch(horizons: Sequence[int]) -> list[dict[str, Any]]:
    """What one run of `dilqr bench` has measured of mpc.pytorch on 20 pendulums, with our own beside it; [] if nothing."""
    folder = Path(dilqr_rl.__file__).resolve().parents[1] / "benchmarks" / "results"
    for name in ("bench.json", "e2.json"):  # the full run, and the one with --e2
        try:
            cells = json.loads((folder / name).read_text(encoding="utf-8"))["cells"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found = [row for T in horizons if (row := _peer_row(cells, T, name))]
        if found:
            return found
    return []


def _peer_row(cells: Mapping[str, Any], horizon: int, file: str) -> dict[str, Any] | None:
    """One cell beside ours of the same file."""
    try:
        theirs, ours = (cells[f"{solver} | pendulum | T={horizon} | B=20"] for solver in ("mpc.pytorch", "native"))
        times = {f"{part}_ms": 1e3 * min(theirs[f"{part}_seconds"]) for part in _PARTS}
        ratio = min(theirs["backward_seconds"]) / min(ours["backward_seconds"])
        run = f"{file}, {theirs['time'].partition(' ')[0]}"
    except (KeyError, TypeError, ValueError):  # not measured: no such cell, or one without times
        return None
    iterations = theirs.get("iterations", {})
    return {
        "method": _PEER,
        "horizon": horizon,
        "batch": 20,
        **{to: iterations[of] for to, of in (("iterations", "median"), ("most", "most")) if of in iterations},
        **times,
        "memory_MB": theirs["memory_bytes"] / 1e6,
        "repeats": len(theirs["forward_seconds"]),
        "times_native_backward": ratio,
        "run": run,
    }


def claims(rows: Sequence[Row]) -> list[Claim]:
    """What is published on time and memory, and what came out at the smallest horizon, and at all of them."""
    found = []
    horizons = sorted({row["horizon"] for row in rows})
    for n, (seconds, times) in _PUBLISHED.items():
        told = [text for T in horizons if (text := _ratio(rows, T, n, "backward"))]
        published = f"[DiLQR] Fig. 2: {times:g} times faster at T = 10 (unrolled {seconds:g} s)"
        found.append(_compared(f"Backward against {n} unrolled iterations", published, told, rows, (n, times)))
    told = [text for T in horizons if (text := _ratio(rows, T, None, "backward"))]
    found.append(_compared("Backward against as many unrolled iterations as convergence needs", "-", told, rows, None))
    found.append(_memory_claim(rows, horizons))
    return [*found, _peer_claim(rows)]


def _peer_claim(rows: Sequence[Row]) -> Claim:
    """mpc.pytorch beside our native path in the same run of `dilqr bench`, which isn't that of the rows above."""
    theirs = [row for row in rows if row["method"] == _PEER]
    told = [
        f"T = {row['horizon']}: backward {row['backward_ms']:.1f} ms, {row['times_native_backward']:.0f} times our native"
        for row in theirs
    ]
    runs = ", ".join(dict.fromkeys(row["run"] for row in theirs))
    name = "mpc.pytorch's backward, whose formula leaves the dynamics' curvature out"
    claim = f"{name}; both from a run of `dilqr bench` ({runs})" if told else name
    return _compared(claim, "-", told, rows, None)


def _compared(claim: str, published: str, told: list[str], rows: Sequence[Row], figure: tuple[int, float] | None) -> Claim:
    """A claim with its verdict: a ratio is reproduced where ours, both by torch, is at least as large at T = 10."""
    if not told:
        return Claim(claim, published, "-", "not measured")
    verdict = "new" if published == "-" else "reproduced"
    if figure is not None:
        torch_, unrolled = _find(rows, 10, "torch", None), _find(rows, 10, "unrolled", figure[0])
        if torch_ is None or unrolled is None:
            verdict = "not measured"
        elif unrolled["backward_ms"] / torch_["backward_ms"] < figure[1]:
            verdict = "not reproduced"
    return Claim(claim, published, "; ".join(told), verdict)


def _find(rows: Sequence[Row], horizon: int, method: str, iterations: int | None) -> Row | None:
    wanted = (horizon, method, iterations)
    return next((row for row in rows if (row["horizon"], row["method"], row.get("asked")) == wanted), None)


def _ratio(rows: Sequence[Row], horizon: int, iterations: int | None, part: str) -> str:
    unrolled, torch_ = _find(rows, horizon, "unrolled", iterations), _find(rows, horizon, "torch", None)
    native = _find(rows, horizon, "native", None)
    if unrolled is None or torch_ is None or native is None:
        return ""
    times = [unrolled[f"{part}_ms"] / row[f"{part}_ms"] for row in (torch_, native)]
    took = "" if iterations is not None else f" ({unrolled['most']} at most)"
    seconds = f"unrolled {unrolled[f'{part}_ms'] / 1e3:.2g} s"
    return f"T = {horizon}{took}: {seconds}, {times[0]:.0f} times our torch, {times[1]:.0f} times our native"


def _memory_claim(rows: Sequence[Row], horizons: Sequence[int]) -> Claim:
    """Reproduced where the implicit gradients need less than the fewest unrolled iterations, at every horizon."""
    claim, published = "Memory doesn't grow with the iterations", "[DiLQR] 4, not measured"
    told = [found for T in horizons if (found := _memory(rows, T))]
    if not told:
        return Claim(claim, published, "-", "not measured")
    verdict = "reproduced" if all(less for _, less in told) else "not reproduced"
    return Claim(claim, published, "; ".join(text for text, _ in told), verdict)


def _memory(rows: Sequence[Row], horizon: int) -> tuple[str, bool] | None:
    """What is needed at a horizon, in words, and whether the implicit gradients need the least."""
    unrolled = [row for row in rows if row["horizon"] == horizon and row.get("asked") is not None]
    implicit = [row for name in ("torch", "native") if (row := _find(rows, horizon, name, None)) is not None]
    if not unrolled or len(implicit) < 2:
        return None
    most = max(unrolled, key=lambda row: int(row["asked"]))
    count, sizes = most["asked"], [row["memory_MB"] for row in (most, *implicit)]
    less = all(row["memory_MB"] < min(other["memory_MB"] for other in unrolled) for row in implicit)
    text = f"T = {horizon}: {count} unrolled {sizes[0]:.0f} MB, torch {sizes[1]:.0f} MB, native {sizes[2]:.0f} MB"
    return text, less


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Time over the number of unrolled iterations, a panel for each horizon, with the implicit gradients as level lines."""
    horizons = sorted({record.settings["horizon"] for record in records})
    figure = new_figure(4.0 * len(horizons) + 0.5, 7.0)
    panels = figure.subplots(2, len(horizons), squeeze=False, sharex=True, sharey="row")
    for column, horizon in enumerate(horizons):
        here = [record for record in records if record.settings["horizon"] == horizon]
        _draw_times(panels[0][column], here, horizon)
        _draw_memory(panels[1][column], here)
        panels[0][column].set_title(f"pendulum, T = {horizon}")
        panels[1][column].set_xlabel("unrolled iterations")
    panels[0][0].set_ylabel("seconds per batch")
    panels[1][0].set_ylabel("memory, MB")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return [save_figure(figure, folder / "time.png")]


def _draw_times(panel: Any, records: Sequence[Record], horizon: int) -> None:
    levels = {r.settings["method"]: {p: _seconds(r, p) for p in _PARTS} for r in records if r.settings["method"] in _LOOKS}
    for row in _mpc_pytorch([horizon]):
        levels[_PEER] = {part: row[f"{part}_ms"] / 1e3 for part in _PARTS}
    fixed, needed = _unrolled(records)
    for part, style in _STYLES.items():
        for marker, group, label in (("o" + style, fixed, "unrolled"), ("*", needed, "unrolled, as needed")):
            counts = [max(record.result["iterations"]) for record in group]
            times = [_seconds(record, part) for record in group]
            face = "tab:red" if part == "backward" else "none"
            panel.plot(counts, times, marker, color="tab:red", mfc=face, ms=7, label=f"{label}, {part}")
        for method, (colour, name) in _LOOKS.items():
            if method in levels:
                panel.axhline(levels[method][part], ls=style, color=colour, label=f"{name}, {part}")
    panel.set(yscale="log")
    panel.grid(alpha=0.3)


def _draw_memory(panel: Any, records: Sequence[Record]) -> None:
    for marker, group in zip(("o-", "*"), _unrolled(records), strict=True):
        sizes = [record.result["memory_bytes"] / 1e6 for record in group]
        panel.plot([max(record.result["iterations"]) for record in group], sizes, marker, color="tab:red", ms=7)
    for record in records:
        if record.settings["method"] in _LOOKS:
            panel.axhline(record.result["memory_bytes"] / 1e6, color=_LOOKS[record.settings["method"]][0])
    panel.set(yscale="log")
    panel.grid(alpha=0.3)


def _unrolled(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Those with a fixed number of iterations, in its order, and those that take what they need."""
    unrolled = [record for record in records if record.settings["method"] == "unrolled"]
    fixed = [record for record in unrolled if record.settings["iterations"] is not None]
    needed = [record for record in unrolled if record.settings["iterations"] is None]
    return sorted(fixed, key=lambda record: int(record.settings["iterations"])), needed
