"""Virtual environments of the peers, made on request."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.solvers import Solver

_MARKER = "dilqr_bench_steps"


class MissingError(Exception):
    """Why a solver has no environment to run in."""


def default_folder() -> Path:
    """Where environments go unless another folder is named: the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "dilqr_rl" / "bench"


def python(solver: Solver, folder: Path) -> Path:
    """The interpreter that runs a solver.

    Raises:
        MissingError: its environment isn't there, or was made of other packages.
    """
    if solver.environment is None:
        return Path(sys.executable)
    home = folder / solver.environment
    marker = home / _MARKER
    if not marker.is_file() or marker.read_text(encoding="utf-8") != _recipe(solver):
        raise MissingError("not installed; `dilqr bench --install` does it")
    return home / "bin" / "python"


def install(solver: Solver, folder: Path) -> None:
    """Make a solver's environment, unless it is there.

    Raises:
        MissingError: pip refuses; with its reason.
    """
    try:
        python(solver, folder)
        return
    except MissingError:
        pass
    home = folder / str(solver.environment)
    shutil.rmtree(home, ignore_errors=True)
    try:
        _run(sys.executable, "-m", "venv", str(home))
        for step in solver.steps:
            _run(str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.startswith("ERROR")] or error.stderr.splitlines()
        raise MissingError(f"can't be installed: {lines[-1] if lines else error}") from error
    (home / _MARKER).write_text(_recipe(solver), encoding="utf-8")


def _recipe(solver: Solver) -> str:
    return "\n".join(" ".join(step) for step in solver.steps)


def _run(*command: str) -> None:
    # Pins that belong to our own environment, such as make's, must not reach a peer's.
    environment = {name: value for name, value in os.environ.items() if "CONSTRAINT" not in name and name != "PYTHONPATH"}
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
