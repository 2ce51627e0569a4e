"""Records of cells as a table for a person."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from benchmarks.cells import Cell, Record, Results

_COLUMNS = ("forward", "backward", "sum", "iterations", "converged", "gradient error", "MB")


def median_ms(record: Record, part: str) -> float | None:
    """The median time of "forward" or "backward", or of both together as "sum"; None where it wasn't measured."""
    if part == "sum":
        parts = [median_ms(record, name) for name in ("forward", "backward")]
        return None if None in parts else sum(value for value in parts if value is not None)
    seconds = record.get(f"{part}_seconds")
    return 1e3 * statistics.median(seconds) if seconds else None


def cell_table(cells: Iterable[Cell], results: Results) -> Table:
    """One row a cell; what could not be measured says so."""
    table = Table(title="milliseconds per batch, one thread, medians", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for column in ("system", "T", "B", "solver"):
        table.add_column(column, no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    last = None
    for cell in cells:
        problem = (cell.system, cell.horizon, cell.batch)
        if last not in (None, problem):
            table.add_section()
        shown = ("", "", "") if last == problem else (cell.system, str(cell.horizon), str(cell.batch))
        table.add_row(*shown, cell.solver, *_row(results[cell]))
        last = problem
    return table


def footnotes(cells: Sequence[Cell], results: Results) -> list[str]:
    """What solvers leave out, and why cells have no figures, each once."""
    lines: dict[str, None] = {}
    for cell in cells:
        record = results[cell]
        version = f" {record['version']}" if "version" in record else ""
        for note in record.get("notes", ()):
            lines[f"{cell.solver}{version}: {note}"] = None
        if record.get("no_gradient"):
            lines[f"{cell.solver}: forward only, {record['no_gradient']}"] = None
        if record.get("reason") and record["status"] != "over cap":
            lines[f"{cell.solver}, {cell.system}: {record['status']}, {record['reason']}"] = None
    return list(lines)


def number(value: float | None, missing: str = "-") -> str:
    """Three digits, without an exponent where it is of ordinary size."""
    if value is None:
        return missing
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _row(record: Record) -> tuple[str, ...]:
    if not record:
        return ("not run", *("" for _ in _COLUMNS[1:]))
    over = record["status"] == "over cap"
    if record["status"] not in ("measured", "over cap"):
        word = {"cannot": "can't", "missing": "not installed", "failed": "failed"}[record["status"]]
        return (word, *("" for _ in _COLUMNS[1:]))
    missing = "> cap" if over else "-"
    forward = median_ms(record, "forward")
    iterations = record.get("iterations")
    return (
        number(forward, missing),
        number(median_ms(record, "backward"), "-" if record.get("no_gradient") or (over and forward is None) else missing),
        number(median_ms(record, "sum"), missing if not record.get("no_gradient") else "-"),
        f"{iterations['median']:.0f} (to {iterations['most']:.0f})" if iterations else "",
        f"{100 * record['converged']:.0f} %" if "converged" in record else "",
        _error(record),
        number(record["memory_bytes"] / 1e6) if "memory_bytes" in record else "",
    )


def _error(record: Record) -> str:
    if "gradient_error" in record:
        return f"{record['gradient_error']:.0e} ({record['matching']})"
    return "no match" if record.get("checked") else "-"
