"""What can be traced, one operation at a time; and what can't, which says so."""

from __future__ import annotations

import copy
import logging
import math
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interpreted_code import differences
from packaging.version import Version
from problems import FLOAT, normal, uniform
from torch import Tensor, nn
from traced_operations import NUMBERS, OPERATIONS, M, Operation, V, first, spread

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Solution, explain
from dilqr_rl.native.codegen.derivatives import cotangents, tangents
from dilqr_rl.native.codegen.evaluate import evaluate
from dilqr_rl.native.model import Functions, write_model
from dilqr_rl.native.programs import trace_problem
from dilqr_rl.native.tracing.matrices import MATRIX_FORMULAS

Backend = Literal["auto", "native", "torch"]


class Disturbed(nn.Module):
    """x + 0.1 u, in parts, and a share of an operation on (scale x + shift, gain u), all of which are learnt."""

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        self.operation = operation
        self.scale, self.shift = nn.Parameter(0.9 + 0.1 * V), nn.Parameter(torch.tensor([0.05, -0.03, 0.02], dtype=FLOAT))
        self.gain, self.share = (
            nn.Parameter(torch.tensor([1.1, 0.8], dtype=FLOAT)),
            nn.Parameter(torch.tensor(0.3, dtype=FLOAT)),
        )

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        change = self.share * self.operation(self.scale * x + self.shift, self.gain * u)
        return 0.8 * x + 0.3 * torch.cat((u, u[..., :1]), dim=-1) + change


class DisturbedCost(Disturbed):
    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        tame = x.square().sum(-1) + 0.5 * (u + 0.1).square().sum(-1)
        return tame + super().forward(x, u) @ torch.tensor([1.0, -0.7, 0.4], dtype=FLOAT)


class DisturbedEnd(Disturbed):
    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        return super().forward(x, torch.full_like(x[..., :2], 0.3)).square().sum(-1)


class Several(nn.Module):
    """A tame system whose first component a weighted sum of functions of two numbers disturbs."""

    def __init__(self, functions: list[Operation]) -> None:
        super().__init__()
        self.functions = functions
        self.weights = nn.Parameter(torch.zeros(len(functions), dtype=FLOAT))
        self.shift = nn.Parameter(torch.tensor(0.05, dtype=FLOAT))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        a, b = x[..., 0].sin() + self.shift, (u[..., 0] + x[..., 1]).cos() - 0.5  # within 1.5: no pole is near
        parts = torch.stack([function(a, b) for function in self.functions], dim=-1)
        rest = 0.8 * x + 0.3 * torch.cat((u, u[..., :1]), dim=-1)
        return rest + torch.cat(((0.3 * parts @ self.weights)[..., None], torch.zeros_like(x[..., :2])), dim=-1)


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


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_becomes_code_with_its_values_and_derivatives(name: str) -> None:
    """In dynamics, stage cost and terminal cost; the code is run by Python, so that no compiler is waited for."""
    parts = [kind(OPERATIONS[name]) for kind in (Disturbed, DisturbedCost, DisturbedEnd)]
    problem = ControlProblem(*parts, horizon=2, state_size=3, control_size=2)
    assert not differences(problem, [1, 2, 3])


def test_every_elementwise_operation_compiles_to_the_same_solution() -> None:
    """All in one model; each problem has one of them."""
    K, repeats, found = len(NUMBERS), 3, {}
    problem, x0 = problem_of(Several(list(NUMBERS.values()))), starts(K * repeats)
    for backend in ("native", "torch"):
        params = {
            "dynamics.weights": torch.eye(K, dtype=FLOAT).repeat(repeats, 1).requires_grad_(),
            "dynamics.shift": (0.05 + 0.01 * normal(K * repeats, seed=1)).requires_grad_(),
        }
        early = solve(problem, x0, backend, max_iterations=2, params={name: value.detach() for name, value in params.items()})
        solution = solve(problem, x0, backend, params=params)
        loss = (
            (solution.controls * normal(3, 2, seed=1)).sum()
            + (solution.states * normal(4, 3, seed=2)).sum()
            + solution.cost.sum()
        )
        good = solution.converged
        found[backend] = {
            "status": solution.status.double(),
            "controls after 2 iterations": early.controls,
            "controls": torch.where(good[:, None, None], solution.controls, 0.0).detach(),
            "cost": torch.where(good, solution.cost, 0.0).detach(),
            **dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True)),
        }
    wrong = set()
    for name, truth in found["torch"].items():
        error = (found["native"][name] - truth).reshape(repeats, K, -1).norm(dim=-1)
        error = error / truth.reshape(repeats, K, -1).norm(dim=-1).clamp(min=1.0)
        bad = ~(error.amax(0) <= 1e-8)
        wrong |= {f"{function}: {name}" for function, is_bad in zip(NUMBERS, bad, strict=True) if is_bad}
    assert not wrong
    assert (found["torch"]["status"] == 0).double().mean() > 0.9
    by_weight = found["torch"]["dynamics.weights"].view(repeats, K, K).diagonal(dim1=1, dim2=2)
    assert (by_weight.abs() > 1e-9).any(0).all()  # each matters to its problem


