"""Derivatives of traced code where they are delicate: at zero, of matrices, and inside the model itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import FLOAT, normal
from torch import Tensor, nn
from traced_operations import Operation

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, explain
from dilqr_rl.native.codegen.derivatives import cotangents, tangents
from dilqr_rl.native.codegen.evaluate import evaluate
from dilqr_rl.native.model import Functions, write_model
from dilqr_rl.native.tracing.matrices import MATRIX_FORMULAS

AT_ZERO: dict[str, Any] = {
    "xlogy": lambda x, u: torch.xlogy(0.3 * x, u + 1.5),
    "special.xlogy": lambda x, u: torch.special.xlogy(x, u + 1.5),
    "xlog1py": lambda x, u: torch.special.xlog1py(x, x),
    "huber_loss": lambda x, u: F.huber_loss(x, torch.zeros_like(x), reduction="none"),
    "smooth_l1_loss": lambda x, u: F.smooth_l1_loss(x, u, reduction="none", beta=0.5),
    "x |x|": lambda x, u: x * x.abs() + u,
    "powers": lambda x, u: x**2 + x**3 + x**0 + x**1 + u,
}


def sum_of(function: Operation) -> Callable[[Tensor], Tensor]:
    return lambda z: function(z[:, :1], z[:, 1:]).sum()


def traced_derivatives(function: Operation, point: tuple[float, float]) -> Tensor:
    """Value, gradient and Hessian of a number of x (1,) and u (1,), natively."""
    model = write_model(Functions(function, None, None, 1, 1), [], only=("constants", "advance"))
    (output,), graph = model.outputs, model.outputs[0].graph
    leaves, one, zero = [graph.leaf("x[0]"), graph.leaf("u[0]")], graph.const(1.0), graph.const(0.0)
    found = cotangents(graph, [(output, one)]).numbers
    gradient = [found.get(leaf, zero) for leaf in leaves]
    rows = tangents(graph, gradient, {leaves[0]: [one, zero], leaves[1]: [zero, one]}, 2)
    numbers = evaluate([output, *gradient, *rows[0], *rows[1]], {"x[0]": point[0], "u[0]": point[1]}, [])
    return torch.tensor(numbers, dtype=FLOAT)


@pytest.mark.parametrize("name", AT_ZERO)
def test_second_derivatives_at_zero_are_torchs(name: str) -> None:
    """Value, gradient and Hessian of a number of x (1,) and u (1,)."""
    value = sum_of(AT_ZERO[name])
    for point in ((0.0, 0.0), (0.0, 0.3), (0.4, 0.0), (1.0, 0.0)):
        z = torch.tensor([point], dtype=FLOAT)
        truth = (value(z), torch.autograd.functional.jacobian(value, z), torch.autograd.functional.hessian(value, z))
        torch.testing.assert_close(traced_derivatives(AT_ZERO[name], point), torch.cat([part.flatten() for part in truth]))


SECOND: dict[str, tuple[Any, dict[tuple[float, float], list[float]]]] = {  # where torch has none: by hand
    "sinc": (
        lambda x, u: torch.sinc(x) * (1 + u),
        {(0.0, 0.0): [-(math.pi**2) / 3, 0.0, 0.0, 0.0], (0.0, 0.5): [-(math.pi**2) / 2, 0.0, 0.0, 0.0]},
    ),
    "atan2": (torch.atan2, {(0.0, 0.0): [0.0, 0.0, 0.0, 0.0]}),  # for want of a right one
}


@pytest.mark.parametrize("name", SECOND)
def test_derivatives_at_zero_where_torch_has_no_second_ones(name: str) -> None:
    """Value and gradient are torch's."""
    function, points = SECOND[name]
    for point, second in points.items():
        z = torch.tensor([point], dtype=FLOAT)
        truth = (
            sum_of(function)(z),
            torch.autograd.functional.jacobian(sum_of(function), z),
            torch.tensor(second, dtype=FLOAT),
        )
        torch.testing.assert_close(traced_derivatives(function, point), torch.cat([part.flatten() for part in truth]))


def test_the_series_of_sinc_meets_its_quotient() -> None:
    for x in (1e-3, 0.02 / math.pi - 1e-9, 0.02 / math.pi + 1e-9, 0.5):
        z = torch.tensor([(x, 0.0)], dtype=FLOAT)
        value = sum_of(SECOND["sinc"][0])
        truth = (value(z), torch.autograd.functional.jacobian(value, z), torch.autograd.functional.hessian(value, z))
        found = traced_derivatives(SECOND["sinc"][0], (x, 0.0))
        torch.testing.assert_close(found, torch.cat([part.flatten() for part in truth]), rtol=0, atol=1e-9)  # torch's cancels


@pytest.mark.parametrize("n", [2, 3])
def test_solutions_of_ill_conditioned_matrices_keep_their_digits(n: int) -> None:
    """To the condition number (1e6) times the rounding of float64, and some. The truths: A is made of them."""
    (first, last), sizes = (
        (torch.linalg.qr(normal(n, n, seed=seed)).Q for seed in (1, 2)),
        torch.logspace(0, -6, n, dtype=FLOAT),
    )
    matrix, inverse, ones = (
        first @ torch.diag(sizes) @ last.T,
        last @ torch.diag(1.0 / sizes) @ first.T,
        torch.ones(n, dtype=FLOAT),
    )
    torch.testing.assert_close(MATRIX_FORMULAS["_linalg_solve_ex"](matrix, matrix @ ones)[0], ones, rtol=0, atol=2e-9)
    found = MATRIX_FORMULAS["linalg_inv_ex"](matrix)[0]
    torch.testing.assert_close(found, inverse, rtol=0, atol=2e-9 * inverse.norm().item())


