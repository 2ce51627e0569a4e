"""Models whose derivatives are missing, and batches whose problems aren't independent: said, not solved."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dilqr_rl import ILQR, ControlProblem, ILQROptions, Solution, Status

FLOAT = torch.float64
A, B = torch.tensor([[1.0, 0.1], [0.0, 1.0]], dtype=FLOAT), torch.tensor([[0.0], [0.1]], dtype=FLOAT)
X0 = torch.tensor([[1.0, 0.5], [2.0, -0.3]], dtype=FLOAT)
Function = Callable[[Tensor, Tensor], Tensor]
each_backend = pytest.mark.parametrize("backend", ["auto", "torch"])
Backend = Literal["auto", "torch"]


def moved(x: Tensor, u: Tensor) -> Tensor:
    return x @ A.T + u @ B.T


def cost(x: Tensor, u: Tensor) -> Tensor:
    return (x * x).sum(-1) + 0.01 * (u * u).sum(-1)


def plan(dynamics: Function, stage_cost: Function, backend: Backend, x0: Tensor = X0, **arguments: Any) -> Solution:
    problem = ControlProblem(dynamics, stage_cost, horizon=8, state_size=2, control_size=1, u_min=-10.0, u_max=10.0)
    return ILQR(problem, ILQROptions(backend=backend))(x0, **arguments)


def without(function: Function) -> Function:
    return torch.no_grad()(function)


def dead(u: Tensor) -> Tensor:
    return torch.sign(u) * torch.relu(u.abs() - 0.5)


NO_DYNAMICS = {
    "no_grad": without(moved),
    "detached control": lambda x, u: moved(x, u.detach()),
    "detached": lambda x, u: moved(x, u).detach(),
    "detached state": lambda x, u: moved(x.detach(), u.detach()),
    "rounded": lambda x, u: moved(x, torch.round(u)),
    "compared": lambda x, u: moved(x, (u > 0.1).to(u.dtype) - (u < -0.1).to(u.dtype)),
}
NO_COSTS = {
    "no_grad": without(cost),
    "detached": lambda x, u: cost(x.detach(), u),
    "sparse": lambda x, u: (x.abs() > 0.3).any(-1).to(x.dtype) + 0.01 * (u * u).sum(-1),
}


@each_backend
@pytest.mark.parametrize("name", NO_DYNAMICS)
def test_dynamics_without_derivatives_are_refused(name: str, backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"dynamics: expected functions with derivatives, along which the solver moves"):
        plan(NO_DYNAMICS[name], cost, backend)


def test_they_are_refused_where_a_cheaper_start_got_stuck() -> None:
    """From half way to a bound, which is tried where zero controls lead nowhere, the control's own cost has a slope."""
    far = lambda x, u: cost(x - 5.0, u)  # noqa: E731
    problem = ControlProblem(NO_DYNAMICS["detached"], far, horizon=8, state_size=2, control_size=1, u_min=-10.0, u_max=10.0)
    with pytest.raises(ValueError, match=r"dynamics: expected functions with derivatives, along which the solver moves"):
        ILQR(problem, ILQROptions(backend="torch", max_iterations=10))(X0)


@each_backend
@pytest.mark.parametrize("name", NO_COSTS)
def test_costs_without_derivatives_are_refused(name: str, backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"costs: expected functions with derivatives, along which the solver moves"):
        plan(moved, NO_COSTS[name], backend)


@each_backend
def test_where_only_the_start_has_none_the_status_says_so(backend: Backend, caplog: pytest.LogCaptureFixture) -> None:
    """In a dead band the given start stays; from elsewhere the same problem is solved."""
    start = torch.full((8, 1), 0.2, dtype=FLOAT)
    with caplog.at_level(logging.WARNING, logger="dilqr_rl"):
        solution = plan(lambda x, u: moved(x, dead(u)), lambda x, u: (x * x).sum(-1), backend, u_init=start)
    assert (solution.status == Status.NO_DERIVATIVE).all()
    assert not solution.converged.any()
    assert "2 of 2 problems have no derivative at their start, and cheaper controls elsewhere" in caplog.text
    other = plan(lambda x, u: moved(x, dead(u)), lambda x, u: (x * x).sum(-1), backend, u_init=start - 3.0)
    assert (other.cost < solution.cost - 1e-3).all()


@each_backend
def test_a_start_on_a_bound_is_looked_at_too(backend: Backend) -> None:
    problem = ControlProblem(without(moved), cost, horizon=8, state_size=2, control_size=1, u_min=0.0, u_max=10.0)
    with pytest.raises(ValueError, match=r"dynamics: expected functions with derivatives"):
        ILQR(problem, ILQROptions(backend=backend))(-X0)


