"""Why a solve is in doubt: what the log says of kinks, coarse and random functions, and of nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from problems import FLOAT, cartpole, far_cartpole_starts, far_pendulum_starts, pendulum
from torch import Tensor

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Simulator, Solution, Status
from dilqr_rl.endings import reason_for_doubt
from dilqr_rl.instance import bind

Backend = Literal["native", "torch"]
each_backend = pytest.mark.parametrize("backend", ["native", "torch"])


def plan(problem: ControlProblem, x0: Tensor, u_init: Tensor | None = None, **options: Any) -> Solution:
    with torch.no_grad():
        return ILQR(problem, ILQROptions(**options))(x0, u_init=u_init)


def damped(x: Any, u: Any) -> Any:
    return 0.9 * x + u


def squares(x: Tensor, u: Tensor) -> Tensor:
    return x.square().sum(-1) + 0.1 * u.square().sum(-1)


KINKS: dict[str, tuple[Any, Any, Any, str]] = {  # dynamics, stage cost, terminal cost: what is said of them
    "|u|": (damped, lambda x, u: squares(x, u) + 0.3 * u.abs().sum(-1), None, r"stage_cost: its slope jumps as u\[\.\.\., \d\]"),
    "|x|": (damped, lambda x, u: 0.1 * squares(x, u) + x[..., 1].abs(), None, r"stage_cost: its slope jumps as x\[\.\.\., 1\]"),
    "at the end": (damped, squares, lambda x: 9.0 * x[..., 0].abs(), r"terminal_cost: its slope jumps as x\[\.\.\., 0\]"),
}  # fmt: skip


@each_backend
@pytest.mark.parametrize("name", KINKS)
def test_a_kink_at_which_a_solve_has_no_end_is_told(name: str, backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    dynamics, cost, terminal, words = KINKS[name]
    problem = ControlProblem(dynamics, cost, terminal, horizon=4, state_size=2, control_size=2)
    solution = plan(problem, torch.tensor([[0.5, 0.2], [0.3, -0.4]], dtype=FLOAT), backend=backend)
    assert not solution.converged.all()
    assert re.search(rf"a solve is in doubt: {words}.* at a kink, as of \|u\|, max", caplog.text)


@each_backend
def test_smooth_problems_that_are_cut_off_have_no_kinks(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    for iterations in (1, 3, 6):
        for problem, x0 in ((pendulum(20), far_pendulum_starts(9)), (cartpole(20), far_cartpole_starts(9))):
            solution = plan(problem, x0, backend=backend, max_iterations=iterations)
            assert (solution.status == Status.MAX_ITERATIONS).any()
    assert "a solve is in doubt" not in caplog.text


def motor(x: Tensor, u: Tensor) -> Tensor:
    """Refuses what no plan holds."""
    if bool((u.abs() > 1.0).any()):
        raise ValueError("beyond the motor's limits")
    return damped(x, u)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_a_model_that_refuses_other_controls_is_planned_with(backend: Literal["auto", "torch"]) -> None:
    problem = ControlProblem(motor, KINKS["|u|"][1], horizon=4, state_size=2, control_size=2, u_min=-1.0, u_max=1.0)
    start = torch.tensor([[0.5, 20.0]], dtype=FLOAT)  # one control ends at the kink, the other at its bound
    solution = plan(problem, start, backend=backend)
    assert (solution.status != Status.CONVERGED).all()  # so that a reason is looked for


# Costs of x, and between which x they are looked at.
SMOOTH: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "a barrier": (lambda x: -1e-3 * torch.log(1.0 - x), 0.99, 0.9999),
    "many turns": (torch.sin, 1e3, 1e4),
    "ripples": (lambda x: (100.0 * x).sin(), -6.0, 6.0),
    "a kink made smooth": (lambda x: (x.square() + 1e-8).sqrt(), -1e-3, 1e-3),
    "a step made smooth": (lambda x: (1000.0 * x).tanh(), -1e-2, 1e-2),
    "large values": (lambda x: 1e6 + x.square(), -3.0, 3.0),
}
ROUGH: dict[str, tuple[Callable[[Tensor], Tensor], float, float]] = {
    "a kink": (torch.abs, -1e-9, 1e-9),
    "two slopes": (lambda x: torch.maximum(x, 2.0 * x), -1e-6, 1e-6),
    "float32": (lambda x: (x + 1.0).float().double(), -3.0, 3.0),
}


def reasons(cost: Callable[[Tensor], Tensor], low: float, high: float) -> list[str]:
    """What is said of plans through states between these, as if each were where a solve has stopped."""
    problem = ControlProblem(
        lambda x, u: x + u, lambda x, u: cost(x[..., 0]) + u.square().sum(-1), horizon=64, state_size=1, control_size=1
    )
    x0, found = torch.full((1, 1), 0.5 * (low + high), dtype=FLOAT), []
    stopped = plan(problem, x0, backend="torch", max_iterations=1)
    for seed in range(10):
        drawn = torch.rand(1, 65, 1, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)
        there = replace(stopped, states=low + (high - low) * drawn, controls=torch.zeros_like(stopped.controls))
        there = replace(there, status=torch.full_like(there.status, int(Status.MAX_ITERATIONS)))
        found.append(reason_for_doubt(bind(problem, x0, None), there))
    return found


@pytest.mark.parametrize("name", SMOOTH)
def test_what_is_smooth_is_in_no_doubt(name: str) -> None:
    assert reasons(*SMOOTH[name]) == [""] * 10


@pytest.mark.parametrize("name", ROUGH)
def test_what_is_rough_is(name: str) -> None:
    words = "values jump" if name == "float32" else "slope jumps"
    assert all(f"stage_cost: its {words} as x[..., 0] changes" in reason for reason in reasons(*ROUGH[name]))


def test_a_simulator_that_refuses_other_controls_is_planned_with(caplog: pytest.LogCaptureFixture) -> None:
    def step(x: np.ndarray, u: np.ndarray) -> np.ndarray:
        if (np.abs(u) > 1.0).any():
            raise ValueError("beyond the motor's limits")
        return x + 0.1 * u

    def jacobian(x: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.ones((len(x), 1, 1)), np.full((len(x), 1, 1), 0.1)

    cost = QuadraticCost([1.0, 0.01], [5.0, 0.0])
    problem = ControlProblem(Simulator(step, jacobian), cost, horizon=5, state_size=1, control_size=1, u_min=-1.0, u_max=1.0)
    assert plan(problem, torch.zeros(1, 1, dtype=FLOAT)).converged.all()
    assert caplog.text == ""


NOISE = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (lambda x, u: damped(x, u).astype(np.float32), "dynamics: its values jump as .* are they of float32 somewhere"),
        (lambda x, u: np.sin(x.astype(np.float32)) + u, "dynamics: its values jump as .* are they of float32 somewhere"),
        (lambda x, u: damped(x, u) + 1e-6 * NOISE.standard_normal(x.shape), "its functions give other results when they are"),
    ],
)
def test_simulators_that_are_too_coarse_or_random_are_told(step: Any, words: str, caplog: pytest.LogCaptureFixture) -> None:
    problem = ControlProblem(Simulator(step), squares, horizon=4, state_size=2, control_size=2)
    plan(problem, torch.tensor([[0.5, 0.2]], dtype=FLOAT))  # with Jacobians that are wrong by 1 %, it may converge
    assert re.search(f"a solve is in doubt: {words}", caplog.text)
