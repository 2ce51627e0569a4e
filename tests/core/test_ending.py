"""How a solve ends, and what it tells: the step test, singular solutions, a time budget, the history."""

from __future__ import annotations

import ctypes
import math
import time
from typing import Any, Literal

import pytest
import torch
from problems import CASES, FLOAT, Case, carried_out, cartpole, far_cartpole_starts, far_pendulum_starts, pendulum
from torch import Tensor
from torch.func import grad, hessian

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Solution, Status
from dilqr_rl.native import program
from dilqr_rl.native.clock import Clock

Backend = Literal["native", "torch"]
each_backend = pytest.mark.parametrize("backend", ["native", "torch"])


def plan(problem: ControlProblem, x0: Tensor, u_init: Tensor | None = None, **options: Any) -> Solution:
    with torch.no_grad():
        return ILQR(problem, ILQROptions(**options))(x0, u_init=u_init)


# The step test.


@each_backend
@pytest.mark.parametrize("case", CASES, ids=str)
def test_where_a_solve_ends_newtons_step_is_small(case: Case, backend: Backend) -> None:
    """Computed anew from the whole Hessian of the cost by the controls, on those that aren't held at their bounds."""
    problem, x0 = case.build(8).requires_grad_(False), case.starts(6, 0)
    for step_tolerance in (1e-2, 1e-5):
        solution = plan(problem, x0, backend=backend, tolerance=0.3, step_tolerance=step_tolerance)
        assert solution.converged.all()
        assert not solution.singular.any()
        largest = torch.stack([newton_step(problem, *pair).abs().max() for pair in zip(x0, solution.controls, strict=True)])
        allowed = step_tolerance * (1 + solution.controls.abs().amax((1, 2)))
        # The step is clipped to the bounds on its way, in the solver; here at its end.
        assert (largest <= 1.01 * allowed).all()
        assert (largest > 0).any()


def newton_step(problem: ControlProblem, x0: Tensor, u: Tensor) -> Tensor:
    """(T, m)"""

    def cost(controls: Tensor) -> Tensor:
        return carried_out(problem, x0, controls.view_as(u))[1]

    slope, curvature = grad(cost)(u.flatten()), hessian(cost)(u.flatten())
    lower, upper = ((bound - u).flatten() for bound in (problem.u_min, problem.u_max))
    free = ~((lower >= 0) & (slope > 0) | (upper <= 0) & (slope < 0))
    step = torch.zeros_like(slope)
    step[free] = -torch.linalg.solve(curvature[free][:, free], slope[free])
    return torch.minimum(torch.maximum(step, lower), upper).view_as(u)


@each_backend
def test_a_flat_valley_is_followed_to_its_end(backend: Backend) -> None:
    """A gradient of 1e-6 is a control of 0.01 where the weight is 1e-4."""
    problem = ControlProblem(
        lambda x, u: x + u, QuadraticCost([0.0, 1e-4], [0.0, 0.5]), horizon=1, state_size=1, control_size=1
    )
    start, x0 = torch.full((1, 1, 1), 0.495, dtype=FLOAT), torch.zeros(1, 1, dtype=FLOAT)
    rests = plan(problem, x0, start, backend=backend)
    moves = plan(problem, x0, start, backend=backend, step_tolerance=1.0)
    assert moves.residual.item() < 1e-6
    assert moves.num_iterations.item() == 0
    assert rests.controls.item() == pytest.approx(0.5, abs=1e-12)


# Singular solutions.


def twice(weight: float = 0.0) -> ControlProblem:
    """Two controls that do the same."""
    return ControlProblem(
        lambda x, u: 0.9 * x + u.sum(-1, keepdim=True),
        lambda x, u: (x[..., 0] - 0.3) ** 2 + weight * u.square().sum(-1),
        horizon=4,
        state_size=1,
        control_size=2,
    )


