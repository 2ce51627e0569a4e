"""The parent's side of a measurement: start a solver's process, wait, judge what it says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import Cell, Record
from benchmarks.environments import MissingError, python
from benchmarks.reference import CHECKED, CONVERGED, reference, residuals
from benchmarks.solvers import Solver
from benchmarks.systems import SYSTEMS

_CHECKOUT = Path(__file__).parents[1]
_BUILD_SECONDS = 300.0  # for imports, compilation and a first small solve
_KEPT = ("version", "notes", "reason", "no_gradient", "build_seconds", "forward_seconds", "backward_seconds", "memory_bytes")
_ONE_THREAD = ("OMP", "MKL", "OPENBLAS", "NUMBA", "VECLIB", "NUMEXPR")


@dataclass(frozen=True)
class Limits:
    """How long a measurement may take.

    Attributes:
        cap_seconds: one forward and one backward pass together; beyond it the cell is "> cap".
        budget_seconds: for repeating them.
        repeats: after the first pass, at most.
    """

    cap_seconds: float
    budget_seconds: float
    repeats: int


def measure(cell: Cell, solver: Solver, environments: Path, limits: Limits) -> Record:
    """Run a solver on a cell: a record with a status, and with figures where there are any."""
    try:
        interpreter = python(solver, environments)
    except MissingError as reason:
        return {"status": "missing", "reason": str(reason)}
    found, code, errors = _run(interpreter, solver, _request(cell, solver, limits), limits)
    record: Record = {"status": _status(found, code)}
    record |= {name: found[name] for name in _KEPT if name in found}
    if record["status"] == "failed" and "reason" not in record:
        record["reason"] = errors[-1][:300] if errors else f"its process ended with {code}"
    if record["status"] == "over cap":
        record["cap_seconds"] = limits.cap_seconds
    if "controls" in found:
        record |= _judge(cell, found)
    return record


def _request(cell: Cell, solver: Solver, limits: Limits) -> dict[str, Any]:
    system, truth = SYSTEMS[cell.system], reference(cell.system, cell.horizon)
    return {
        "system": cell.system,
        "horizon": cell.horizon,
        "options": solver.options,
        "x0": system.starts(cell.batch),
        "targets": system.targets(cell.batch, cell.horizon),
        "reference": truth.controls.tolist(),
        "usable": truth.usable.tolist(),
        **vars(limits),
    }


def _run(interpreter: Path, solver: Solver, request: dict[str, Any], limits: Limits) -> tuple[Record, int, list[str]]:
    """What the process said, its exit status, and the lines of its standard error."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {f"{library}_NUM_THREADS": "1" for library in _ONE_THREAD}
    command = [str(interpreter), "-m", f"benchmarks.peers.{solver.adapter}"]
    process = subprocess.Popen(
        command,
        cwd=_CHECKOUT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, errors = process.communicate(json.dumps(request), _BUILD_SECONDS + 3 * limits.cap_seconds + limits.budget_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
    finally:
        process.kill()
    found: Record = {}
    for line in out.splitlines():
        found |= json.loads(line)
    return found, process.returncode, errors.splitlines()


def _status(found: Record, code: int) -> str:
    if "build_seconds" in found and code in (-signal.SIGALRM, -signal.SIGKILL):
        return "over cap"
    if code != 0:
        return "failed"
    return "cannot" if "reason" in found else "measured"


def _judge(cell: Cell, found: Record) -> Record:
    """The share of problems that converged by our own yardstick, their iterations, and the error of the gradient."""
    system, truth = SYSTEMS[cell.system], reference(cell.system, cell.horizon)
    residual = residuals(system, np.array(system.starts(cell.batch)), np.array(found["controls"]))
    iterations = np.array(found["iterations"])
    judged: Record = {
        "converged": float((residual <= CONVERGED).mean()),
        "iterations": {"median": float(np.median(iterations)), "most": iterations.max(), "sum": iterations.sum()},
    }
    matching = found.get("matching", [])
    if "matching" in found:
        judged |= {"checked": int(truth.usable[: min(cell.batch, CHECKED)].sum()), "matching": len(matching)}
    true = truth.gradients[matching].sum(0)
    if np.any(true != 0.0):  # all controls may be at their bounds
        judged["gradient_error"] = float(np.linalg.norm(np.array(found["gradient"]) - true) / np.linalg.norm(true))
    return judged
