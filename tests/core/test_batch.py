"""A batch is its problems, whatever stands beside them: permuted, split, of one, or beside a problem that fails."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import (
    CARTPOLE,
    CASES_AND_GRADIENTS,
    FLOAT,
    GRADIENTS,
    LINEAR,
    NETWORK_COST,
    NETWORK_DYNAMICS,
    PENDULUM,
    QUADROTOR,
    Case,
    Gradient,
    LinearDynamics,
    normal,
    pendulum,
    published_pendulum_starts,
    seeded_network,
    value_of,
)
from torch import Tensor, nn

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Solution, Status

FIELDS = ("states", "controls", "cost", "status", "num_iterations", "residual", "gains", "singular")
# The last bit of a matrix product depends on how many rows it has (BLAS): problems with one agree to rounding, others bitwise.
WITHOUT_PRODUCTS, WITH_PRODUCTS = (PENDULUM, CARTPOLE, QUADROTOR), (NETWORK_DYNAMICS, NETWORK_COST, LINEAR)


def same(one: Solution, other: Solution, exactly: bool) -> None:
    for name in FIELDS:
        left, right = getattr(one, name), getattr(other, name)
        if exactly or not left.is_floating_point():
            assert torch.equal(left, right), name
        else:
            torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9, msg=name)  # rounding, amplified by the iterations


def part(solution: Solution, index: Tensor | slice | int) -> Solution:
    return Solution(**{name: getattr(solution, name)[index] for name in FIELDS})


@pytest.mark.parametrize("case", WITHOUT_PRODUCTS, ids=str)
@settings(max_examples=4)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 7))
def test_permuting_and_splitting_a_batch_permutes_and_splits_its_solution(case: Case, seed: int, cut: int) -> None:
    check_permuting_and_splitting(case, seed, cut, exactly=True)


@pytest.mark.parametrize("case", WITH_PRODUCTS, ids=str)
def test_permuting_and_splitting_keep_matrix_products_to_rounding(case: Case) -> None:
    check_permuting_and_splitting(case, 0, 3, exactly=False)


def check_permuting_and_splitting(case: Case, seed: int, cut: int, exactly: bool) -> None:
    planner, x0 = ILQR(case.build(5).requires_grad_(False)), case.starts(8, seed)
    solution = planner(x0)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    same(planner(x0[order]), part(solution, order), exactly)
    same(planner(x0[:cut]), part(solution, slice(cut)), exactly)
    same(planner(x0[cut:]), part(solution, slice(cut, None)), exactly)


@pytest.mark.parametrize(("case", "gradient"), CASES_AND_GRADIENTS, ids=str)
def test_unbatched_equals_a_batch_of_one_equals_one_of_many(case: Case, gradient: Gradient) -> None:
    problem, starts = case.build(5), case.starts(4, 1).requires_grad_()
    planner = ILQR(problem, gradient=gradient)
    many, one, single = planner(starts), planner(starts[2:3]), planner(starts[2])
    n, m = problem.state_size, problem.control_size
    shapes = {
        "states": (6, n),
        "controls": (5, m),
        "cost": (),
        "status": (),
        "num_iterations": (),
        "residual": (),
        "gains": (5, m, n),
    }
    for name, shape in shapes.items():
        assert getattr(single, name).shape == shape
        assert getattr(one, name).shape == (1, *shape)
        assert getattr(many, name).shape == (4, *shape)
    same(part(one, 0), single, exactly=True)
    same(part(many, 2), single, case in WITHOUT_PRODUCTS)
    weights = normal(5, m, seed=0)
    losses = [(controls * weights).sum() for controls in (many.controls[2], one.controls[0], single.controls)]
    derivatives = [torch.autograd.grad(loss, starts, retain_graph=True)[0] for loss in losses]
    torch.testing.assert_close(derivatives[0], derivatives[1], rtol=1e-9, atol=1e-9)
    assert torch.equal(derivatives[1], derivatives[2])


# One bad problem. Its second state follows a logarithm, which is NaN below zero.


class Logarithm(nn.Module):
    def __init__(self, m: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.0, m, dtype=FLOAT))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        first, second = x.unbind(-1)
        push = (self.gain * u.sin()).sum(-1)
        return torch.stack((0.9 * first + push, (second + 2.0).log() + 0.1 * (u**2).sum(-1)), dim=-1)


class LogarithmicNetwork(nn.Module):
    def __init__(self, m: int) -> None:
        super().__init__()
        self.network = seeded_network(2 + m, 16, 2, seed=6)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        moved = x + 0.1 * self.network(torch.cat((x, u), dim=-1))
        return moved + torch.stack((0.0 * moved[..., 0], 1e-3 * (x[..., 1] + 2.0).log()), dim=-1)


BAD = -5.0


def logarithmic(dynamics: type[nn.Module], m: int) -> ControlProblem:
    cost = QuadraticCost([1.0, 1.0] + [0.1] * m, [0.3, 1.2] + [0.1] * m)
    return ControlProblem(dynamics(m), cost, horizon=6, state_size=2, control_size=m, u_min=-0.5, u_max=0.6)


def total(solution: Solution, index: Tensor) -> Tensor:
    states, controls, cost = solution.states[index], solution.controls[index], solution.cost[index]
    return states.square().sum() + controls.sin().sum() + cost.sum()


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("size", [2, 5])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_one_bad_problem_leaves_the_others_bitwise_as_without_it(m: int, size: int, gradient: Gradient) -> None:
    problem = logarithmic(Logarithm, m)
    planner = ILQR(problem, ILQROptions(tolerance=1e-8), gradient=gradient)
    x0 = normal(size, 2, seed=1).abs()
    x0[1, 1] = BAD
    good = torch.arange(size) != 1
    own = (0.5 + normal(size, 1, seed=2).abs()).expand(size, m)  # a value of its own for each problem

    def run(index: Tensor, wanted: Tensor) -> tuple[Solution, list[Tensor]]:
        start, goal = (
            x0[index].requires_grad_(),
            torch.cat((own[index], own[index], own[index]), dim=-1)[:, : 2 + m].requires_grad_(),
        )
        solution = planner(start, params={"stage_cost.goal": goal})
        leaves = [start, goal, *problem.dynamics.parameters(), problem.get_parameter("stage_cost.weights")]
        return solution, list(torch.autograd.grad(total(solution, wanted), leaves))

    per_problem = (True, True, False, False)  # start, goal, gain, weights
    beside, found = run(torch.arange(size), good)
    without, expected = run(good.nonzero().squeeze(1), torch.ones(size - 1, dtype=torch.bool))
    assert without.converged.all()
    same(part(beside, good), without, exactly=True)
    for one, other, own_row in zip(found, expected, per_problem, strict=True):
        if own_row:
            assert not one[1].any()
            one = one[good]
        assert torch.equal(one, other)
        assert one.any()
    assert beside.status[1] == Status.NONFINITE
    assert torch.isnan(beside.cost[1])
    everything = torch.autograd.grad(planner(x0).controls.sum(), [*problem.dynamics.parameters()])
    assert all(torch.isfinite(part).all() for part in everything)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_beside_a_network_the_others_stay_to_rounding(gradient: Gradient) -> None:
    problem = logarithmic(LogarithmicNetwork, 2)
    planner = ILQR(problem, ILQROptions(tolerance=1e-8), gradient=gradient)
    x0 = normal(6, 2, seed=1).abs()
    x0[1, 1] = BAD
    good = torch.arange(6) != 1
    leaves = list(problem.parameters())
    beside, without = planner(x0), planner(x0[good])
    assert beside.status.tolist() == [Status.CONVERGED, Status.NONFINITE] + [Status.CONVERGED] * 4
    same(part(beside, good), without, exactly=False)
    found = torch.autograd.grad(total(beside, good), leaves)
    expected = torch.autograd.grad(total(without, torch.arange(5)), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("field", ["states", "controls", "cost"])
def test_only_bad_problems_give_zero_gradients(m: int, gradient: Gradient, field: str) -> None:
    problem = logarithmic(Logarithm, m)
    x0 = torch.full((2, 2), BAD, dtype=FLOAT, requires_grad=True)
    goal = torch.zeros(2, 2 + m, dtype=FLOAT, requires_grad=True)
    solution = ILQR(problem, gradient=gradient)(x0, params={"stage_cost.goal": goal})
    assert (solution.status == Status.NONFINITE).all()
    leaves = [x0, goal, *problem.dynamics.parameters(), problem.get_parameter("stage_cost.weights")]
    for derivative in torch.autograd.grad(getattr(solution, field).sum(), leaves):
        assert not derivative.any()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_value_that_is_bad_for_one_problem_only_stays_there(gradient: Gradient) -> None:
    """Dynamics that explode for one value of a parameter per problem."""
    rate = torch.tensor([0.9, 1e200, 0.8], dtype=FLOAT, requires_grad=True)

    class Growth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rate = nn.Parameter(torch.tensor(1.0, dtype=FLOAT))

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return self.rate * x + u

    problem = ControlProblem(Growth(), QuadraticCost([1.0, 1.0], [0.5, 0.0]), horizon=4, state_size=1, control_size=1)
    solution = ILQR(problem, gradient=gradient)(torch.ones(3, 1, dtype=FLOAT), params={"dynamics.rate": rate})
    assert solution.status.tolist() == [Status.CONVERGED, Status.NONFINITE, Status.CONVERGED]
    (derivative,) = torch.autograd.grad(solution.controls.sum(), rate)
    assert derivative.tolist() == [pytest.approx(value) for value in (derivative[0].item(), 0.0, derivative[2].item())]
    assert derivative[0].abs() > 1e-3
    assert derivative[2].abs() > 1e-3


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("gradient", ["implicit", "diffmpc"])
def test_a_solution_without_a_second_derivative_passes_zero_and_spoils_no_other(m: int, gradient: Gradient) -> None:
    """At x = 0, where the second problem starts and stays, |x|^1.5 has an infinite one."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor(0.7, dtype=FLOAT))

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return self.weight * x.abs().pow(1.5).sum(-1) + 0.5 * u.square().sum(-1)

    problem = ControlProblem(lambda x, u: x + 0.1 * u.sum(-1, keepdim=True), Root(), horizon=3, state_size=1, control_size=m)
    planner = ILQR(problem, gradient=gradient)
    x0 = torch.tensor([[1.0], [0.0], [2.0]], dtype=FLOAT, requires_grad=True)
    solution = planner(x0)
    assert solution.converged.all()
    weight = problem.get_parameter("stage_cost.weight")
    beside = torch.autograd.grad(solution.controls.sum(), (x0, weight))
    without = torch.autograd.grad(planner(x0[::2]).controls.sum(), (x0, weight))
    for one, other in zip(beside, without, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=0.0)
        assert one.any()


