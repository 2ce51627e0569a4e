"""The process that compiles computes the bits of those that come after it and read the machine code."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

pytest.importorskip("numba")

from solution_bits import EVERY, digests

TESTS = Path(__file__).parents[1]
# One or more of each kind: one and several controls, physics, Runge and Kutta's steps, networks, full costs.
COLD = frozenset(("pendulum", "quadrotor", "network_dynamics", "double_pendulum", "quadrotor_3d", "full_quadratic"))


def elsewhere(cache: str, names: Iterable[str]) -> dict[str, str]:
    """The digests, as a process of its own computes them."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"DILQR_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(TESTS / "solution_bits.py"), *sorted(names)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.slow
def test_a_process_that_compiles_and_one_that_reads_the_code_compute_the_same_bits(tmp_path: Path) -> None:
    cold, cached = elsewhere(str(tmp_path), COLD), elsewhere(str(tmp_path), COLD)
    assert set(cold) == COLD
    assert cold == cached


@pytest.mark.slow
def test_this_process_and_one_that_reads_its_code_compute_the_same_bits() -> None:
    """Of the other models, which the tests of agreement have compiled in this process, unless an earlier run had."""
    rest = EVERY - COLD
    assert digests(rest) == elsewhere(os.environ["DILQR_CACHE_DIR"], rest)
