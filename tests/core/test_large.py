"""The largest problems that are promised: 1024 of them, over 200 steps."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pytest
import torch
from problems import far_pendulum_starts, linear, linear_starts, pendulum
from torch import Tensor

from dilqr_rl import ILQR, ILQROptions, Solution, Status
from dilqr_rl.experiments.e2 import _peak

_MIB = 2**20


@dataclass(frozen=True)
class Found:
    """What a solve leaves: the statuses, whether what it computed is finite and not zero, seconds, and MiB.

    Of `held`, what the solution is, at most half can lie in memory that the process had before: `used` is never zero.
    """

    statuses: list[int]
    sound: bool
    seconds: float
    used: float
    held: float


def in_a_fresh_process(work: Callable[[], Found]) -> Found:
    """The largest memory of a process never falls, and what was freed is used again: it shows the first large thing alone."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(work).result()
    print(
        f"{getattr(work, 'func', work).__name__}: {found.seconds:.1f} s, {found.used:.0f} MiB more, of which the solution is {found.held:.0f}"
    )
    return found


def measured(solve: Callable[[Tensor], tuple[Solution, Tensor]], x0: Tensor) -> Found:
    """`solve` returns a solution and what must be finite; it has run with a few starts before."""
    solve(x0[:2])
    before, start = _peak(), time.perf_counter()
    solution, checked = solve(x0)
    seconds, used = time.perf_counter() - start, (_peak() - before) / _MIB
    tensors = [part for part in vars(solution).values() if isinstance(part, Tensor)]
    held = sum(part.numel() * part.element_size() for part in (*tensors, checked)) / _MIB
    return Found(solution.status.tolist(), bool(torch.isfinite(checked).all() and checked.any(-1).all()), seconds, used, held)


def solve_and_differentiate() -> Found:
    problem = linear(200, u_min=-0.5, u_max=0.4)

    def solve(x0: Tensor) -> tuple[Solution, Tensor]:
        x0 = x0.clone().requires_grad_()
        solution = ILQR(problem)(x0)
        return solution, torch.autograd.grad(solution.controls.square().sum(), x0)[0]

    return measured(solve, linear_starts(1024))


def iterate_once(backend: Literal["native", "torch"]) -> Found:
    """From u = 0 pendulums fall and swing; few plans so long are found in 100 iterations. Here is one."""
    planner = ILQR(pendulum(200), ILQROptions(max_iterations=1, backend=backend))

    @torch.no_grad()
    def solve(x0: Tensor) -> tuple[Solution, Tensor]:
        solution = planner(x0)
        return solution, solution.states

    return measured(solve, far_pendulum_starts(1024))


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