@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_doubling_every_cost_changes_no_plan(seed: int) -> None:
    x0, single = published_pendulum_starts(3, seed), pendulum(5).requires_grad_(False)
    weights = 2.0 * value_of(single, "stage_cost.weights")
    options = ILQROptions(tolerance=1e-10)
    one, other = ILQR(single, options)(x0), ILQR(single, options)(x0, params={"stage_cost.weights": weights})
    assert one.converged.all()
    assert other.converged.all()
    torch.testing.assert_close(
        other.controls, one.controls, rtol=1e-6, atol=1e-6
    )  # the tolerance over the control's weight, 1e-3
    torch.testing.assert_close(other.cost, 2.0 * one.cost, rtol=1e-12, atol=1e-12)


@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_a_change_of_units_of_the_state_changes_no_control(seed: int) -> None:
    A, B, x0 = 0.6 * normal(3, 3, seed=seed), normal(3, 2, seed=seed + 1), normal(4, 3, seed=seed + 2)
    scale = torch.tensor([1.0, 1000.0, 0.01], dtype=FLOAT)
    plain = QuadraticCost([1.0] * 5, [0.1] * 5)
    scaled = QuadraticCost(
        torch.cat((scale**-2, plain.weights[3:].detach())), torch.cat((0.1 * scale, plain.goal[3:].detach()))
    )
    sizes: dict[str, Any] = {"horizon": 5, "state_size": 3, "control_size": 2, "u_min": -0.3, "u_max": 0.3}
    one = ILQR(ControlProblem(LinearDynamics(A, B), plain, **sizes))(x0)
    change = scale[:, None] * A / scale, scale[:, None] * B
    other = ILQR(ControlProblem(LinearDynamics(*change), scaled, **sizes))(x0 * scale)
    assert one.converged.all()
    assert other.converged.all()
    torch.testing.assert_close(one.controls, other.controls, rtol=1e-5, atol=1e-5)  # tolerance 1e-6 on curvatures above 1
