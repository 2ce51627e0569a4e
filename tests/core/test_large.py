"""The largest problems that are promised: 1024 of them, over 200 steps."""

from __future__ import annotations

import resource
import sys
import time

import pytest
import torch
from problems import far_pendulum_starts, linear, linear_starts, pendulum

from dilqr_rl import ILQR, ILQROptions, Status


def peak_memory() -> float:
    """The largest memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


@pytest.mark.slow
def test_1024_problems_over_200_steps_are_solved_and_differentiated() -> None:
    problem, x0 = linear(200, u_min=-0.5, u_max=0.4), linear_starts(1024).requires_grad_()
    before, start = peak_memory(), time.perf_counter()
    solution = ILQR(problem)(x0)
    forward = time.perf_counter() - start
    (derivative,) = torch.autograd.grad(solution.controls.square().sum(), x0)
    backward, used = time.perf_counter() - start - forward, peak_memory() - before
    print(f"linear, 1024 x 200: {solution.describe()}; forward {forward:.1f} s, backward {backward:.1f} s, {used:.0f} MiB more")
    assert solution.converged.all()
    assert derivative.any(-1).all()
    assert used < 4096


@pytest.mark.slow
def test_1024_pendulums_over_200_steps_run() -> None:
    """From u = 0 their trajectories fall and swing; few plans so long are found in 100 iterations. Here is one."""
    before, start = peak_memory(), time.perf_counter()
    with torch.no_grad():
        solution = ILQR(pendulum(200), ILQROptions(max_iterations=1))(far_pendulum_starts(1024))
    seconds, used = time.perf_counter() - start, peak_memory() - before
    print(f"pendulum, 1024 x 200: {solution.describe()}; 1 iteration in {seconds:.1f} s, {used:.0f} MiB more")
    assert torch.isfinite(solution.states).all()
    assert set(solution.status.tolist()) <= {Status.CONVERGED, Status.MAX_ITERATIONS}
    assert used < 4096
