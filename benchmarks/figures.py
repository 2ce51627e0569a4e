"""The figures to reach, computed from results: what is wanted, what was measured, and whether it is reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from benchmarks.cells import LONG_HORIZON, Cell, Results
from benchmarks.tables import median_ms, number

_COMPONENTS = {"pendulum": 4, "cart-pole": 6}  # n + m


@dataclass(frozen=True)
class Figure:
    """One line of the report.

    Attributes:
        what: a sentence.
        wanted: a limit, from above if `most`, else from below.
        measured: None where a cell is missing.
        most: see `wanted`.
        unit: of both numbers, with a space in front.
        at_least: the measured one is a lower bound, since a peer ran into its time limit.
    """

    what: str
    wanted: float
    measured: float | None
    most: bool = False
    unit: str = ""
    at_least: bool = False

    @property
    def reached(self) -> bool | None:
        """Whether it is, None where it wasn't measured."""
        if self.measured is None:
            return None
        return self.measured <= self.wanted if self.most else self.measured >= self.wanted


def figures(results: Results, e2: Results) -> list[Figure]:
    """All of them, in the order of the issue."""
    return [
        *_against_peers(results),
        *_small_batch(results),
        _against_hand(results),
        *_backward(results),
        _unrolled(e2),
        *_scaling(results),
        *_memory(results),
    ]


def figure_table(found: list[Figure]) -> Table:
    """The report as a table."""
    table = Table(title="figures to reach (native, T = 20 unless it says otherwise)", title_justify="left")
    table.add_column("figure")
    for column in ("wanted", "measured", "reached"):
        table.add_column(column, justify="right")
    for figure in found:
        sign = "≤" if figure.most else "≥"
        verdict = {True: "yes", False: "NO", None: "not measured"}[figure.reached]
        wanted = f"{sign} {number(figure.wanted)}{figure.unit}"
        style = {True: "green", False: "red", None: "dim"}[figure.reached]
        above = "> " if figure.at_least else ""
        measured = "-" if figure.measured is None else f"{above}{number(figure.measured)}{figure.unit}"
        table.add_row(figure.what, wanted, measured, f"[{style}]{verdict}[/]")
    return table


def _time(results: Results, solver: str, system: str, batch: int, part: str = "sum", horizon: int = 20) -> float | None:
    return median_ms(results[Cell(solver, system, horizon, batch)], part)


def _ratio(upper: float | None, lower: float | None) -> float | None:
    return None if upper is None or not lower else upper / lower


def _against_peers(results: Results) -> Iterator[Figure]:
    wanted = {
        (20, "forward"): {"pendulum": (300, 15), "cart-pole": (500, 15)},
        (20, "sum"): {"pendulum": (150, 10), "cart-pole": (150, 10)},
        (1024, "sum"): {"pendulum": (40, 15), "cart-pole": (100, 15)},
    }
    for (batch, part), systems in wanted.items():
        for system, factors in systems.items():
            for peer, factor in zip(("mpc.pytorch", "fatrop"), factors, strict=True):
                ours = _time(results, "native", system, batch, part)
                theirs = _time(results, peer, system, batch, part)
                limit = results[Cell(peer, system, 20, batch)].get("cap_seconds") if theirs is None else None
                ratio = _ratio(1e3 * limit if limit else theirs, ours)
                named = "forward" if part == "forward" else "forward and backward"
                what = f"{named}, {system}, B={batch}: times faster than {peer}"
                yield Figure(what, factor, ratio, at_least=limit is not None)


def _small_batch(results: Results) -> Iterator[Figure]:
    for system in _COMPONENTS:
        for part, most in (("forward", 0.5), ("sum", 1.0)):
            named = "forward" if part == "forward" else "forward and backward"
            yield Figure(f"{named}, {system}, B=1", most, _time(results, "native", system, 1, part), most=True, unit=" ms")


def _per_iteration(results: Results, solver: str, system: str, horizon: int, batch: int) -> float | None:
    record = results[Cell(solver, system, horizon, batch)]
    forward, iterations = median_ms(record, "forward"), record.get("iterations")
    # A solve that converges has linearised once more than it stepped; the hand-written loop counts that one too.
    counted = 0 if solver == "hand-loop" else 1
    return _ratio(forward, iterations["sum"] + counted * batch if iterations else None)


def _against_hand(results: Results) -> Figure:
    ours, theirs = (_per_iteration(results, name, "pendulum", 20, 1024) for name in ("native", "hand-loop"))
    what = "time per iteration and problem, pendulum, B=1024: of the hand-written loop's"
    return Figure(what, 1.5, _ratio(ours, theirs), most=True)


def _backward(results: Results) -> Iterator[Figure]:
    for system in _COMPONENTS:
        ratios = []
        for horizon in (10, 20, 50):
            for batch in (20, 128, 1024):
                times = [_time(results, "native", system, batch, part, horizon) for part in ("backward", "forward")]
                ratios.append(_ratio(*times))
        known = [ratio for ratio in ratios if ratio is not None]
        yield Figure(f"backward over forward, {system}, B≥20, all T: largest", 1.0, max(known, default=None), most=True)


def _unrolled(e2: Results) -> Figure:
    unrolled, implicit = (_time(e2, name, "pendulum", 20, "backward", 10) for name in ("unrolled, 300", "native"))
    return Figure("E2, T=10, B=20: backward of 300 unrolled iterations over the implicit one", 2000, _ratio(unrolled, implicit))


def _scaling(results: Results) -> Iterator[Figure]:
    for system in _COMPONENTS:
        large, small = (_time(results, "native", system, batch) for batch in (1024, 20))
        yield Figure(f"{system}, B=1024 over B=20, per problem", 1.0, _ratio(_ratio(large, small), 1024 / 20), most=True)
        far, near = (_per_iteration(results, "native", system, horizon, 20) for horizon in (LONG_HORIZON, 20))
        what = f"{system}, B=20, T={LONG_HORIZON} over T=20, forward per iteration and step (1, a tenth for noise)"
        yield Figure(what, 1.1, _ratio(_ratio(far, near), LONG_HORIZON / 20), most=True)


def _memory(results: Results) -> Iterator[Figure]:
    """From the growth between two horizons, which leaves out what doesn't depend on them."""
    for system, components in _COMPONENTS.items():
        long, short = (results[Cell("native", system, horizon, 1024)].get("memory_bytes") for horizon in (50, 10))
        doubles = None if long is None or short is None else (long - short) / (8 * 1024 * (50 - 10))
        what = f"{system}, B=1024: doubles per problem and step (a few: ten for each component of (x, u))"
        yield Figure(what, 10 * components, doubles, most=True)
