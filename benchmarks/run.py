"""The measurements behind `dilqr bench`: every solver in a process of its own, one after the other, one thread each.

A cell is a solver on B problems of a system with T controls each. The processes are those of peers/ and speak as protocol.py
says; drive.py starts and judges them by reference.py; cells.py keeps what they found.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from benchmarks.cells import DONE, LONG_HORIZON, Cell, Results, grid
from benchmarks.drive import Limits, measure
from benchmarks.environments import MissingError, default_folder, install
from benchmarks.figures import figure_table, figures
from benchmarks.plot import draw_e2, draw_grid
from benchmarks.reference import CONVERGED
from benchmarks.solvers import E2_SOLVERS, OURS, SOLVERS, UNROLLED, Solver
from benchmarks.systems import SYSTEMS
from benchmarks.tables import cell_table, footnotes
from dilqr_rl.cli.console import console, progress

HORIZONS = (10, 20, 50)
BATCHES = (1, 20, 128, 1024)
E2_HORIZON, E2_BATCH, E2_CAP_SECONDS = 10, 20, 600.0


@dataclass(frozen=True)
class Bench:
    """What to measure, and where things are.

    Attributes:
        solvers, systems: names.
        horizons, batches: T and B.
        limits: of time.
        environments: folder of the peers' virtual environments.
        results: folder of bench.json, bench.png, e2.json and e2.png.
        again: measure cells anew that have been measured.
    """

    solvers: Sequence[str]
    systems: Sequence[str]
    horizons: Sequence[int]
    batches: Sequence[int]
    limits: Limits
    environments: Path
    results: Path
    again: bool

    def cells(self) -> list[Cell]:
        """The grid, and for our native backend the long horizon, which it is to reach in linear time."""
        found = list(grid(self.solvers, self.systems, self.horizons, self.batches))
        if "native" in self.solvers and 20 in self.horizons and 20 in self.batches:
            found += grid(["native"], self.systems, [LONG_HORIZON], [20])
        return found

    def run(self) -> None:
        """Measure, tell and draw."""
        cells, results = self.cells(), Results(self.results / "bench.json")
        self._measure(cells, SOLVERS, results, self.limits)
        _wide().print(cell_table(cells, results))
        _explain(cells, results, self.limits)
        picture = self.results / "bench.png"
        draw_grid(results, self.solvers, self.systems, self.horizons, self.batches, picture)
        console.print(f"{results.file} and {picture} written", soft_wrap=True)

    def run_e2(self) -> None:
        """Experiment E2: our implicit gradient beside our honest unrolled one, and mpc.pytorch's."""
        results, limits = (
            Results(self.results / "e2.json"),
            Limits(E2_CAP_SECONDS, self.limits.budget_seconds, self.limits.repeats),
        )
        cells = list(grid(list(E2_SOLVERS), ["pendulum"], [E2_HORIZON], [E2_BATCH]))
        self._measure(cells, E2_SOLVERS, results, limits)
        _wide().print(cell_table(cells, results))
        _explain(cells, results, limits)
        picture = self.results / "e2.png"
        draw_e2(results, E2_HORIZON, UNROLLED, picture)
        console.print(f"{results.file} and {picture} written", soft_wrap=True)

    def report(self) -> None:
        """The figures to reach, from what has been measured."""
        results, e2 = Results(self.results / "bench.json"), Results(self.results / "e2.json")
        if not results.cells:
            raise ValueError(f"{results.file}: no results there yet. Run `dilqr bench` first.")
        console.print(", ".join(f"{name} {value}" for name, value in results.machine.items()), soft_wrap=True)
        _wide().print(figure_table(figures(results, e2)))

    def install(self) -> None:
        """Make the environments of the chosen peers, and say which of them can't be made."""
        for solver in self._peers():
            console.print(f"{solver.name}: {', then '.join(' '.join(step) for step in solver.steps)}", soft_wrap=True)
            try:
                install(solver, self.environments)
            except MissingError as reason:
                console.print(f"{solver.name}: {reason}", style="red", soft_wrap=True)
        console.print(f"environments are in {self.environments}", soft_wrap=True)

    def _peers(self) -> list[Solver]:
        return [SOLVERS[name] for name in self.solvers if SOLVERS[name].environment is not None]

    def _measure(self, cells: Sequence[Cell], solvers: Mapping[str, Solver], results: Results, limits: Limits) -> None:
        with progress(f"{len(cells)} measurements", len(cells)) as bar:
            for cell in cells:
                if self.again or results[cell].get("status") not in DONE:
                    bar.advance(0, note=str(cell))
                    smaller = None if self.again else results.too_long(cell)
                    if smaller is None:
                        results[cell] = measure(cell, solvers[cell.solver], self.environments, limits)
                    else:
                        results[cell] = {
                            "status": "over cap",
                            "reason": f"not run: too long at {smaller}",
                            "cap_seconds": results[smaller]["cap_seconds"],
                        }
                bar.advance()


def bench(
    *,
    solvers: Sequence[str],
    systems: Sequence[str],
    horizons: Sequence[int],
    batches: Sequence[int],
    cap_seconds: float,
    budget_seconds: float,
    repeats: int,
    environments: Path | None,
    results: Path | None,
    again: bool,
    quick: bool,
) -> Bench:
    """Check what a person asked for and fill in the defaults; an empty sequence stands for all.

    Raises:
        ValueError: an unknown name, or a number out of its range.
    """
    for name, values, known in (("solvers", solvers, SOLVERS), ("systems", systems, SYSTEMS)):
        unknown = [value for value in values if value not in known]
        if unknown:
            raise ValueError(f"{name}: expected some of {', '.join(known)}, got {unknown[0]!r}.")
    for name, numbers in (("horizons", horizons), ("batches", batches), ("repeats", [repeats])):
        if any(value < 1 for value in numbers):
            raise ValueError(f"{name}: expected positive integers, got {min(numbers)}.")
    for name, seconds in (("cap", cap_seconds), ("budget", budget_seconds)):
        if not 1.0 <= seconds < 1e6:
            raise ValueError(f"{name}: expected a number of seconds, at least 1, got {seconds:g}.")
    home = Path(__file__).parents[1]
    return Bench(
        solvers=solvers or (OURS if quick else tuple(SOLVERS)),
        systems=systems or tuple(SYSTEMS),
        horizons=horizons or ((10,) if quick else HORIZONS),
        batches=batches or ((1, 4) if quick else BATCHES),
        limits=Limits(cap_seconds, 1.0 if quick else budget_seconds, 1 if quick else repeats),
        environments=environments or default_folder(),
        results=results or (home / "build" / "bench" if quick else home / "benchmarks" / "results"),
        again=again,
    )


def _wide() -> Console:
    """A table cut to the width of a narrow window, or of a file, tells nothing."""
    return Console(width=max(console.width, 130))


def _explain(cells: Sequence[Cell], results: Results, limits: Limits) -> None:
    console.print(
        f"converged: the projected gradient's norm, computed by us for everyone at the controls found, is below {CONVERGED:g}. "
        "gradient error: of the sum over those of the first 20 problems where the solver found the reference's solution (how "
        "many), relative to central differences. MB: growth of the resident size over one forward and backward pass. "
        f"> cap: one pass takes more than {limits.cap_seconds:g} s.",
        highlight=False,
    )
    for line in footnotes(cells, results):
        console.print(f"- {line}", markup=False, highlight=False)