@each_backend
def test_controls_that_do_the_same_are_told_as_singular(backend: Backend) -> None:
    x0 = torch.tensor([[0.7], [-1.0]], dtype=FLOAT)
    solution, definite = plan(twice(), x0, backend=backend, tolerance=1e-10), plan(twice(1e-3), x0, backend=backend)
    assert solution.converged.all()
    assert solution.singular.all()
    torch.testing.assert_close(solution.states[:, 1:-1, 0], torch.full((2, 3), 0.3, dtype=FLOAT), rtol=0.0, atol=1e-9)
    assert definite.converged.all()
    assert not definite.singular.any()


@each_backend
def test_a_saddle_is_told_as_singular_and_a_minimum_is_not(backend: Backend) -> None:
    problem, hanging = pendulum(30), torch.tensor([[-1.0, 0.0, 0.0]], dtype=FLOAT)
    saddle = plan(problem, hanging, torch.zeros(30, 1, dtype=FLOAT), backend=backend)
    assert saddle.converged.all()
    assert saddle.num_iterations.item() == 0
    assert saddle.singular.all()
    minimum = plan(problem, hanging, backend=backend)
    assert not minimum.singular.any()
    assert minimum.cost.item() < saddle.cost.item() - 1.0


# Units.


@each_backend
def test_units_make_no_difference(backend: Backend) -> None:
    """States, controls and costs in units of 1e-5 to 1e6: the same iterations, and the same plan in them."""
    plain, x0 = cartpole(20).requires_grad_(False), far_cartpole_starts(12)
    units, control_unit, cost_unit = torch.tensor([1e4, 1e-3, 1.0, 1.0, 1e3], dtype=FLOAT), 1e5, 1e6

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        return plain.dynamics(x / units, u / control_unit) * units

    def cost(x: Tensor, u: Tensor) -> Tensor:
        return cost_unit * plain.stage_cost(x / units, u / control_unit)

    bounds = {"u_min": control_unit * plain.u_min, "u_max": control_unit * plain.u_max}
    odd = ControlProblem(dynamics, cost, horizon=20, state_size=5, control_size=1, **bounds)
    usual = plan(plain, x0, backend=backend, tolerance=1e-8)
    other = plan(odd, x0 * units, backend=backend, tolerance=1e-8 * cost_unit / control_unit, step_tolerance=1e-6)
    assert other.converged.all()
    assert (usual.num_iterations - other.num_iterations).abs().max() <= 1  # the step tolerance is relative to 1 + u
    torch.testing.assert_close(other.controls / control_unit, usual.controls, rtol=1e-5, atol=1e-5)


# A time budget.


def slow() -> tuple[ControlProblem, Tensor]:
    return cartpole(200).requires_grad_(False), torch.tensor([[0.0, 0.0, math.cos(3.04), math.sin(3.04), 0.0]], dtype=FLOAT)


@each_backend
def test_a_time_budget_gives_the_best_plan_so_far(backend: Backend) -> None:
    problem, x0 = slow()
    plan(problem, x0, backend=backend, max_iterations=1)  # compiles
    began = time.perf_counter()
    plan(problem, x0, backend=backend, max_iterations=4)
    budget = 0.6 * (time.perf_counter() - began)
    solution = plan(problem, x0, backend=backend, max_seconds=budget)
    assert solution.status.tolist() == [Status.TIME_LIMIT]
    after = problem.dynamics(solution.states[:, :-1], solution.controls)  # step by step: over 200 a rounding becomes a swing
    torch.testing.assert_close(solution.states[:, 1:], after, rtol=1e-9, atol=1e-9)
    assert torch.equal(solution.states[:, 0], x0)
    still = plan(problem, x0, backend=backend, max_iterations=1, record=True).history
    assert still is not None
    assert solution.cost.item() <= still.cost[0, 0].item()
    assert solution.gains.isfinite().all()
    further = plan(problem, x0, solution.controls, backend=backend, max_seconds=budget)
    assert further.cost.item() <= solution.cost.item() * (1 + 1e-12)


