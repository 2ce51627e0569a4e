"""The layer's contract: types, bounds, warm starts, contexts, copies; and what each option does."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

import pytest
import torch
from problems import (
    CASES,
    CASES_AND_GRADIENTS,
    FLOAT,
    GRADIENTS,
    QUADROTOR,
    Case,
    Gradient,
    NetworkCost,
    NetworkDynamics,
    cartpole,
    far_cartpole_starts,
    gradient_of,
    linear,
    network_starts,
    normal,
    pendulum,
    published_cartpole_starts,
    published_pendulum_starts,
    quadrotor,
    value_of,
)
from torch import Tensor, nn

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Solution, Status

REAL = ("states", "controls", "cost", "residual", "gains")


@pytest.mark.parametrize(("case", "gradient"), CASES_AND_GRADIENTS, ids=str)
def test_float32_comes_back_as_float32_and_converges_as_float64_does(case: Case, gradient: Gradient) -> None:
    planner = ILQR(case.build(4), ILQROptions(tolerance=1e-9), gradient=gradient)
    x0 = case.starts(3, 0).float()
    single, double = planner(x0), planner(x0.double())
    for name in REAL:
        assert getattr(single, name).dtype == torch.float32
        assert getattr(double, name).dtype == torch.float64
        torch.testing.assert_close(getattr(single, name), getattr(double, name).float(), rtol=0.0, atol=0.0)
    assert single.status.dtype == single.num_iterations.dtype == torch.int64
    assert single.converged.dtype == torch.bool
    assert single.converged.all()
    start = x0.requires_grad_()
    (derivative,) = torch.autograd.grad(planner(start).controls.sum(), start)
    assert derivative.dtype == torch.float32


def test_float32_modules_and_values_are_computed_with_in_float64() -> None:
    sizes: dict[str, Any] = {"horizon": 6, "state_size": 3, "control_size": 2, "u_min": -1.0, "u_max": 1.0}
    modules = NetworkDynamics().float(), NetworkCost().float()
    problem = ControlProblem(*modules, **sizes)
    x0 = network_starts(5).float()
    solution = ILQR(problem, ILQROptions(tolerance=1e-10))(x0)
    assert solution.converged.all()
    solution.controls.sum().backward()
    assert all(parameter.dtype == torch.float32 for parameter in problem.parameters())  # as they were
    double = ControlProblem(copy.deepcopy(modules[0]).double(), copy.deepcopy(modules[1]).double(), **sizes)
    expected = ILQR(double, ILQROptions(tolerance=1e-10))(x0.double())
    expected.controls.sum().backward()
    torch.testing.assert_close(solution.controls, expected.controls.float(), rtol=1e-6, atol=1e-6)
    for one, other in zip(problem.parameters(), double.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert one.grad.dtype == torch.float32
        torch.testing.assert_close(one.grad, other.grad.float(), rtol=1e-5, atol=1e-6)


def test_a_plain_torch_network_in_its_default_type_works() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
    problem = ControlProblem(
        lambda x, u: x + 0.1 * u,
        NetworkGoal(network),
        horizon=4,
        state_size=2,
        control_size=1,
    )
    solution = ILQR(problem)(torch.ones(2, 2))
    assert solution.converged.all()
    solution.states.sum().backward()
    assert gradient_of(problem, "stage_cost.network.0.weight").any()


class NetworkGoal(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.network(torch.cat((x, u), dim=-1)).square().sum(-1) + u.square().sum(-1) + x.square().sum(-1)


def test_params_of_another_type_are_converted() -> None:
    x0 = published_pendulum_starts(2)
    masses: list[Any] = [torch.tensor(2), torch.tensor(2.0), torch.tensor(2.0, dtype=FLOAT), 2.0, 2]
    for mass in masses:
        solution = ILQR(pendulum(4))(x0, params={"dynamics.mass": mass})
        expected = ILQR(pendulum(4))(x0, params={"dynamics.mass": torch.tensor([2.0, 2.0], dtype=FLOAT)})
        torch.testing.assert_close(solution.controls, expected.controls, rtol=1e-14, atol=1e-14)


def test_python_numbers_mean_themselves_whatever_torchs_default_type() -> None:
    problem = ControlProblem(
        lambda x, u: x, QuadraticCost([0.1, 0.1], [0.1, 0.7]), horizon=1, state_size=1, control_size=1, u_min=-0.1, u_max=0.1
    )
    assert problem.u_min.tolist() == [-0.1]
    assert problem.u_max.tolist() == [0.1]
    assert value_of(problem, "stage_cost.weights").tolist() == [0.1, 0.1]
    assert ILQR(problem)(torch.zeros(1, dtype=FLOAT)).controls.item() == 0.1
    assert ILQR(problem.double())(torch.zeros(1)).controls.item() == pytest.approx(0.1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_controls_keep_their_bounds_in_the_type_of_x0(case: Case) -> None:
    problem = case.build(6)
    solution = ILQR(problem)(case.starts(6, 0).float())
    assert (solution.controls >= problem.u_min.float()).all()
    assert (solution.controls <= problem.u_max.float()).all()


# Starting controls.


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_warm_start_from_the_solution_takes_no_iteration(case: Case) -> None:
    planner, x0 = ILQR(case.build(6)), case.starts(4, 0)
    solution = planner(x0)
    again = planner(x0, u_init=solution.controls)
    assert again.num_iterations.tolist() == [0] * 4
    assert again.converged.all()
    assert torch.equal(again.controls, solution.controls)


def test_starting_controls_beyond_the_bounds_are_clipped() -> None:
    x0 = published_pendulum_starts(4)
    planner = ILQR(pendulum(5), ILQROptions(max_iterations=1))
    inside, outside = (planner(x0, u_init=torch.full((4, 5, 1), value, dtype=FLOAT)) for value in (2.0, 50.0))
    assert torch.equal(inside.controls, outside.controls)
    assert torch.equal(inside.cost, outside.cost)


def test_one_start_for_all_equals_the_same_start_for_each() -> None:
    x0, u_init = published_pendulum_starts(4), normal(5, 1, seed=0)
    planner = ILQR(pendulum(5))
    assert torch.equal(planner(x0, u_init=u_init).states, planner(x0, u_init=u_init.expand(4, 5, 1)).states)
    assert torch.equal(planner(x0[0], u_init=u_init).states, planner(x0, u_init=u_init).states[0])


# Sizes and bounds at their edges.


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("m", [1, 2])
def test_bounds_that_meet_leave_one_plan(gradient: Gradient, m: int) -> None:
    problem = linear(4, 3, m, u_min=0.3, u_max=0.3)
    solution = ILQR(problem, gradient=gradient)(normal(2, 3, seed=0).requires_grad_())
    assert solution.converged.all()
    assert solution.num_iterations.tolist() == [0, 0]
    assert (solution.controls == 0.3).all()
    (derivative,) = torch.autograd.grad(solution.states.sum(), problem.get_parameter("dynamics.B"))
    assert derivative.any()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_an_unbounded_problem_is_one_with_bounds_far_away(gradient: Gradient) -> None:
    x0 = normal(3, 4, seed=0).requires_grad_()
    solutions = [
        ILQR(linear(6, u_min=low, u_max=high), gradient=gradient)(x0) for low, high in ((None, None), (-1e9, 1e9), (None, 1e9))
    ]
    derivatives = [torch.autograd.grad(solution.controls.sum(), x0)[0] for solution in solutions]
    for solution, derivative in zip(solutions[1:], derivatives[1:], strict=True):
        torch.testing.assert_close(solution.controls, solutions[0].controls, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(derivative, derivatives[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize(("n", "m", "horizon"), [(1, 1, 1), (1, 1, 5), (1, 3, 2), (5, 1, 1), (2, 5, 3)])
def test_small_and_odd_sizes(gradient: Gradient, n: int, m: int, horizon: int) -> None:
    problem = linear(horizon, n, m, u_min=-0.3, u_max=0.4)
    x0 = normal(3, n, seed=0).requires_grad_()
    solution = ILQR(problem, gradient=gradient)(x0)
    assert solution.converged.all()
    assert solution.states.shape == (3, horizon + 1, n)
    assert solution.controls.shape == (3, horizon, m)
    assert solution.gains.shape == (3, horizon, m, n)
    assert torch.equal(solution.states[:, 0], x0)
    solution.cost.sum().backward()
    assert x0.grad is not None


# Contexts and copies.


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_it_plans_alike_without_gradients(context: Callable[[], AbstractContextManager[None]], gradient: Gradient) -> None:
    x0, mass = published_cartpole_starts(4), torch.tensor([0.9, 1.0, 1.1, 1.2], dtype=FLOAT)
    planner = ILQR(cartpole(8), gradient=gradient)
    expected = planner(x0, params={"dynamics.cart_mass": mass})
    with context():
        solution = planner(x0, params={"dynamics.cart_mass": mass})
        again = planner(x0.clone(), params={"dynamics.cart_mass": mass.clone()}, u_init=solution.controls)
    assert not solution.controls.requires_grad
    assert again.num_iterations.tolist() == [0] * 4
    for name in (*REAL, "status", "num_iterations"):
        assert torch.equal(getattr(solution, name), getattr(expected, name)), name


def test_rolling_out_without_gradients_then_training_with_them() -> None:
    """What Stable-Baselines3 does: collect under no_grad, then plan again from the same observations and warm starts."""
    planner, x0 = ILQR(pendulum(8)), published_pendulum_starts(4)
    with torch.no_grad():
        collected = planner(x0)
    trained = planner(x0, u_init=collected.controls)
    trained.controls.square().sum().backward()
    assert torch.equal(trained.controls, collected.controls)
    assert gradient_of(planner.problem, "stage_cost.weights").any()


def test_gradients_accumulate_and_a_graph_can_be_used_twice() -> None:
    planner, x0 = ILQR(pendulum(6)), published_pendulum_starts(3)
    solution = planner(x0)
    loss = solution.controls.square().sum()
    loss.backward(retain_graph=True)
    first = gradient_of(planner.problem, "stage_cost.weights").clone()
    loss.backward()
    torch.testing.assert_close(gradient_of(planner.problem, "stage_cost.weights"), 2.0 * first)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda planner: pickle.loads(pickle.dumps(planner))])
def test_copies_plan_alike_and_stand_alone(clone: Callable[[ILQR], ILQR]) -> None:
    planner, x0 = ILQR(quadrotor(5), ILQROptions(tolerance=1e-9), gradient="diffmpc"), QUADROTOR.starts(3, 0)
    other = clone(planner)
    assert torch.equal(other(x0).controls, planner(x0).controls)
    assert (other.options, other.gradient) == (planner.options, planner.gradient)
    with torch.no_grad():
        other.problem.get_parameter("dynamics.mass").mul_(2.0)
    assert not torch.equal(other(x0).controls, planner(x0).controls)


def test_the_state_dict_holds_physics_cost_and_bounds() -> None:
    source, target, x0 = ILQR(quadrotor(5)), ILQR(quadrotor(5)), QUADROTOR.starts(3, 0)
    with torch.no_grad():
        source.problem.get_parameter("dynamics.mass").mul_(1.3)
        source.problem.u_max.sub_(0.5)
    file = io.BytesIO()
    torch.save(source.state_dict(), file)
    file.seek(0)
    target.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(target(x0).controls, source(x0).controls)
    names = {name.removeprefix("problem.") for name in source.state_dict()}
    assert {"u_min", "u_max", "dynamics.mass", "stage_cost.goal", "terminal_cost.weights"} <= names


def test_a_solution_can_be_pickled() -> None:
    with torch.no_grad():
        solution = ILQR(pendulum(4))(published_pendulum_starts(2))
    again = pickle.loads(pickle.dumps(solution))
    assert torch.equal(again.controls, solution.controls)
    assert again.describe() == solution.describe()


def test_nothing_is_remembered_from_call_to_call() -> None:
    planner, x0 = ILQR(cartpole(8)), published_cartpole_starts(4)
    first = planner(x0)
    planner(far_cartpole_starts(3), params={"dynamics.gravity": torch.tensor(3.0)})
    second = planner(x0)
    assert torch.equal(first.controls, second.controls)
    assert not list(planner.problem.dynamics.buffers())


def test_printing_shows_the_settings() -> None:
    shown = repr(ILQR(linear(7, 4, 2), gradient="diffmpc"))
    for piece in ("gradient='diffmpc'", "tolerance=1e-06", "horizon=7, state_size=4, control_size=2", "LinearDynamics"):
        assert piece in shown
    shown = repr(ControlProblem(torch.add, lambda x, u: x.sum(-1), horizon=1, state_size=1, control_size=1))
    assert "add" in shown
    assert "<lambda>" in shown


# Options.


def test_options_have_the_documented_defaults_and_are_frozen() -> None:
    options = ILQROptions()
    assert (options.max_iterations, options.tolerance, options.step_tolerance, options.backend) == (500, 1e-6, 1e-4, "auto")
    assert (options.max_seconds, options.record) == (None, False)
    with pytest.raises(AttributeError, match="cannot assign"):
        options.tolerance = 1.0  # type: ignore[misc]


def solved(**options: Any) -> Solution:
    with torch.no_grad():
        return ILQR(cartpole(20), ILQROptions(**options))(far_cartpole_starts(64))


def test_max_iterations_stops_a_solve() -> None:
    solution = solved(max_iterations=3)
    assert solution.num_iterations.max() == 3
    late = solution.status == Status.MAX_ITERATIONS
    assert late.any()
    assert (solution.num_iterations[late] == 3).all()
    assert (solution.residual[late] > 1e-6).all()


def test_tolerance_decides_what_has_converged() -> None:
    rough, fine = solved(tolerance=1e-1), solved(tolerance=1e-10)
    assert rough.residual.max() <= 1e-1
    assert fine.residual.max() <= 1e-10
    assert (rough.num_iterations <= fine.num_iterations).all()
    assert rough.num_iterations.sum() < fine.num_iterations.sum()


@pytest.mark.parametrize(
    "options", [{"sufficient_decrease": 0.4}, {"line_search_steps": 1}], ids=lambda options: next(iter(options))
)
def test_the_line_searchs_options_change_the_path_and_not_the_end(options: dict[str, float]) -> None:
    usual, other = solved(tolerance=1e-8), solved(tolerance=1e-8, **options)
    assert other.converged.all()
    assert not torch.equal(usual.num_iterations, other.num_iterations)
    assert ((usual.cost - other.cost).abs() < 1e-6).double().mean() > 0.9  # some find another local minimum


def at_a_kink(backend: Literal["native", "torch"], **options: Any) -> Solution:
    """|x|^1.5 has an infinite second derivative at zero controls: no step lowers the cost, however strong the damping."""
    problem = ControlProblem(
        lambda x, u: x + 0.1 * u,
        lambda x, u: (x.abs().pow(1.5) + u.abs().pow(1.5)).sum(-1),
        horizon=3,
        state_size=1,
        control_size=1,
    )
    return ILQR(problem, ILQROptions(record=True, backend=backend, **options))(torch.ones(1, dtype=FLOAT))


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_damping_rises_from_its_least_value_by_its_factor_to_its_largest(backend: Literal["native", "torch"]) -> None:
    solution = at_a_kink(backend, regularisation_min=0.5, regularisation_factor=4.0, regularisation_max=20.0)
    assert Status(int(solution.status)) is Status.LINE_SEARCH_FAILED
    assert solution.history is not None
    assert solution.history.damping[1:].tolist() == [0.0, 0.5, 2.0, 8.0]  # 32 would be too much
    assert not solution.history.step_size[1:].any()
    assert not solution.controls.any()
    assert not solution.gains.any()


def test_from_a_maximum_it_goes_down_and_not_far() -> None:
    problem = ControlProblem(
        lambda x, u: x + 0.1 * u, lambda x, u: (3 * u).cos().sum(-1), horizon=3, state_size=1, control_size=1
    )
    start, u_init = torch.zeros(1, dtype=FLOAT), torch.full((3, 1), 0.1, dtype=FLOAT)
    solution = ILQR(problem)(start, u_init=u_init)
    assert solution.converged
    torch.testing.assert_close(solution.controls, torch.full((3, 1), torch.pi / 3, dtype=FLOAT), rtol=0.0, atol=1e-6)


def test_auto_is_native_where_it_can_be() -> None:
    x0, auto, native = published_pendulum_starts(2), ILQR(pendulum(4)), ILQR(pendulum(4), ILQROptions(backend="native"))
    assert torch.equal(auto(x0).controls, native(x0).controls)


# Solutions.


def test_each_status_has_its_sentence() -> None:
    assert [(status.name, int(status)) for status in Status] == [
        ("CONVERGED", 0),
        ("MAX_ITERATIONS", 1),
        ("LINE_SEARCH_FAILED", 2),
        ("NONFINITE", 3),
        ("TIME_LIMIT", 4),
        ("NO_DERIVATIVE", 5),
    ]
    starts = {
        Status.CONVERGED: "The projected gradient is below the tolerance, and Newton's step would hardly move",
        Status.MAX_ITERATIONS: "The projected gradient is still above the tolerance after max_iterations, or",
        Status.LINE_SEARCH_FAILED: "No step lowers the cost, however strong the regularisation; is the problem smooth",
        Status.NONFINITE: "The dynamics or a cost gave NaN or infinity along the trajectory; look at x0",
        Status.TIME_LIMIT: "max_seconds were over; the plan is the best so far",
        Status.NO_DERIVATIVE: "There are cheaper controls, but here no derivative leads to them",
    }
    for status in Status:
        assert status.sentence.startswith(starts[status])
        assert status.sentence[-1] in ".?"


def test_a_solution_describes_itself_in_one_line() -> None:
    counts = torch.tensor([0, 3, 1, 0]), torch.tensor([4, 0, 100, 6])
    empty = torch.zeros(4)
    solution = Solution(empty, empty, empty, counts[0], counts[1], empty, empty, empty != 0)
    assert solution.describe() == "2 CONVERGED, 1 MAX_ITERATIONS, 1 NONFINITE; iterations: median 4, most 100"
    assert solution.converged.tolist() == [True, False, False, True]
    single = ILQR(pendulum(4))(published_pendulum_starts(1)[0])
    assert single.describe().startswith("1 CONVERGED; iterations: median ")