def test_a_detached_state_stops_the_derivative() -> None:
    """Both paths then follow the same wrong gradient; where that leads is no minimum, so compare the way."""
    problem = problem_of(lambda x, u: 0.9 * x + 0.2 * x.detach().sin() + torch.cat((u, u[..., :1].detach()), dim=-1))
    for count in (1, 2, 3):
        native, reference = (solve(problem, starts(4), backend, max_iterations=count) for backend in ("native", "torch"))
        torch.testing.assert_close(native.controls, reference.controls, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(native.gains, reference.gains, rtol=1e-8, atol=1e-8)


def test_a_detached_parameter_gets_no_gradient() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(V.clone())

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return 0.8 * x + self.weight.detach() * first(u) + 0.1 * self.weight * x[..., :1]

    found = []
    for backend in ("native", "torch"):
        problem = problem_of(Half())
        solve(problem, starts(4), backend).controls.sum().backward()
        found.append(problem.get_parameter("dynamics.weight").grad)
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-10)


GRID = torch.tensor([-0.5, 0.5], dtype=FLOAT)


# What can't be traced: the PyTorch path's result and one line, or a ValueError.


def branch(x: Tensor, u: Tensor) -> Tensor:
    if (x[..., 0] > 100.0).all():  # here
        return 0.8 * x + first(u)
    return 0.7 * x + u[..., 1:]


