"""The largest problems that are promised: 1024 of them, over 200 steps."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Literal

import pytest
from large_solves import Found, iterate_once, solve_and_differentiate

from dilqr_rl import Status


def in_a_fresh_process(work: Callable[[], Found]) -> Found:
    """The largest memory of a process never falls, and what was freed is used again: it shows the first large thing alone."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(work).result()
    print(
        f"{getattr(work, 'func', work).__name__}: {found.seconds:.1f} s, {found.used:.0f} MiB more, of which the solution is {found.held:.0f}"
    )
    return found


@pytest.mark.slow
def test_1024_problems_over_200_steps_are_solved_and_differentiated() -> None:
    found = in_a_fresh_process(solve_and_differentiate)
    assert set(found.statuses) == {Status.CONVERGED}
    assert found.sound
    assert 0.5 * found.held < found.used < 256


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "most"), [("native", 256), ("torch", 4096)])
def test_1024_pendulums_over_200_steps_run(backend: Literal["native", "torch"], most: float) -> None:
    found = in_a_fresh_process(partial(iterate_once, backend))
    assert set(found.statuses) <= {Status.CONVERGED, Status.MAX_ITERATIONS}
    assert found.sound
    assert 0.5 * found.held < found.used < most
