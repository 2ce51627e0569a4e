"""A simulator in NumPy as the dynamics, beside the same model in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import jacfwd, jacrev

from dilqr_rl import ILQR, ControlProblem, ILQROptions, MultiStart, QuadraticCost, Simulator

H = 0.1
OPTIONS = ILQROptions(tolerance=1e-9, max_iterations=300, backend="torch")
STARTS = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [0.3, 0.1]], dtype=torch.float64)


def step(x: Any, u: Any) -> Any:
    """A damped pendulum, of one state or many."""
    rate = x[..., 1] + H * (3.0 * np.sin(x[..., 0]) - 0.2 * x[..., 1] + u[..., 0])
    return np.stack((x[..., 0] + H * rate, rate), -1)


def in_place(x: Any, u: Any) -> Any:
    x[..., 1] += H * (3.0 * np.sin(x[..., 0]) - 0.2 * x[..., 1] + u[..., 0])
    x[..., 0] += H * x[..., 1]
    return x


def jacobian(x: Any, u: Any) -> Any:
    one = np.ones_like(x[..., 0])
    a, b = 3.0 * H * np.cos(x[..., 0]), (1 - 0.2 * H) * one
    dx = np.stack((np.stack((one + H * a, H * b), -1), np.stack((a, b), -1)), -2)
    return dx, np.stack((H * H * one, H * one), -1)[..., None]


class Reused:
    """Fills the same arrays at each call, as simulators in C do."""

    def __init__(self, function: Any) -> None:
        self.function, self.arrays = function, (np.empty((2, 2)), np.empty((2, 1)))

    def __call__(self, x: Any, u: Any) -> Any:
        for array, found in zip(self.arrays, self.function(x, u), strict=True):
            array[:] = found
        return self.arrays


def twin(x: Tensor, u: Tensor) -> Tensor:
    rate = x[..., 1] + H * (3.0 * torch.sin(x[..., 0]) - 0.2 * x[..., 1] + u[..., 0])
    return torch.stack((x[..., 0] + H * rate, rate), -1)


def problem(dynamics: Any, bound: float = 4.0) -> ControlProblem:
    cost = QuadraticCost([1.0, 0.1, 0.05], [0.0, 0.0, 0.0])
    return ControlProblem(
        dynamics, cost, lambda x: (x * x).sum(-1), horizon=12, state_size=2, control_size=1, u_min=-bound, u_max=bound
    )


FORMS: dict[str, Callable[[], Simulator]] = {
    "differences": lambda: Simulator(step),
    "Jacobians": lambda: Simulator(step, jacobian),
    "one state at a time": lambda: Simulator(step, jacobian, batched=False),
    "one at a time, differences": lambda: Simulator(step, batched=False),
    "in place": lambda: Simulator(in_place),
    "the same arrays again": lambda: Simulator(step, Reused(jacobian), batched=False),
}


def loss_and_gradients(
    dynamics: Any, planner: Callable[[ControlProblem], Any] = lambda one: ILQR(one, OPTIONS)
) -> list[Tensor]:
    one, x0 = problem(dynamics), STARTS.clone().requires_grad_()
    u_max = torch.full((1,), 1.5, dtype=torch.float64, requires_grad=True)
    solution = planner(one)(x0, {"u_max": u_max})
    assert solution.converged.all()
    assert (solution.controls == 1.5).any()
    loss = solution.states.square().sum() + solution.controls.sum() + solution.cost.sum()
    loss.backward()
    cost: Any = one.stage_cost
    return [loss.detach(), x0.grad, u_max.grad, cost.weights.grad, cost.goal.grad]  # type: ignore[list-item]


@pytest.mark.parametrize("form", FORMS)
def test_plans_and_gradients_are_the_torch_models(form: str) -> None:
    """The twin's are exact, and tested elsewhere against central differences."""
    for found, expected in zip(loss_and_gradients(FORMS[form]()), loss_and_gradients(twin), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_in_other_modes_too() -> None:
    simulated, modelled = ILQR(problem(Simulator(step)), OPTIONS), ILQR(problem(twin), OPTIONS)
    expected = jacrev(lambda x: modelled(x).controls.sum())(STARTS)
    for way in (jacrev, jacfwd):
        torch.testing.assert_close(way(lambda x: simulated(x).controls.sum())(STARTS), expected, rtol=1e-5, atol=1e-5)
    several = loss_and_gradients(Simulator(step), lambda one: MultiStart(ILQR(one, OPTIONS)))
    torch.testing.assert_close(several, loss_and_gradients(twin), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match='gradient: "unroll" wants derivatives of the steps'):
        ILQR(problem(Simulator(step)), OPTIONS, gradient="unroll")


def test_auto_is_the_torch_path_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert ILQR(problem(Simulator(step)))(STARTS).converged.all()
    assert not caplog.messages
    message = r'backend: "native" is not possible .*: its dynamics are a Simulator, .* runs on the PyTorch path\. Use "auto" or "torch"'
    with pytest.raises(ValueError, match=message):
        ILQR(problem(Simulator(step)), ILQROptions(backend="native"))(STARTS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Simulator(3), "step: expected a function of x and u, got 3"),  # type: ignore[arg-type]
        (lambda: Simulator(step, 3), "jacobian: expected a function of x and u, got 3"),  # type: ignore[arg-type]
        (lambda: Simulator(nn.Linear(2, 2)), "step: expected a function of arrays, got a module with parameters"),
        (lambda: Simulator(lambda x, u: x[:, :1]), r"step: expected an array of numbers \(\d+, 2\), got float64 \(\d+, 1\)"),
        (lambda: Simulator(lambda x, u: torch.as_tensor(x)), "step: expected an array, got a tensor"),
        (lambda: Simulator(step, lambda x, u: x), "jacobian: expected a pair of arrays"),
        (lambda: Simulator(step, lambda x, u: (x, u)), r"jacobian: expected an array of numbers \(\d+, 2, 2\)"),
    ],
)
def test_what_is_no_simulator_is_refused(make: Callable[[], Simulator], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ILQR(problem(make()))(STARTS)


ONE = "step: expected a function of batches, .* got one of a single state and control .* Say Simulator\\(step, batched=False\\)"


@pytest.mark.parametrize(
    "alone",
    [
        lambda x, u: np.array([x[0] + 0.1 * x[1], x[1] + u[0]]),
        lambda x, u: np.array([[1.0, 0.1], [0.0, 1.0]]) @ x + u,
        lambda x, u: np.array([float(x[0]), float(u[0])]),
    ],
)
def test_a_step_of_one_state_without_a_word_is_told(alone: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=ONE):
        ILQR(problem(Simulator(alone)))(STARTS)
    assert ILQR(problem(Simulator(alone, batched=False)))(STARTS).controls.isfinite().all()


def test_an_error_of_a_batch_s_own_stays_what_it_is() -> None:
    def tanks(x: Any, u: Any) -> Any:
        if (x[..., 0] < 0.0).any():
            raise OverflowError("negative tank level")
        return x + 0.1 * u

    with pytest.raises(OverflowError, match=r"^negative tank level$"):
        ILQR(problem(Simulator(tanks)))(torch.tensor([[0.5, 0.0], [-0.5, 0.0]], dtype=torch.float64))


def broken(x: Any, u: Any) -> Any:
    raise KeyError("the user's own")


def test_an_error_of_a_step_comes_through() -> None:
    with pytest.raises(KeyError, match="the user's own"):
        ILQR(problem(Simulator(broken)))(STARTS)


def test_a_simulator_has_no_parameters_to_replace() -> None:
    with pytest.raises(ValueError, match=r"params\['dynamics.mass'\]: the problem has no parameter"):
        ILQR(problem(Simulator(step)))(STARTS, {"dynamics.mass": torch.ones(())})
