"""The gradients: against central differences, against each other, and against the conditions that a solution meets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from problems import (
    CARTPOLE,
    CASES,
    CLOSED_ANSWERS,
    FLOAT,
    GRADIENTS,
    LINEAR,
    NETWORK_COST,
    NETWORK_DYNAMICS,
    PENDULUM,
    QUADROTOR,
    Case,
    Gradient,
    cartpole,
    closed_example,
    gradient_of,
    linear,
    linear_starts,
    normal,
    pendulum,
    published_cartpole_starts,
    published_pendulum_starts,
    quadrotor,
    quadrotor_starts,
    value_of,
)
from stationarity import stationarity_gradients
from torch import Tensor, nn

from dilqr_rl import ILQR, ControlProblem, ILQROptions, Solution

# A difference over 2h = 2e-5 turns an error of the solution into one of the gradient 5e4 times as large.
TIGHT = ILQROptions(max_iterations=300, tolerance=1e-13)


def loss_of(solution: Solution) -> Tensor:
    """One random direction through all states and controls, for each problem."""
    _, T, m = solution.controls.shape
    states, controls = normal(T + 1, solution.states.shape[-1], seed=11), normal(T, m, seed=12)
    return (solution.states * states).sum((1, 2)) + (solution.controls * controls).sum((1, 2))


def per_problem(problem: ControlProblem, names: tuple[str, ...], size: int) -> dict[str, Tensor]:
    """Values of its own for each problem, so that one backward pass gives each problem's gradient."""
    return {name: value_of(problem, name).expand(size, *value_of(problem, name).shape).clone() for name in names}