def item(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x * min(x.detach().abs().max().item(), 0.5) + first(u)  # here


def number(x: Tensor, u: Tensor) -> Tensor:
    scale = float(V[0] + 0 * u.detach().sum())  # here
    return scale * x + first(u)


def listed(x: Tensor, u: Tensor) -> Tensor:
    low = min(x.detach().flatten().tolist())  # here
    return 0.8 * x + 0.0 * low + first(u)


def checked(x: Tensor, u: Tensor) -> Tensor:
    assert x.isfinite().all()  # here
    return 0.8 * x + first(u)


def decomposition(x: Tensor, u: Tensor) -> Tensor:
    size = torch.linalg.svdvals(x.unsqueeze(-1) * V + torch.eye(3, dtype=FLOAT))[..., 0]  # here
    return 0.8 * x + 0.1 * spread(size) + first(u)


def rotated(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x + 0.1 * torch.exp(1j * x).imag + first(u)  # here


def tabulated(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x + 0.1 * V[torch.bucketize(x.detach(), GRID)] * x + first(u)  # here


def in_numpy(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x + 1e-3 * torch.as_tensor(np.sin(x.detach().numpy())) + first(u)  # here


def fourier(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x + 0.1 * torch.fft.fft(x).abs() + first(u)  # here


def over_the_batch(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x - 0.1 * x.mean(0, keepdim=True) + first(u)


def batch_size(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x + first(u) / x.shape[0]


def noise(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x + 1e-9 * torch.randn_like(x) + first(u)  # here


def dropout(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x + 1e-9 * F.dropout(x, 0.5) + first(u)  # here


UNTRACEABLE = (branch, item, number, listed, checked, rotated, tabulated, in_numpy)
UNTRACEABLE += (decomposition, fourier, noise, dropout)
A_BRANCH = r"a branch or a Python number that depends on the state or on parameters .* has no native form"
A_NUMBER = r"what Python or NumPy makes of a tensor's numbers has no native form"
NAMED = {  # a word of the operation that the message must have
    "branch": A_BRANCH,
    "item": A_BRANCH,
    "number": A_BRANCH,
    "checked": A_BRANCH,
    "listed": A_NUMBER,
    "in_numpy": A_NUMBER,
    "rotated": "mul of complex numbers",
    "tabulated": ": bucketize has no native form",
    "decomposition": ": linalg_svd has",
    "fourier": "fft",
    "noise": "rand",
    "dropout": "dropout|bernoulli|rand",
}


def place_of(function: Callable[..., Tensor]) -> str:
    """A pattern for the line of a function that is marked by a comment."""
    with open(__file__, encoding="utf-8") as file:
        lines = file.read().splitlines()
    start = function.__code__.co_firstlineno
    line = next(place for place in range(start, len(lines)) if lines[place - 1].endswith("# here"))
    return rf"test_tracing\.py\D{{1,10}}{line}\b"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Everything that the library has told a person in this test."""
    caplog.set_level(logging.WARNING, logger="dilqr_rl")
    return lambda: [
        record.getMessage()
        for record in caplog.records
        if record.name.split(".")[0] == "dilqr_rl" and record.levelno >= logging.WARNING
    ]


@pytest.mark.parametrize("function", UNTRACEABLE, ids=lambda function: function.__name__)
def test_what_cannot_be_traced_takes_the_pytorch_path_and_says_so_once(
    function: Operation, lines: Callable[[], list[str]]
) -> None:
    planner = ILQR(problem_of(function), ILQROptions(max_iterations=5))
    found = [planner(starts(3)).controls for _ in range(3)]
    told = [line for line in lines() if "compiling" not in line]
    assert len(told) == 1, told
    assert len(lines()) == 1
    assert re.search(place_of(function), told[0]), told
    assert re.search(NAMED.get(function.__name__, ""), told[0]), told
    assert "\n" not in told[0]
    if function in (noise, dropout):
        return
    reference = ILQR(problem_of(function), ILQROptions(max_iterations=5, backend="torch"))(starts(3)).controls
    assert all(torch.equal(one, reference) for one in found)


@pytest.mark.parametrize("function", UNTRACEABLE, ids=lambda function: function.__name__)
def test_what_cannot_be_traced_is_refused_where_native_is_asked_for(function: Operation) -> None:
    with pytest.raises(ValueError, match=rf"(?i)native.*{NAMED.get(function.__name__, '')}") as error:
        solve(problem_of(function), starts(3), "native")
    assert re.search(place_of(function), str(error.value)), str(error.value)


@pytest.mark.parametrize("backend", ["auto", "native", "torch"])
@pytest.mark.parametrize("function", [over_the_batch, batch_size])
def test_what_depends_on_the_batch_is_refused(function: Operation, backend: Backend) -> None:
    """Only its results show what it is."""
    with pytest.raises(ValueError, match=r"dynamics: its value for one problem depends on the other problems or steps"):
        solve(problem_of(function), starts(3), backend)


def test_functions_given_to_torch_are_refused_by_name() -> None:
    """What torch.cond comes to; the function around it has torch compile it first, which takes seconds."""
    cond = torch.ops.higher_order.cond
    dynamics = lambda x, u: cond(x.sum() > 100.0, torch.sin, torch.cos, (x,)) + first(u)  # noqa: E731
    with pytest.raises(ValueError, match=r"^torch\.cond has no native form; write torch\.where\(mask, a, b\) .*test_tracing"):
        trace_problem(problem_of(dynamics))


def test_costs_are_traced_too(lines: Callable[[], list[str]]) -> None:
    def plain(x: Tensor, u: Tensor) -> Tensor:
        return x.square().sum(-1) + u.square().sum(-1)

    def odd(x: Tensor, u: Tensor) -> Tensor:
        return plain(x, u) + torch.linalg.svdvals(x.unsqueeze(-1) * V + M).sum(-1)  # here

    def odd_end(x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x.unsqueeze(-1) * V + M).sum(-1)  # here

    for cost, last, culprit in ((odd, None, odd), (plain, odd_end, odd_end)):
        problem = ControlProblem(lambda x, u: 0.8 * x + first(u), cost, last, horizon=2, state_size=3, control_size=2)
        ILQR(problem, ILQROptions(max_iterations=2))(starts(2))
        assert "svd" in lines()[-1]
        assert re.search(place_of(culprit), lines()[-1]), lines()
    assert len(lines()) == 2


def test_a_failure_of_the_users_own_comes_through_as_it_is() -> None:
    def broken(x: Tensor, u: Tensor) -> Tensor:
        raise KeyError("the user's own")

    for backend in ("native", "auto"):
        with pytest.raises(KeyError, match="the user's own"):
            solve(problem_of(broken), starts(2), backend)


class Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3, dtype=FLOAT)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return 0.9 * x + 0.1 * self.norm(x.reshape(-1, 3)).reshape(x.shape) + first(u)


def written_by_a_mask(x: Tensor, u: Tensor) -> Tensor:
    y = 0.9 * x + first(u)
    y[y > 0.5] = 0.5
    return y


def scaled_by_a_mask(x: Tensor, u: Tensor) -> Tensor:
    y = 0.9 * x + first(u)
    y[y > 0.5] *= 0.5
    return y


INDEXING = (
    r"indexing with an index or mask that depends on the state .* write torch\.where\(mask, a, b\), in .*test_tracing\.py:"
)
REFUSED: dict[str, tuple[Any, str]] = {
    "a mask that is read and written by": (scaled_by_a_mask, INDEXING),
    "float32 by place": (
        lambda x, u: x.to("cpu", torch.float32).to(x) + first(u),
        r"a conversion to torch\.float32 loses digits",
    ),
    "whole numbers": (
        lambda x, u: x.long() + first(u),
        r"a conversion to torch\.int64 loses digits .* or torch\.trunc for whole",
    ),
    "BatchNorm in training": (Normalised(), r"dynamics: normalises over its batch, .* call its \.eval\(\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_what_to_write_instead(name: str) -> None:
    dynamics, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        plan(dynamics, "native")


def test_one_number_written_by_a_mask_is_refused_unless_torch_fills_it_in() -> None:
    """Torch 2.15 no longer asks for the mask's places, so that it can be native; then it plans the same."""
    if Version(torch.__version__) < Version("2.15"):
        with pytest.raises(ValueError, match=INDEXING):
            plan(written_by_a_mask, "native")
    else:
        expected = plan(written_by_a_mask, "torch")
        torch.testing.assert_close(plan(written_by_a_mask, "native"), expected, rtol=0, atol=1e-9)


def plan(dynamics: Any, backend: Literal["native", "torch"]) -> Tensor:
    cost = QuadraticCost([1.0] * 3 + [0.1] * 2, [0.5] * 3 + [0.0] * 2)
    problem = ControlProblem(dynamics, cost, horizon=3, state_size=3, control_size=2, u_min=-1.0, u_max=1.0)
    return ILQR(problem, ILQROptions(backend=backend))(torch.tensor([[0.3, 0.4, -0.2]], dtype=FLOAT)).controls.detach()


@pytest.mark.parametrize(
    "dynamics",
    [
        Normalised().eval(),
        lambda x, u: 0.9 * x + first(u).to("cpu", torch.float64, False, True),
        lambda x, u: 0.9 * x + first(u).to(x),
    ],
)
def test_conversions_that_change_nothing_are_native(dynamics: Any) -> None:
    torch.testing.assert_close(plan(dynamics, "native"), plan(dynamics, "torch"), rtol=0, atol=1e-9)


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


def with_layer(layer: Any) -> nn.Module:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            moved: Tensor = 0.9 * x + 0.1 * self.layer(x) + u
            return moved

    return Model()


# torch's own, of TorchScript and its compiler; FutureWarning from 2.14 on
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("backend", ["auto", "torch"])
@pytest.mark.parametrize("whole", [False, True])
def test_compiled_modules_work_and_scripted_ones_are_refused(backend: Any, whole: bool) -> None:
    torch.manual_seed(0)
    layer, point = nn.Linear(2, 2).double(), torch.zeros(1, 2, dtype=torch.float64)

    def plan(remake: Callable[[nn.Module, tuple[Tensor, ...]], Any]) -> Tensor:
        one = copy.deepcopy(layer)
        dynamics = remake(with_layer(one), (point, point)) if whole else with_layer(remake(one, (point,)))
        problem = ControlProblem(dynamics, QuadraticCost([1.0] * 4, [0.5] * 4), horizon=3, state_size=2, control_size=2)
        return ILQR(problem, ILQROptions(backend=backend))(point + 0.3).controls.detach()

    expected = plan(lambda module, _: module)
    torch.testing.assert_close(plan(lambda module, _: torch.compile(module, backend="eager")), expected, rtol=0.0, atol=1e-8)
    for remake in (lambda module, _: torch.jit.script(module), lambda module, points: torch.jit.trace(module, points)):
        with pytest.raises(ValueError, match="expected a module of Python, got one of TorchScript"):
            plan(remake)


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


def test_a_number_that_is_written_as_text_names_its_line() -> None:
    def named(x: Tensor, u: Tensor) -> Tensor:
        return x + u * len(f"{x.mean():+.1f}")

    problem = ControlProblem(named, QuadraticCost([1.0] * 4, [0.0] * 4), horizon=2, state_size=2, control_size=2)
    assert re.search(
        r"Python or NumPy makes of a tensor's numbers has no native form, in .*test_tracing", explain(problem).reason
    )
