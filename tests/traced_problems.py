"""A tame problem of three states and two controls around functions that are traced, for several tests."""

from __future__ import annotations

from typing import Any, Literal

from problems import uniform
from torch import Tensor

from dilqr_rl import ILQR, ControlProblem, ILQROptions, Solution

Backend = Literal["auto", "native", "torch"]


def problem_of(dynamics: Any, cost: Any = None, horizon: int = 3) -> ControlProblem:
    def tame(x: Tensor, u: Tensor) -> Tensor:
        return (x - 0.2).square().sum(-1) + 0.5 * u.square().sum(-1)

    sizes = {"horizon": horizon, "state_size": 3, "control_size": 2}
    return ControlProblem(dynamics, cost or tame, **sizes, u_min=-0.6, u_max=0.5)


def solve(problem: ControlProblem, x0: Tensor, backend: Backend, max_iterations: int = 50, **arguments: Any) -> Solution:
    options = ILQROptions(tolerance=1e-11, backend=backend, max_iterations=max_iterations)
    return ILQR(problem, options)(x0, **arguments)


def starts(count: int, seed: int = 0) -> Tensor:
    return uniform(count, seed, (-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0))
