"""What is to be measured and what has been: cells, and the file of results."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

Record = dict[str, Any]
DONE = ("measured", "over cap")  # statuses that a later run keeps; all others are tried again
LONG_HORIZON = 200


@dataclass(frozen=True)
class Cell:
    """One measurement: a solver on B problems of a system with T controls each."""

    solver: str
    system: str
    horizon: int
    batch: int

    def __str__(self) -> str:
        return f"{self.solver} | {self.system} | T={self.horizon} | B={self.batch}"

    def precedes(self, other: Cell) -> bool:
        """Whether it is the same solver on a smaller problem, so that what is too long for it is too long for the other."""
        same = (self.solver, self.system) == (other.solver, other.system)
        return same and self != other and self.horizon <= other.horizon and self.batch <= other.batch


def grid(solvers: Sequence[str], systems: Sequence[str], horizons: Sequence[int], batches: Sequence[int]) -> Iterator[Cell]:
    """All cells, the solvers of one problem next to each other, so that a busy minute hits them alike."""
    for system in systems:
        for horizon in horizons:
            for batch in batches:
                yield from (Cell(solver, system, horizon, batch) for solver in solvers)


class Results:
    """A JSON file with the records of cells and the machine's description, a line a cell, written after every one."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.cells: dict[str, Record] = {}
        self.machine: Record = {}
        if file.is_file():
            try:
                held = json.loads(file.read_text(encoding="utf-8"))
                self.cells, self.machine = held["cells"], held["machine"]
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}: expected results of `dilqr bench`, found something else ({error}).") from error

    def __getitem__(self, cell: Cell) -> Record:
        """The record of a cell, empty if there is none."""
        return self.cells.get(str(cell), {})

    def __setitem__(self, cell: Cell, record: Record) -> None:
        self.machine = machine()
        self.cells[str(cell)] = {**vars(cell), **record, "load": os.getloadavg()[0], "time": time.strftime("%Y-%m-%d %H:%M")}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(record)}" for name, record in self.cells.items())
        partial = self.file.with_suffix(".partial")
        partial.write_text(f'{{\n "machine": {json.dumps(self.machine)},\n "cells": {{\n{lines}\n }}\n}}\n', encoding="utf-8")
        partial.replace(self.file)

    def too_long(self, cell: Cell) -> Cell | None:
        """A smaller cell of the same solver that ran into the time limit."""
        for record in self.cells.values():
            smaller = Cell(record["solver"], record["system"], record["horizon"], record["batch"])
            if record["status"] == "over cap" and smaller.precedes(cell):
                return smaller
        return None


def machine() -> Record:
    """The machine and the versions that figures depend on."""
    model = platform.processor()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    names = ("dilqr_rl", "torch", "numpy", "numba")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in names},
    }