class Energy(nn.Module):
    """Moves along the gradient of an energy, taken inside the model."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.energy = nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 1)).double()

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        with torch.enable_grad():
            z = x if x.requires_grad else x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(z).sum(), z, create_graph=True)
        cut = torch.cat(list(map(torch.Tensor.detach, (torch.sin(x[..., :1]), torch.cos(x[..., 1:])))), -1)  # both are cut
        return x + 0.1 * slope.flip(-1) * cut + u


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_model_may_take_a_gradient_itself(backend: Any) -> None:
    """Its derivatives by everything are central differences; what it detaches stays cut."""
    model = Energy()
    written = copy.deepcopy(model)

    def by_hand(x: Tensor, u: Tensor) -> Tensor:
        first, _, last = written.energy
        slope = ((1 - torch.tanh(first(x)) ** 2) * last.weight[0]) @ first.weight
        cut = torch.cat((torch.sin(x[..., :1]), torch.cos(x[..., 1:])), -1).detach()
        return x + 0.1 * slope.flip(-1) * cut + u

    class ByHand(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.energy = written.energy

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return by_hand(x, u)

    found = []
    for dynamics in (model, ByHand()):
        problem = ControlProblem(dynamics, QuadraticCost([1.0] * 4, [0.5] * 4), horizon=4, state_size=2, control_size=2)
        x0 = torch.tensor([[1.0, 0.5], [-0.3, 0.2]], dtype=torch.float64, requires_grad=True)
        solution = ILQR(problem, ILQROptions(backend=backend, tolerance=1e-10))(x0)
        solution.states.square().sum().backward()
        found.append([solution.controls.detach(), x0.grad, *(p.grad for p in dynamics.energy.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def along_ones(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Its derivative in forward mode."""
    return lambda x: torch.func.jvp(function, (x,), (torch.ones_like(x),))[1]


@pytest.mark.parametrize(
    "function",
    [
        lambda r: torch.atan2(r, r + 2.0),
        lambda r: F.normalize(r + 1.0, dim=-1),
        lambda r: 3.0 * torch.linalg.inv(torch.diag_embed(2.0 + r)).sum(-1),
        lambda r: (torch.sin(r) - r.mean(-1, keepdim=True)) / torch.sin(r).std(-1, keepdim=True, correction=0),
    ],
)
def test_forward_mode_asks_for_shapes_without_numbers(function: Callable[[Tensor], Tensor]) -> None:
    """It does where a number is among the operands, whose tangent is none."""
    inside = along_ones(function)
    dynamics = lambda x, u: x + u - 0.1 * inside(x)  # noqa: E731
    problem = ControlProblem(dynamics, QuadraticCost([1.0] * 6, [0.0] * 6), horizon=2, state_size=3, control_size=3)
    x0 = torch.tensor([0.4, -0.3, 0.9], dtype=torch.float64)
    assert explain(problem, x0).native, explain(problem, x0).reason
    native, plain = (ILQR(problem, ILQROptions(backend=backend))(x0) for backend in ("native", "torch"))
    torch.testing.assert_close(native.controls, plain.controls, rtol=1e-9, atol=1e-9)


def test_where_derivatives_of_pytorch_are_wrong_the_reason_says_so() -> None:
    """Values of a jvp through a LayerNorm are traced as they are; their own derivatives aren't PyTorch's, which are wrong."""
    inside = along_ones(lambda r: F.layer_norm(torch.tanh(r), (3,)))
    x, step = torch.tensor([[0.4, -0.3, 0.9]], dtype=torch.float64), 1e-5 * torch.eye(3, dtype=torch.float64)
    truth = (inside(x + step) - inside(x - step)).mT / 2e-5
    right = torch.allclose(torch.autograd.functional.jacobian(inside, x).reshape(3, 3), truth, atol=1e-6)
    dynamics = lambda x, u: x + u - 0.1 * inside(x)  # noqa: E731
    problem = ControlProblem(dynamics, QuadraticCost([1.0] * 6, [0.0] * 6), horizon=2, state_size=3, control_size=3)
    told = explain(problem, x[0])
    assert told.native or (not right and "PyTorch's own are wrong, as those of torch.func.jvp" in told.reason)


def test_derivatives_inside_a_model_are_those_of_pytorch() -> None:
    """By every mode of torch.func, of a module of the model, in a solve by both paths."""
    net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2)).double()

    class Inside(nn.Module):
        def __init__(self, derivative: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.net, self.derivative = net, derivative

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return x + u - 0.1 * self.derivative(x.reshape(-1, 2)).reshape(x.shape)

    def pulled(r: Tensor) -> Tensor:
        out, pull = torch.func.vjp(net, r)
        return pull(torch.ones_like(out))[0]

    for derivative in (
        torch.func.vmap(torch.func.grad(lambda r: net(r)[0])),
        torch.func.vmap(torch.func.grad(lambda r: net(r)[:1].squeeze(-1))),
        lambda z: torch.func.vmap(torch.func.jacfwd(net))(z).sum(-1),
        lambda z: torch.func.vmap(torch.func.jacrev(net))(z).sum(-1),
        lambda z: torch.func.vmap(torch.func.hessian(lambda r: net(r)[1]))(z).sum(-1),
        lambda z: torch.func.jvp(net, (z,), (torch.ones_like(z),))[1],
        torch.func.vmap(pulled),
    ):
        problem = ControlProblem(
            Inside(derivative), QuadraticCost([1.0] * 4, [0.0] * 4), horizon=2, state_size=2, control_size=2
        )
        assert explain(problem).native, explain(problem).reason
        native, plain = (ILQR(problem, ILQROptions(backend=backend))(torch.ones(2).double()) for backend in ("native", "torch"))
        torch.testing.assert_close(native.controls, plain.controls, rtol=1e-9, atol=1e-9)