@each_backend
def test_an_early_end_is_converged_whatever_the_budget(backend: Backend) -> None:
    x0 = far_pendulum_starts(20)
    assert torch.equal(
        plan(pendulum(10), x0, backend=backend, max_seconds=60.0).controls, plan(pendulum(10), x0, backend=backend).controls
    )


def test_a_batch_shares_its_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every problem gets some iterations, not the first ones all; by a clock that goes on by 1 s whenever it is looked at."""
    now = [0]

    def write(which: int, reading: Any) -> int:
        now[0] += 1
        reading[0], reading[1] = now[0], 0
        return 0

    function = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int64))(write)
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    monkeypatch.setattr(program, "clock", lambda: Clock(address, 0, lambda: float(now[0]), function))
    problem, x0 = slow()
    alone = plan(problem, x0)
    solution = plan(problem, x0.repeat(30, 1), max_seconds=600.0)
    assert (solution.status == Status.TIME_LIMIT).all()
    assert alone.num_iterations.item() > 100
    assert solution.num_iterations.min() >= 3
    assert solution.num_iterations.max() <= 20
    assert 500 < now[0] <= 640


# The history.


@each_backend
@pytest.mark.parametrize("problem", [pendulum(20), cartpole(20)], ids=["pendulum", "cartpole"])
def test_the_columns_of_a_history_are_shorter_solves(problem: ControlProblem, backend: Backend) -> None:
    x0 = (far_pendulum_starts if problem.state_size == 3 else far_cartpole_starts)(12)
    plain, solution = plan(problem, x0, backend=backend), plan(problem, x0, backend=backend, record=True)
    history = solution.history
    assert plain.history is None
    assert history is not None
    for name in ("states", "controls", "cost", "status", "num_iterations", "residual", "gains", "singular"):
        assert torch.equal(getattr(plain, name), getattr(solution, name)), name
    most = int(solution.num_iterations.max())
    assert history.cost.shape == (12, most + 1)
    for k in range(1, most + 1):
        until = plan(problem, x0, backend=backend, max_iterations=k)
        runs = solution.num_iterations >= k
        torch.testing.assert_close(history.cost[runs, k], until.cost[runs], rtol=1e-12, atol=0.0)
        torch.testing.assert_close(history.residual[runs, k], until.residual[runs], rtol=1e-9, atol=1e-12)
        assert history.cost[~runs, k].isnan().all()
    taken = ~history.step_size.isnan()
    assert taken.sum() == solution.num_iterations.sum()
    assert ((history.step_size[taken] >= 0) & (history.step_size[taken] <= 1)).all()
    assert (history.damping[taken] >= 0).all()
    assert history.hessian[taken].unique().tolist()[-1] == 1.0  # Newton's at the end
    assert (history.hessian[taken] < 1.0).any()  # a part of the curvature somewhere before


def test_of_a_problem_without_a_batch_and_of_another_start() -> None:
    solution = plan(pendulum(10), far_pendulum_starts(1)[0], record=True)
    assert solution.history is not None
    assert solution.history.cost.shape == (int(solution.num_iterations) + 1,)
    both = torch.cat((torch.tensor([[-1.0, 0.0, 0.0]], dtype=FLOAT), far_pendulum_starts(2)))
    mixed = plan(pendulum(30), both, record=True)  # the first is solved from another start than zero
    assert mixed.history is not None
    last = mixed.history.cost.gather(1, mixed.num_iterations.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(last, mixed.cost, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_seconds": 0.0}, "max_seconds: expected a number of seconds above 0, or None, got 0.0"),
        ({"max_seconds": True}, "max_seconds: .* got True"),
        ({"record": 1}, "record: expected True or False, got 1"),
        ({"step_tolerance": -1.0}, "step_tolerance: expected a number above 0, got -1.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ILQROptions(**options)
