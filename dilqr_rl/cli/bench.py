"""`dilqr bench`: our backends beside their peers."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated

import tyro

import dilqr_rl
from dilqr_rl.cli.modules import WithModules


@dataclass(frozen=True)
class Bench(WithModules):
    """Time, accuracy and memory of our backends beside their peers: a table, JSON and a plot.

    The peers are mpc.pytorch, CasADi with fatrop and with ipopt, crocoddyl, PyPose and Theseus, each in an environment of its
    own, which --install makes. It goes on where it was cut off: cells that have been measured are not measured again.
    """

    solvers: tuple[str, ...] = ()
    """Only these: native, torch, hand-loop, mpc.pytorch, fatrop, ipopt, crocoddyl, pypose, theseus."""
    systems: tuple[str, ...] = ()
    """Only these: pendulum, cart-pole."""
    horizons: tuple[int, ...] = ()
    """Controls per problem; 10, 20 and 50 unless given."""
    batches: tuple[int, ...] = ()
    """Problems at once; 1, 20, 128 and 1024 unless given."""
    quick: bool = False
    """Half a minute: our own backends, T = 10, B = 1 and 4, into build/bench."""
    install: bool = False
    """Make the peers' environments first (some 4 GB)."""
    e2: bool = False
    """Experiment E2 instead: the implicit gradient beside unrolled iterations."""
    report: bool = False
    """Measure nothing: the figures to reach, from what has been measured."""
    again: bool = False
    """Measure anew what has been measured."""
    cap: float = 60.0
    """Seconds of one forward and backward pass after which a cell is given up."""
    budget: float = 6.0
    """Seconds to spend on repeating a pass."""
    repeats: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 15
    """Repeats at most; the median counts."""
    environments: Path | None = None
    """Folder of the peers' environments; in the user's cache unless given."""
    results: Path | None = None
    """Folder of the results; benchmarks/results unless given."""

    def run(self) -> None:
        """Install, measure or report."""
        bench = _benchmarks().bench(
            solvers=self.solvers,
            systems=self.systems,
            horizons=self.horizons,
            batches=self.batches,
            cap_seconds=self.cap,
            budget_seconds=self.budget,
            repeats=self.repeats,
            environments=self.environments,
            results=self.results,
            again=self.again,
            quick=self.quick,
        )
        if self.install:
            bench.install()
        if self.report:
            bench.report()
        elif self.e2:
            bench.run_e2()
        else:
            bench.run()


def _benchmarks() -> ModuleType:
    """The module benchmarks/run.py of this checkout: the folder isn't part of an installed package, so no import finds it."""
    folder = Path(dilqr_rl.__file__).resolve().parents[1] / "benchmarks"
    if not (folder / "run.py").is_file():
        raise ValueError(
            "bench: expected a checkout of the repository with its folder benchmarks/, which no installed package has."
        )
    if "benchmarks" not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            "benchmarks", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        if spec is None or spec.loader is None:
            raise ValueError(f"bench: {folder} can't be imported.")
        module = importlib.util.module_from_spec(spec)
        sys.modules["benchmarks"] = module
        spec.loader.exec_module(module)
    return importlib.import_module("benchmarks.run")
