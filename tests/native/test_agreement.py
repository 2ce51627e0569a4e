"""The native path against the PyTorch path, on every problem of both tables: solutions, gradients, and all that may vary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from models import BICYCLE, CORRECTED_TANH, DOUBLE_PENDULUM, MODELS, OBSTACLES, QUADROTOR_3D, ROCKET
from problems import (
    CARTPOLE,
    CASES,
    FLOAT,
    LINEAR,
    NETWORK_COST,
    NETWORK_DYNAMICS,
    PENDULUM,
    QUADROTOR,
    Case,
    gradient_of,
    normal,
    pendulum,
    published_pendulum_starts,
    value_of,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Solution, Status

Backend = Literal["native", "torch"]
ALL = (*CASES, *MODELS)
REFERENCE = Path(__file__).parents[1] / "core" / "reference_pendulum.npz"
TOLERANCE = 1e-10  # both paths end in Newton's method, so that what is left is far below what is asserted
TIGHT = 1e-12  # of a solution whose gradient is asserted to 1e-8: the gradient's condition is up to 1e3
DIFFERENCES = 1e-13  # for central differences: they divide by 2e-5


def solve(
    problem: ControlProblem,
    x0: Tensor,
    backend: Backend,
    gradient: Literal["implicit", "diffmpc"] = "implicit",
    tolerance: float = TOLERANCE,
    max_iterations: int = 100,
    **arguments: Any,
) -> Solution:
    options = ILQROptions(max_iterations=max_iterations, tolerance=tolerance, backend=backend)
    return ILQR(problem, options, gradient=gradient)(x0, **arguments)


def close(one: Tensor, other: Tensor, bound: float, name: str) -> None:
    """Equal to `bound`, relative to numbers above one."""
    assert one.shape == other.shape, name
    assert one.dtype == other.dtype, name
    error = ((one - other).abs() / other.abs().clamp(min=1.0)).detach()
    assert not error.isnan().any(), name
    assert error.numel() == 0 or error.max() <= bound, f"{name}: {error.max():.1e} apart"


def assert_same_solution(native: Solution, reference: Solution) -> None:
    """What the issue asks for. Problems that did not converge have no solution to compare, only a way to end."""
    assert torch.equal(native.status, reference.status), (native.describe(), reference.describe())
    assert torch.equal(native.num_iterations, reference.num_iterations), (native.num_iterations, reference.num_iterations)
    good = reference.converged
    for name, bound in (("controls", 1e-8), ("states", 1e-8), ("cost", 1e-10), ("gains", 1e-6)):
        close(getattr(native, name)[good], getattr(reference, name)[good], bound, name)


def leaves_of(problem: ControlProblem, x0: Tensor, names: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    """x0 and the problem's tensors as leaves; `names` gives each the batch dimensions in front, over which it varies by 5 %."""
    found = {"x0": x0.clone().requires_grad_()}
    for place, (name, lead) in enumerate((names or dict.fromkeys(real_names(problem), ())).items()):
        own = value_of(problem, name).to(FLOAT)
        noise = normal(*lead, *own.shape, seed=50 + place).clamp(-2.0, 2.0) if lead else torch.zeros_like(own)
        found[name] = (own.nan_to_num(0.0, 1e3, -1e3) * (1.0 + 0.05 * noise)).requires_grad_()
    return found


def real_names(problem: ControlProblem) -> list[str]:
    named = (*problem.named_parameters(), *problem.named_buffers())
    return [name for name, value in named if value.is_floating_point()]


def losses_of(solution: Solution) -> dict[str, Tensor]:
    """A random direction through the states, one through the controls, one through the costs."""
    parts = {"states": solution.states, "controls": solution.controls, "cost": solution.cost}
    return {name: (part * normal(part.numel(), seed=7).view(part.shape).to(part)).sum() for name, part in parts.items()}