@each_backend
def test_one_problem_far_in_a_saturation_leaves_the_others_alone(backend: Backend) -> None:
    x0 = torch.tensor([[0.5, 0.0], [100.0, 100.0]], dtype=FLOAT)
    solution = plan(moved, lambda x, u: x.clamp(-5.0, 5.0).square().sum(-1) + 0.01 * u.square().sum(-1), backend, x0=x0)
    assert solution.status.tolist() == [Status.CONVERGED, Status.NO_DERIVATIVE]


@each_backend
@pytest.mark.parametrize(
    ("dynamics", "stage_cost"),
    [
        (moved, cost),  # at the goal there is nothing to gain
        (lambda x, u: x @ A.T, cost),  # a control that does nothing
        (lambda x, u: moved(x, dead(u)), cost),
        (moved, lambda x, u: torch.relu(x.abs() - 1.0).square().sum(-1)),  # within its limits a penalty is flat, and best
    ],
)
def test_what_has_converged_at_once_rightly_stays_converged(dynamics: Function, stage_cost: Function, backend: Backend) -> None:
    solution = plan(dynamics, stage_cost, backend, x0=torch.zeros(1, 2, dtype=FLOAT))
    assert solution.converged.all()
    assert solution.cost.item() == 0.0


def mean_of_all(x: Tensor, u: Tensor) -> Tensor:
    return F.mse_loss(x, torch.zeros_like(x)) + 0.01 * u.square().sum(-1)


COUPLED = {
    "mse_loss": ("stage_cost", moved, mean_of_all),
    "mean": ("stage_cost", moved, lambda x, u: cost(x, u) + x.mean()),
    "over the batch": ("stage_cost", moved, lambda x, u: cost(x, u) + 0.1 * x[..., 0].mean(0)),
    "over the steps": ("stage_cost", moved, lambda x, u: cost(x, u).cumsum(-1)),
    "normalised": ("dynamics", lambda x, u: moved(x / (1.0 + x.norm()), u), cost),
}


@each_backend
@pytest.mark.parametrize("name", COUPLED)
def test_problems_that_depend_on_each_other_are_refused(name: str, backend: Backend) -> None:
    """Even in a batch of one, in which nothing shows yet."""
    role, dynamics, stage_cost = COUPLED[name]
    with pytest.raises(ValueError, match=rf"{role}: its value for one problem depends on the other problems or steps"):
        plan(dynamics, stage_cost, backend, x0=X0[:1])


def test_what_autograd_refuses_is_told() -> None:
    """The output of a sigmoid, from which its derivative is computed, is written over."""

    def overwritten(x: Tensor, u: Tensor) -> Tensor:
        y = torch.sigmoid(x)
        y += u
        return moved(y, u)

    with pytest.raises(ValueError, match=r"a function of the problem can't be differentiated by PyTorch: one of the variables"):
        plan(overwritten, cost, "torch")


def two_controls(x: Tensor, u: Tensor, second: Callable[[Tensor], Tensor]) -> Tensor:
    """The first control and what becomes of the second one push alike, where one alone does half of the work."""
    return x @ A.T + torch.cat((u[..., :1], second(u[..., 1:])), dim=-1)


def plan_two(second: Callable[[Tensor], Tensor], backend: Backend, weight: float = 0.01) -> Solution:
    problem = ControlProblem(
        lambda x, u: two_controls(x, u, second),
        lambda x, u: (x * x).sum(-1) + 0.01 * u[..., 0].square() + weight * u[..., 1].square(),
        horizon=8, state_size=2, control_size=2, u_min=-10.0, u_max=10.0,
    )  # fmt: skip
    return ILQR(problem, ILQROptions(backend=backend))(10.0 * X0)


@each_backend
@pytest.mark.parametrize("second", [torch.detach, torch.round, lambda u: u.detach() + 0.0, dead])
def test_a_control_that_is_left_behind_is_told(
    second: Callable[[Tensor], Tensor], backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one moves, so the solution is the best in that one: it has converged."""
    with caplog.at_level(logging.WARNING, logger="dilqr_rl"):
        solution = plan_two(second, backend)
    assert solution.converged.all()
    assert solution.num_iterations.min() >= 1
    assert "2 of 2 solutions have cheaper values for some controls, by number [1], to which no derivative leads" in caplog.text


@each_backend
@pytest.mark.parametrize("second", [torch.zeros_like, lambda u: u, lambda u: 10.0 * u - 10.0 * u.detach()])
def test_a_control_that_rightly_rests_is_not_told(
    second: Callable[[Tensor], Tensor], backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="dilqr_rl"):
        plan_two(second, backend)
    assert "no derivative leads" not in caplog.text