def gradients(
    problem: ControlProblem,
    names: tuple[str, ...],
    x0: Tensor,
    gradient: Gradient = "implicit",
    loss: Callable[[Solution], Tensor] = loss_of,
    u_init: Tensor | None = None,
    options: ILQROptions = TIGHT,
) -> dict[str, Tensor]:
    """dloss/dtheta and dloss/dx0 of every problem, each as (B, size)."""
    leaves = {**per_problem(problem, names, x0.shape[0]), "x0": x0.clone()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    params = {name: leaf for name, leaf in leaves.items() if name != "x0"}
    solution = ILQR(problem, options, gradient=gradient)(leaves["x0"], params=params, u_init=u_init)
    assert solution.converged.all(), solution.describe()
    found = torch.autograd.grad(loss(solution).sum(), list(leaves.values()))
    return {name: part.reshape(x0.shape[0], -1) for name, part in zip(leaves, found, strict=True)}


def differences(
    problem: ControlProblem,
    names: tuple[str, ...],
    x0: Tensor,
    u: Tensor,
    loss: Callable[[Solution], Tensor] = loss_of,
) -> dict[str, Tensor]:
    """The same by central differences, re-solved from the solution's controls u; all of them are one batch."""
    B = x0.shape[0]
    leaves = {**per_problem(problem, names, B), "x0": x0}
    rows: dict[str, list[Tensor]] = {name: [] for name in leaves}
    steps: list[Tensor] = []
    for moved, value in leaves.items():
        for place in range(value[0].numel()):
            size = value.reshape(B, -1)[:, place].abs()
            steps.append(1e-5 * torch.where((size == 0) | (moved == "x0"), 1.0, size))
            for sign in (1.0, -1.0):
                for name, leaf in leaves.items():
                    row = leaf.clone()
                    if name == moved:
                        row.view(B, -1)[:, place] += sign * steps[-1]
                    rows[name].append(row)
    stacked = {name: torch.cat(parts) for name, parts in rows.items()}
    with torch.no_grad():
        solution = ILQR(problem, TIGHT)(stacked.pop("x0"), params=stacked, u_init=u.repeat(2 * len(steps), 1, 1))
    assert solution.converged.all(), solution.describe()
    values = loss(solution).view(len(steps), 2, B)
    quotients = ((values[:, 0] - values[:, 1]) / (2 * torch.stack(steps))).T
    sizes = [leaf[0].numel() for leaf in leaves.values()]
    return dict(zip(leaves, quotients.split(sizes, dim=1), strict=True))


def relative_errors(case: Case, found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """By group, (B,). Where a derivative is zero or nearly (a bound that holds nothing), the error is that over 1e-3."""
    errors = {}
    for group, names in {**case.groups, "x0": ("x0",)}.items():
        one, other = (torch.cat([part[name] for name in names], dim=1) for part in (found, expected))
        errors[group] = (one - other).norm(dim=1) / other.norm(dim=1).clamp(min=1e-3)
    return errors


def names_of(case: Case) -> tuple[str, ...]:
    return tuple(name for names in case.groups.values() for name in names)


def solve(problem: ControlProblem, x0: Tensor) -> Tensor:
    with torch.no_grad():
        return ILQR(problem, TIGHT)(x0).controls


def report(title: str, errors: dict[str, Tensor]) -> None:
    print(title, *(f"{group} {error.median():.1e} (most {error.max():.1e})" for group, error in errors.items()), sep="; ")


@pytest.mark.parametrize(
    ("case", "size", "horizon"),
    [
        (PENDULUM, 20, 20),
        (CARTPOLE, 20, 20),
        (QUADROTOR, 10, 20),
        (NETWORK_DYNAMICS, 5, 8),
        (NETWORK_COST, 5, 8),
        (LINEAR, 5, 8),
    ],
    ids=str,
)
def test_implicit_equals_central_differences(case: Case, size: int, horizon: int) -> None:
    problem, x0 = case.build(horizon), case.starts(size, 0)
    u = solve(problem, x0)
    expected = differences(problem, names_of(case), x0, u)
    errors = relative_errors(case, gradients(problem, names_of(case), x0, u_init=u), expected)
    report(f"{case}, implicit", errors)
    report(f"{case}, diffmpc", relative_errors(case, gradients(problem, names_of(case), x0, "diffmpc", u_init=u), expected))
    for group, error in errors.items():
        assert error.max() < 1e-6, group  # the bound; differences themselves err 1e-7 at most


@pytest.mark.parametrize("case", CASES, ids=str)
def test_implicit_equals_unroll_at_convergence(case: Case) -> None:
    problem, x0 = case.build(6), case.starts(6, 5)
    found, unrolled = (gradients(problem, names_of(case), x0, gradient) for gradient in ("implicit", "unroll"))
    for group, error in relative_errors(case, found, unrolled).items():
        assert error.max() < 1e-8, group  # of the tolerance 1e-13, and of the unrolled gradient's lag behind the solution


@pytest.mark.parametrize(("theta", "_", "expected"), CLOSED_ANSWERS)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_the_closed_example(theta: float, _: float, expected: float, gradient: Gradient) -> None:
    problem = closed_example(theta)
    solution = ILQR(problem, TIGHT, gradient=gradient)(torch.ones(2, dtype=FLOAT))
    solution.controls.sum().backward()
    assert gradient_of(problem, "terminal_cost.theta").item() == pytest.approx(expected, abs=1e-6)  # six digits are published


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_the_conditions_of_stationarity_have_the_same_derivative(case: Case, backend: Literal["native", "torch"]) -> None:
    names, options = names_of(case), replace(TIGHT, backend=backend)
    problem, x0 = with_some_controls_at_bounds(case, case.build(4))
    solution = ILQR(problem, options)(x0)
    direction = loss_direction(solution)
    expected, residual, pressed = stationarity_gradients(problem, names, x0[0], solution, direction)
    expected["x0"] = expected["x0"] + normal(5, problem.state_size, seed=11)[0]  # x_0 stands in the loss itself
    assert residual.abs().max() < 1e-11  # tolerance 1e-13, multipliers of up to 1e2
    assert (pressed >= 0).all()
    assert len(pressed) > 0
    found = gradients(problem, names, x0, options=options)
    for name, value in expected.items():
        scale = max(1.0, value.abs().max().item())
        torch.testing.assert_close(found[name][0], value, rtol=0.0, atol=1e-9 * scale, msg=name)  # tolerance, condition 1e3


def with_some_controls_at_bounds(case: Case, problem: ControlProblem) -> tuple[ControlProblem, Tensor]:
    """The problem, with narrower bounds if its own hold nothing, and of 30 starts that at which they hold nearest to a quarter."""
    x0 = case.starts(30, 2)
    u = solve(problem, x0)
    held = (u <= problem.u_min) | (u >= problem.u_max)
    if not held.any():
        limit = 0.5 * u.abs().max().item()
        parts, sizes = (problem.dynamics, problem.stage_cost, problem.terminal_cost), vars(problem)
        sizes = {name: sizes[name] for name in ("horizon", "state_size", "control_size")}
        return with_some_controls_at_bounds(case, ControlProblem(*parts, **sizes, u_min=-limit, u_max=limit))
    return problem, x0[(held.double().mean((1, 2)) - 0.25).abs().argmin()].unsqueeze(0)


def loss_direction(solution: Solution) -> Tensor:
    """dloss/d(x_1..T, u), flat."""
    states, controls = solution.states.detach().requires_grad_(), solution.controls.detach().requires_grad_()
    loss = loss_of(Solution(**{**vars(solution), "states": states, "controls": controls})).sum()
    dx, du = torch.autograd.grad(loss, (states, controls))
    return torch.cat((dx[:, 1:].flatten(), du.flatten()))


def test_diffmpc_is_exact_for_linear_dynamics_and_wrong_for_others() -> None:
    def error(case: Case) -> Tensor:
        problem, x0 = case.build(10), case.starts(10, 0)
        exact, approximate = (gradients(problem, names_of(case), x0, gradient) for gradient in ("implicit", "diffmpc"))
        return torch.stack(list(relative_errors(case, approximate, exact).values()))

    assert error(LINEAR).max() < 1e-10
    assert error(CARTPOLE).max() > 0.01  # EXPERIMENTS.md: 2.5 to 19 %


@pytest.mark.parametrize("gradient", ["implicit", "unroll"])
def test_gradcheck(gradient: Gradient) -> None:
    problem = quadrotor(2)
    planner = ILQR(problem, TIGHT, gradient=gradient)
    names = ("dynamics.mass", "terminal_cost.goal", "u_max")

    def solution(x0: Tensor, *values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        result = planner(x0, params=dict(zip(names, values, strict=True)))
        return result.states, result.controls, result.cost

    leaves = (quadrotor_starts(1, 1), *(value_of(problem, name).clone() for name in names))
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)
    assert torch.autograd.gradcheck(solution, leaves, atol=1e-5, rtol=1e-4, fast_mode=gradient == "unroll")


@pytest.mark.parametrize("case", [PENDULUM, QUADROTOR], ids=str)
def test_a_control_at_its_bound_passes_its_gradient_to_the_bound_alone(case: Case) -> None:
    problem, x0 = case.build(8), case.starts(6, 0)
    bounds = per_problem(problem, ("u_min", "u_max"), 6)
    for bound in bounds.values():
        bound.requires_grad_()
    solution = ILQR(problem, TIGHT)(x0, params=bounds)
    at_lower, at_upper = solution.controls <= problem.u_min, solution.controls >= problem.u_max
    assert (at_lower | at_upper).any()
    held = solution.controls * (at_lower | at_upper)
    physics = [parameter for name, parameter in problem.named_parameters() if "goal" not in name]
    du_dbounds = torch.autograd.grad(held.sum(), list(bounds.values()), retain_graph=True)
    torch.testing.assert_close(du_dbounds[0], at_lower.sum(1).double(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(du_dbounds[1], at_upper.sum(1).double(), rtol=1e-12, atol=1e-12)
    for derivative in torch.autograd.grad(held.sum(), physics, allow_unused=True):
        assert derivative is None or derivative.abs().max() < 1e-12


@pytest.mark.parametrize("gradient", ["implicit", "unroll"])
def test_the_cost_has_the_gradient_of_the_envelope_theorem(gradient: Gradient) -> None:
    """At a solution the cost's derivative is the partial one, at fixed controls."""
    case, size = QUADROTOR, 5
    problem, x0 = case.build(8), case.starts(size, 0)
    u = solve(problem, x0)
    found = gradients(problem, names_of(case), x0, gradient, loss=lambda solution: solution.cost)
    expected = differences(problem, names_of(case), x0, u, loss=lambda solution: solution.cost)
    for group, error in relative_errors(case, found, expected).items():
        assert error.max() < 1e-6, group  # of the differences


@pytest.mark.parametrize("gradient", ["implicit", "diffmpc"])
def test_second_derivatives_are_refused(gradient: Gradient) -> None:
    problem = pendulum(5)
    solution = ILQR(problem, gradient=gradient)(published_pendulum_starts(2))
    with pytest.raises(
        NotImplementedError, match=r'^second derivatives \(create_graph=True\) are not available .* use gradient="unroll"'
    ):
        torch.autograd.grad(solution.controls.sum(), problem.get_parameter("dynamics.mass"), create_graph=True)


def test_unroll_has_second_derivatives() -> None:
    mass = torch.tensor([1.0, 1.1], dtype=FLOAT, requires_grad=True)
    x0 = 0.1 * published_pendulum_starts(2) + torch.tensor([0.9, 0.0, 0.0], dtype=FLOAT)  # near upright: no bound is reached

    def first(mass: Tensor) -> Tensor:
        solution = ILQR(pendulum(5), TIGHT, gradient="unroll")(x0, params={"dynamics.mass": mass})
        (derivative,) = torch.autograd.grad(solution.controls.square().sum(), mass, create_graph=True)
        return derivative

    (second,) = torch.autograd.grad(first(mass).sum(), mass)
    h = 1e-5
    expected = (first(mass.detach().requires_grad_().add(h)) - first(mass.detach().requires_grad_().add(-h))) / (2 * h)
    torch.testing.assert_close(second, expected.detach(), rtol=1e-6, atol=1e-6)


def graph_of(tensor: Tensor) -> tuple[int, int]:
    """How many nodes autograd keeps behind a tensor, and how many numbers those of ours have saved."""
    pending, seen = [tensor.grad_fn], set()
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            pending += [parent for parent, _ in node.next_functions]
    saved = [tensor for node in seen for tensor in getattr(node, "saved_tensors", ())]
    return len(seen), sum(tensor.numel() for tensor in saved)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_memory_grows_with_the_iterations_only_when_unrolled(gradient: Gradient) -> None:
    x0, graphs = published_cartpole_starts(8), []
    for most in (2, 4, 8, 16):
        options = ILQROptions(max_iterations=most, tolerance=1e-12)
        graphs.append(graph_of(ILQR(cartpole(10), options, gradient=gradient)(x0).controls))
    if gradient == "unroll":
        assert graphs[3][0] > 2 * graphs[0][0]
    else:
        assert graphs == graphs[:1] * 4
        assert graphs[0][1] > 0


@pytest.mark.parametrize("gradient", ["implicit", "diffmpc"])
def test_a_problem_that_has_not_converged_passes_zero(gradient: Gradient) -> None:
    x0 = published_cartpole_starts(8).requires_grad_()
    problem = cartpole(20)
    solution = ILQR(problem, ILQROptions(max_iterations=5), gradient=gradient)(x0)
    assert solution.converged.any()
    assert not solution.converged.all()
    (derivative,) = torch.autograd.grad(solution.states.sum() + solution.cost.sum(), x0)
    assert torch.equal(derivative.any(-1), solution.converged)


def test_a_loss_that_uses_no_problem_that_converged_has_a_zero_gradient_not_none() -> None:
    problem = cartpole(20)
    for gradient in GRADIENTS[:2]:
        solution = ILQR(problem, ILQROptions(max_iterations=1), gradient=gradient)(published_cartpole_starts(3))
        for part in (solution.states, solution.controls, solution.cost):
            problem.zero_grad()
            part.sum().backward(retain_graph=True)
            for parameter in problem.parameters():
                assert parameter.grad is not None
                assert not parameter.grad.any()


def test_singular_but_harmless_controls_leave_the_gradient_of_the_others() -> None:
    """The last control moves only an uncosted state, and has no cost: it stays, and the others' gradient is exact."""
    problem = linear(6).requires_grad_(False)
    without = ControlProblem(
        problem.dynamics, lambda x, u: (x - 0.3).square().sum(-1), horizon=6, state_size=4, control_size=2, u_min=-0.5
    )
    x0 = linear_starts(3)
    found = gradients(without, ("dynamics.B",), x0)
    expected = differences(without, ("dynamics.B",), x0, solve(without, x0))
    case = Case("", linear, linear_starts, {"B": ("dynamics.B",)})
    for group, error in relative_errors(case, found, expected).items():
        assert error.max() < 1e-6, group


class Shares(nn.Module):
    """Several controls that do the same, of several strengths; one parameter isn't used."""

    def __init__(self, strengths: list[float]) -> None:
        super().__init__()
        self.strengths = nn.Parameter(torch.tensor(strengths, dtype=FLOAT))
        self.unused = nn.Parameter(torch.ones(2, dtype=FLOAT))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return 0.9 * x + 0.3 * torch.sin(x) + (self.strengths * u).sum(-1, keepdim=True)


class Goal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.goal = nn.Parameter(torch.tensor(0.3, dtype=FLOAT))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return (x[..., 0] - self.goal) ** 2


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("strengths", [[1.0, 1.0], [1.0, -0.5, 2.0]])
def test_where_controls_share_their_work_at_will_the_states_derivative_is_right(
    strengths: list[float], backend: Literal["native", "torch"], caplog: pytest.LogCaptureFixture
) -> None:
    """The states are the goal's, however the controls do it: d x_t / d goal = 1. Least norm: d u = strengths / |strengths|^2 d v."""
    cost = Goal()
    problem = ControlProblem(Shares(strengths), cost, horizon=4, state_size=1, control_size=len(strengths))
    x0 = torch.tensor([[0.7]], dtype=FLOAT)
    solution = ILQR(problem, ILQROptions(backend=backend, tolerance=1e-10))(x0)
    assert solution.singular.all()
    assert "1 of 1 solutions are singular" in caplog.text
    for t in range(1, 4):
        (slope,) = torch.autograd.grad(solution.states[0, t, 0], cost.goal, retain_graph=True)
        torch.testing.assert_close(slope, torch.ones((), dtype=FLOAT), rtol=0, atol=1e-9)
    a = torch.tensor(strengths, dtype=FLOAT)
    slopes = [torch.autograd.grad(solution.controls[0, 0, i], cost.goal, retain_graph=True)[0] for i in range(len(a))]
    torch.testing.assert_close(torch.stack(slopes), a / a.square().sum(), rtol=0, atol=1e-9)  # x_1 = f(x_0) + a u_0 = goal
    solution.states.sum().backward()
    assert problem.dynamics.unused.grad is not None
    assert not problem.dynamics.unused.grad.any()  # type: ignore[union-attr]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_parameter_that_nothing_uses_has_a_zero_gradient(backend: Literal["native", "torch"]) -> None:
    problem = ControlProblem(Shares([1.0]), Goal(), horizon=4, state_size=1, control_size=1, u_min=-0.1, u_max=0.1)
    ILQR(problem, ILQROptions(backend=backend))(torch.tensor([[0.7]], dtype=FLOAT)).cost.sum().backward()
    assert torch.equal(problem.dynamics.unused.grad, torch.zeros(2, dtype=FLOAT))  # type: ignore[arg-type]


def test_a_change_between_solve_and_gradient_is_told() -> None:
    """PyTorch calls the functions again for the gradient, so they must still be those that were solved."""
    closed = torch.tensor(0.9, dtype=FLOAT)
    problem = ControlProblem(
        lambda x, u: closed * x + u, Goal(), horizon=4, state_size=1, control_size=1, u_min=-0.1, u_max=0.1
    )
    x0 = torch.tensor([[0.7]], dtype=FLOAT, requires_grad=True)
    solution = ILQR(problem, ILQROptions(backend="torch"))(x0)
    closed.fill_(0.5)
    with pytest.raises(RuntimeError, match=r"the problem's dynamics changed between the solve and its gradient"):
        solution.cost.sum().backward()


def test_single_precision_is_no_change() -> None:
    """A solution in float32, and functions that compute in it, whose sums depend on the size of a batch."""
    weights, last = (0.2 * torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in ((2, 256), (256, 1)))

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        return 0.9 * x + u + 0.1 * (torch.tanh(torch.cat((x, u), -1).float() @ weights) @ last).double()

    problem = ControlProblem(dynamics, Goal(), horizon=4, state_size=1, control_size=1, u_min=-0.1, u_max=0.1)
    planner = ILQR(problem, ILQROptions(backend="torch", tolerance=1e-4, step_tolerance=1e-4))
    x0 = torch.linspace(-1.0, 1.0, 7).unsqueeze(1).requires_grad_()
    with torch.no_grad():
        solution = planner(x0)
    for found in (planner.attached(x0, None, solution), planner(x0)):
        (gradient,) = torch.autograd.grad(found.cost.sum(), x0)
        assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_singular_problem_without_second_derivatives_passes_zeros(backend: Literal["native", "torch"]) -> None:
    """The curvature of a norm at zero is NaN: the other problem's gradient is its own."""
    problem = ControlProblem(
        lambda x, u: 0.9 * x + u + 0.1 * u.norm(dim=-1, keepdim=True),
        lambda x, u: x.square().sum(-1) + u.square().sum(-1),
        horizon=3,
        state_size=2,
        control_size=2,
    )
    x0 = torch.tensor([[0.0, 0.0], [0.5, -0.3]], dtype=FLOAT, requires_grad=True)
    solution = ILQR(problem, ILQROptions(backend=backend))(x0)
    (gradient,) = torch.autograd.grad(solution.states.sum(), x0)
    assert gradient.isfinite().all()