def assert_same_gradients(native: Solution, ours: dict[str, Tensor], reference: Solution, theirs: dict[str, Tensor]) -> None:
    for (through, loss), other in zip(losses_of(native).items(), losses_of(reference).values(), strict=True):
        found = torch.autograd.grad(loss, list(ours.values()), retain_graph=True, allow_unused=True, materialize_grads=True)
        expected = torch.autograd.grad(
            other, list(theirs.values()), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        largest = max(part.norm().item() for part in expected)
        for name, one, two in zip(theirs, found, expected, strict=True):
            assert one.shape == two.shape == ours[name].shape, name
            error = (one - two).norm().item() / max(
                two.norm().item(), 1e-3 * largest
            )  # some derivatives are sums to nearly zero
            assert error <= 1e-8, f"d{through}/d{name}: {error:.1e} apart"


def compare(
    problem: ControlProblem,
    x0: Tensor,
    names: Mapping[str, tuple[int, ...]] | None = None,
    gradient: Literal["implicit", "diffmpc"] = "implicit",
    **arguments: Any,
) -> Solution:
    """Solutions and gradients of both paths; returns the native solution."""
    found = []
    for backend in ("native", "torch"):
        leaves = leaves_of(problem, x0, names)
        params = {name: leaf for name, leaf in leaves.items() if name != "x0"}
        settings = {"gradient": gradient, "tolerance": TIGHT, "params": params, **arguments}
        found.append((solve(problem, leaves["x0"], backend, **settings), leaves))
    (native, ours), (reference, theirs) = found
    assert_same_solution(native, reference)
    assert_same_gradients(native, ours, reference, theirs)
    return native


def bounded(case: Case) -> ControlProblem:
    """The case's problem, with bounds that some solutions reach."""
    problem = case.build(12 if case in (CARTPOLE, PENDULUM, ROCKET) else 8)
    if case is CARTPOLE:
        problem.u_min.fill_(-12.0)
        problem.u_max.fill_(15.0)
    return problem


@pytest.mark.parametrize("case", ALL, ids=str)
def test_solutions_agree(case: Case) -> None:
    problem, x0 = bounded(case).requires_grad_(False), case.starts(20, 3)
    native, reference = (solve(problem, x0, backend) for backend in ("native", "torch"))
    assert_same_solution(native, reference)
    assert reference.converged.double().mean() >= 0.75
    assert (native.residual[native.converged] <= TOLERANCE).all()
    assert (native.controls >= problem.u_min).all()
    assert (native.controls <= problem.u_max).all()
    held = (native.controls <= problem.u_min) | (native.controls >= problem.u_max)
    assert 0.01 < held.double().mean() < 0.95


CASES_AND_GRADIENTS: list[tuple[Case, Literal["implicit", "diffmpc"]]] = [
    *((case, "implicit") for case in ALL),
    *((case, "diffmpc") for case in (CARTPOLE, QUADROTOR, NETWORK_COST, QUADROTOR_3D, CORRECTED_TANH, OBSTACLES)),
]


@pytest.mark.parametrize(("case", "gradient"), CASES_AND_GRADIENTS, ids=str)
def test_gradients_agree(case: Case, gradient: Literal["implicit", "diffmpc"]) -> None:
    """Of x0 and of every parameter, buffer and bound, through states, controls and cost, with some controls at bounds."""
    problem, x0 = bounded(case), case.starts(6, 4)
    solution = compare(problem, x0, gradient=gradient)
    assert solution.converged.sum() >= 4
    held = (solution.controls <= problem.u_min) | (solution.controls >= problem.u_max)
    assert held[solution.converged].any()


@pytest.mark.parametrize("case", ALL, ids=str)
def test_native_gradients_equal_central_differences(case: Case) -> None:
    B, problem = 3, bounded(case)
    with torch.no_grad():
        plain = solve(problem, case.starts(12, 5), "native", tolerance=DIFFERENCES)
    x0, u = (part[plain.converged][:B] for part in (plain.states[:, 0], plain.controls))
    names = [name for group in case.groups.values() for name in group]
    leaves = {name: value_of(problem, name).to(FLOAT).expand(B, *value_of(problem, name).shape).clone() for name in names}
    leaves = {**leaves, "x0": x0.clone()}

    def losses(leaves: dict[str, Tensor], u: Tensor) -> Tensor:
        params = {name: leaf for name, leaf in leaves.items() if name != "x0"}
        solution = solve(problem, leaves["x0"], "native", tolerance=DIFFERENCES, params=params, u_init=u)
        assert solution.converged.all(), solution.describe()
        directions = (normal(*solution.states.shape[1:], seed=11), normal(*solution.controls.shape[1:], seed=12))
        return (solution.states * directions[0]).sum((1, 2)) + (solution.controls * directions[1]).sum((1, 2)) + solution.cost

    rows: dict[str, list[Tensor]] = {name: [] for name in leaves}
    steps: list[Tensor] = []
    for moved, value in leaves.items():
        for place in range(value[0].numel()):
            size = value.reshape(B, -1)[:, place].abs()
            steps.append(1e-5 * torch.where((size == 0) | (moved == "x0"), 1.0, size))
            for sign in (1.0, -1.0):
                for name, leaf in leaves.items():
                    rows[name].append(leaf.clone())
                    if name == moved:
                        rows[name][-1].view(B, -1)[:, place] += sign * steps[-1]
    with torch.no_grad():
        values = losses({name: torch.cat(parts) for name, parts in rows.items()}, u.repeat(2 * len(steps), 1, 1))
    pairs = values.view(len(steps), 2, B)
    quotients = iter(
        ((pairs[:, 0] - pairs[:, 1]) / (2 * torch.stack(steps))).T.split([v[0].numel() for v in leaves.values()], 1)
    )
    found = torch.autograd.grad(
        losses({name: leaf.requires_grad_() for name, leaf in leaves.items()}, u).sum(), list(leaves.values())
    )
    for name, derivative, quotient in zip(leaves, found, quotients, strict=True):
        error = (derivative.reshape(B, -1) - quotient).norm(dim=1) / quotient.norm(dim=1).clamp(min=1e-2)
        assert error.max() < 2e-6, name  # differences err 1e-6 at most, where the third derivatives are large


VARYING = (PENDULUM, QUADROTOR, NETWORK_DYNAMICS, LINEAR, DOUBLE_PENDULUM, QUADROTOR_3D, BICYCLE)


@pytest.mark.parametrize("lead", ["problem", "step", "mixed"])
@pytest.mark.parametrize("case", VARYING, ids=str)
def test_values_per_problem_and_per_step_agree(case: Case, lead: str) -> None:
    T, B = 6, 4
    problem = case.build(T)
    names: dict[str, tuple[int, ...]] = {}
    for place, name in enumerate(real_names(problem)):
        shapes: dict[str, tuple[int, ...]] = {"problem": (B,), "step": (B, T), "mixed": ((), (B,), (B, T))[place % 3]}
        names[name] = shapes[lead][:1] if name.startswith("terminal_cost.") else shapes[lead]
    compare(problem, case.starts(B, 6), names)


def test_values_with_steps_in_memory_agree() -> None:
    """Views: expanded, transposed, every second, and a bound that is one number for all components."""
    T, B = 5, 3
    problem = pendulum(T)
    x0 = published_pendulum_starts(2 * B, 1)[::2]
    goals = value_of(problem, "stage_cost.goal") + 0.1 * normal(T, 4, B, seed=1).permute(2, 0, 1)
    limits = torch.tensor(1.5, dtype=FLOAT).expand(B, T, 1)
    params = {
        "stage_cost.goal": goals,
        "u_max": limits,
        "dynamics.mass": normal(B, 2, seed=2)[:, 0].exp(),
        "u_min": -limits[0, 0],
    }
    native, reference = (solve(problem, x0, backend, params=params) for backend in ("native", "torch"))
    assert_same_solution(native, reference)


@pytest.mark.parametrize("case", [PENDULUM, QUADROTOR, OBSTACLES], ids=str)
def test_one_start_alone_agrees(case: Case) -> None:
    problem, x0 = case.build(6), case.starts(1, 8)
    compare(problem, x0)
    unbatched = solve(problem, x0[0], "native")
    batched = solve(problem, x0, "native")
    for name in ("states", "controls", "cost", "status", "num_iterations", "residual", "gains"):
        assert torch.equal(getattr(unbatched, name), getattr(batched, name)[0]), name
    names = {name: (1,) if name.startswith("terminal_cost.") else (1, 6) for name in real_names(problem)}
    compare(problem, x0[0], names)


def test_starts_in_float32_give_float32() -> None:
    found = []
    for backend in ("native", "torch"):
        problem = pendulum(8)
        x0 = published_pendulum_starts(5).float().requires_grad_()
        solution = solve(problem, x0, backend)
        assert {solution.states.dtype, solution.controls.dtype, solution.cost.dtype} == {torch.float32}
        assert {solution.gains.dtype, solution.residual.dtype} == {torch.float32}
        sum(losses_of(solution).values()).backward()  # type: ignore[union-attr]
        assert x0.grad is not None
        found.append((solution, x0.grad, gradient_of(problem, "dynamics.mass")))
    (native, dx0, dmass), (reference, dx0_too, dmass_too) = found
    assert torch.equal(native.status, reference.status)
    assert dx0.dtype == torch.float32
    for one, other in (
        (native.controls, reference.controls),
        (native.states, reference.states),
        (dx0, dx0_too),
        (dmass, dmass_too),
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # float32's last bit, through the loss


def test_parameters_in_float32_agree() -> None:
    """They are converted; their gradient is float32 again."""
    found = []
    for backend in ("native", "torch"):
        problem = QUADROTOR.build(6).float()
        solution = solve(problem, QUADROTOR.starts(4, 0), backend)
        sum(losses_of(solution).values()).backward()  # type: ignore[union-attr]
        found.append((solution, {name: gradient_of(problem, name) for name, _ in problem.named_parameters()}))
    assert_same_solution(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-6, atol=1e-6 * found[1][1][name].abs().max().item())


@pytest.mark.parametrize("shape", ["batch", "shared", "beyond the bounds"])
def test_controls_to_start_from_agree(shape: str) -> None:
    problem, x0, T = QUADROTOR.build(6), QUADROTOR.starts(4, 0), 6
    u_init = {
        "batch": 2.0 + normal(4, T, 2, seed=3),
        "shared": 2.0 + normal(T, 2, seed=4),
        "beyond the bounds": 50.0 * normal(4, T, 2, seed=5),
    }[shape]
    before = u_init.clone()
    compare(problem, x0, u_init=u_init)
    assert torch.equal(u_init, before)
    few = [solve(problem, x0, backend, u_init=u_init, max_iterations=1) for backend in ("native", "torch")]
    assert torch.equal(few[0].status, few[1].status)
    close(few[0].controls, few[1].controls, 1e-9, "controls after one iteration")


@pytest.mark.parametrize("case", [CARTPOLE, DOUBLE_PENDULUM, ROCKET], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_iterates_on_the_way_agree(case: Case, count: int) -> None:
    """Also those that no solution would tell apart: after a few iterations, whatever the status."""
    problem, x0 = case.build(12).requires_grad_(False), case.starts(12, 9)
    native, reference = (solve(problem, x0, backend, max_iterations=count) for backend in ("native", "torch"))
    assert (reference.status == Status.MAX_ITERATIONS).any()
    assert torch.equal(native.status, reference.status)
    assert torch.equal(native.num_iterations, reference.num_iterations)
    for name in ("states", "controls", "cost", "residual", "gains"):
        scale = getattr(reference, name).abs().max().clamp(min=1.0).item()  # rounding grows in what isn't optimal yet
        close(getattr(native, name) / scale, getattr(reference, name) / scale, 1e-8, name)


def test_a_problem_that_has_not_converged_passes_zero() -> None:
    found = []
    for backend in ("native", "torch"):
        problem, x0 = CARTPOLE.build(12), CARTPOLE.starts(8, 0).requires_grad_()
        solution = solve(problem, x0, backend, max_iterations=4)
        assert solution.converged.any()
        assert not solution.converged.all()
        (sum(losses_of(solution).values())).backward()  # type: ignore[union-attr]
        assert x0.grad is not None
        assert torch.equal(x0.grad.any(-1), solution.converged)
        found.append((x0.grad, gradient_of(problem, "dynamics.pole_mass")))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)  # of a tolerance of 1e-10


def test_pendulum_reference_solutions() -> None:
    """The same as in tests/core/test_solver.py, from outside this code base."""
    with np.load(REFERENCE, allow_pickle=False) as file:
        reference = {name: torch.from_numpy(file[name]) for name in file.files}
    names = ("dynamics.gravity", "dynamics.mass", "dynamics.length")
    theta = torch.tensor([10.0, 1.0, 1.0], dtype=FLOAT).repeat(20, 1).requires_grad_()
    params = dict(zip(names, theta.unbind(1), strict=True))
    solution = solve(pendulum(20), reference["x0"], "native", tolerance=TIGHT, params=params)
    assert solution.converged.all()
    tau = torch.cat((solution.states[:, :-1], solution.controls), dim=-1)
    loss = (tau - reference["trajectory"]).square().mean((1, 2))
    (gradient,) = torch.autograd.grad(loss.sum(), theta)
    torch.testing.assert_close(solution.cost.detach() - 0.5 * 20, reference["cost"], rtol=0.0, atol=1e-8)
    torch.testing.assert_close(solution.controls.detach(), reference["controls"], rtol=1e-6, atol=1e-6)
    error = (gradient - reference["gradient"]).norm(dim=1) / reference["gradient"].norm(dim=1)
    assert error.max() < 1e-6


# Tensors in unusual places.


class Tied(nn.Module):
    """A cost that holds the dynamics too, an integer buffer that it uses, and one that nobody uses."""

    def __init__(self, dynamics: nn.Module) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.unused = nn.Parameter(torch.ones(3, dtype=FLOAT))
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.register_buffer("parts", torch.tensor([1, 2, 4]))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        ahead = self.dynamics(x, u)[..., self.order] / self.parts
        return ahead.square().sum(-1) + 0.1 * u.square().sum(-1)


def tied() -> ControlProblem:
    dynamics = pendulum().dynamics
    return ControlProblem(dynamics, Tied(dynamics), horizon=6, state_size=3, control_size=1, u_min=-2.0, u_max=2.0)


class Exponential(nn.Module):
    def forward(self, raw: Tensor) -> Tensor:
        return raw.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.log()


def parametrised() -> ControlProblem:
    problem = pendulum(6)
    parametrize.register_parametrization(problem.dynamics, "mass", Exponential())
    return problem


def learnt_bounds() -> ControlProblem:
    cost = QuadraticCost([1.0, 1.0, 0.1, 0.001], [1.0, 0.0, 0.0, 0.0])
    upper = nn.Parameter(torch.tensor(1.5, dtype=FLOAT))
    return ControlProblem(pendulum().dynamics, cost, horizon=6, state_size=3, control_size=1, u_min=-2.0, u_max=upper)


def one_sided() -> ControlProblem:
    cost = QuadraticCost([1.0, 1.0, 0.1, 0.001], [1.0, 0.0, 0.0, 0.0])
    return ControlProblem(pendulum().dynamics, cost, horizon=6, state_size=3, control_size=1, u_max=1.0)


@pytest.mark.parametrize("build", [tied, parametrised, learnt_bounds, one_sided], ids=lambda build: build.__name__)
def test_parameters_in_unusual_places_agree(build: Callable[[], ControlProblem]) -> None:
    found = []
    for backend in ("native", "torch"):
        problem, x0 = build(), published_pendulum_starts(6, 2).requires_grad_()
        own = {"x0": x0, **dict(problem.named_parameters())}
        found.append((solve(problem, x0, backend, tolerance=TIGHT), own))
    (native, ours), (reference, theirs) = found
    assert_same_solution(native, reference)
    assert_same_gradients(native, ours, reference, theirs)


def test_frozen_parameters_cost_no_graph_and_a_gradient_goes_only_where_it_is_needed() -> None:
    problem, x0 = QUADROTOR.build(5).requires_grad_(False), QUADROTOR.starts(3, 0)
    assert not solve(problem, x0, "native").cost.requires_grad
    problem.get_parameter("dynamics.mass").requires_grad_()
    solution = solve(problem, x0, "native")
    carries = {name for name, part in vars(solution).items() if part is not None and part.requires_grad}
    assert carries == {"states", "controls", "cost"}
    solution.states.sum().backward()
    assert {name for name, part in problem.named_parameters() if part.grad is not None} == {"dynamics.mass"}
    with torch.no_grad():
        assert not solve(problem, x0, "native").controls.requires_grad
