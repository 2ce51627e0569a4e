"""Large solves, and the memory that they take: for processes of their own, which have to find them by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from problems import far_pendulum_starts, linear, linear_starts, pendulum
from torch import Tensor

from dilqr_rl import ILQR, ILQROptions, Solution
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
