"""What can be traced, one operation at a time; what can't, and says so; and what may change between two calls."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from interpreted_code import differences
from problems import FLOAT, normal, seeded_network, uniform
from torch import Tensor, nn
from traced_operations import NUMBERS, OPERATIONS, M, Operation, V, first, spread

from dilqr_rl import ILQR, ControlProblem, ILQROptions, Solution

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
        a, b = x[..., 0] + self.shift, u[..., 0] + 0.3 * x[..., 1]
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


# What can't be traced: the PyTorch path's result and one line, or a ValueError.


def branch(x: Tensor, u: Tensor) -> Tensor:
    if x[..., 0].sum() > 0:  # here
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


def fourier(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x + 0.1 * torch.fft.fft(x).abs() + first(u)  # here


def over_the_batch(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x - 0.1 * x.mean(0, keepdim=True) + first(u)  # here


def batch_size(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x + first(u) / x.shape[0]  # here


def noise(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x + 1e-9 * torch.randn_like(x) + first(u)  # here


def dropout(x: Tensor, u: Tensor) -> Tensor:
    return 0.8 * x + 1e-9 * F.dropout(x, 0.5) + first(u)  # here


UNTRACEABLE = (branch, item, number, listed, checked, decomposition, fourier, over_the_batch, batch_size, noise, dropout)
OF_THE_BATCH = (over_the_batch, batch_size)  # only their results show what they are
NAMED = {  # a word of the operation that the message must have
    "decomposition": "svd",
    "fourier": "fft",
    "over_the_batch": "batch",
    "batch_size": "batch",
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
    if function not in OF_THE_BATCH:
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
    if function not in OF_THE_BATCH:
        assert re.search(place_of(function), str(error.value)), str(error.value)


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


# What may change between two calls, and must be seen.

GLOBAL_GAIN = 0.5


class Changing(nn.Module):
    """Reads everything that a user may set: numbers, a submodule, its mode, a closure, a global, a tensor of its own, a list."""

    def __init__(self) -> None:
        super().__init__()
        self.time_step, self.settings, self.factors = 0.2, {"drag": 0.1}, [0.3, 0.4]
        self.layer: nn.Module = nn.Sequential(nn.Linear(3, 1, dtype=FLOAT), nn.Tanh()).requires_grad_(False)
        self.layer.get_parameter("0.weight").copy_(V)
        self.layer.get_parameter("0.bias").fill_(0.1)
        self.activation: Callable[[Tensor], Tensor] = torch.tanh
        self.closed = V.clone()
        self.switch: str | None = None
        self.order = torch.tensor([0, 1, 2])
        self.array = np.array([0.1, 0.2, 0.3])
        self.power = self._make_power(2)

    @staticmethod
    def _make_power(exponent: int) -> Callable[[Tensor], Tensor]:
        def power(x: Tensor) -> Tensor:
            return x**exponent

        return power

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        push = torch.cat((u, u[..., :1]), dim=-1) * GLOBAL_GAIN
        slope = self.activation(self.layer(x)) - self.settings["drag"] * x + self.closed * push + sum(self.factors) * x.sin()
        slope = slope + 0.1 * self.power(x[..., self.order]) + torch.as_tensor(self.array) * x
        if self.training:
            slope = slope * 0.9
        if self.switch == "on":
            slope = slope + 0.2
        return x + self.time_step * slope


class Settings:
    gain = 0.4


SETTINGS = Settings()


def set_global(_: Changing) -> None:
    globals()["GLOBAL_GAIN"] = 0.9


def replace_layer(module: Changing) -> None:
    module.layer = nn.Linear(3, 3, dtype=FLOAT)
    for place, weight in enumerate(module.layer.parameters()):
        weight.data.copy_(0.3 * normal(*weight.shape, seed=place))


def set_part(name: str, change: Callable[[Any], Any]) -> Callable[[Changing], None]:
    return lambda module: setattr(module, name, change(getattr(module, name)))


CHANGES: dict[str, Callable[[Changing], object]] = {
    "a number": set_part("time_step", lambda _: 0.1),
    "a number within a dict": lambda module: module.settings.update(drag=0.4),
    "a number within a list": lambda module: module.factors.append(0.2),
    "the mode": lambda module: module.eval(),
    "a function": set_part("activation", lambda _: torch.sin),
    "a function's closure": set_part("power", lambda _: Changing._make_power(3)),
    "a text": set_part("switch", lambda _: "on"),
    "a submodule": replace_layer,
    "a submodule's layer": lambda module: setattr(module.layer, "1", nn.ReLU()),
    "a weight in place": lambda module: module.layer.get_parameter("0.weight").mul_(-1.0),
    "a weight as another tensor": lambda module: setattr(
        module.layer.get_submodule("0"), "bias", nn.Parameter(torch.ones(1, dtype=FLOAT), False)
    ),
    "a tensor in place": lambda module: module.closed.mul_(-2.0),
    "a tensor's data": lambda module: setattr(module.closed, "data", torch.ones(3, dtype=FLOAT)),
    "another tensor": set_part("closed", lambda _: torch.ones(3, dtype=FLOAT)),
    "an index tensor in place": lambda module: module.order.copy_(torch.tensor([2, 0, 1])),
    "an array in place": lambda module: module.array.__setitem__(0, 2.0),
    "a global": set_global,
    "the forward method": lambda module: setattr(module, "forward", lambda x, u: 0.5 * x + first(u)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_state_is_seen(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "GLOBAL_GAIN", 0.5)
    problem, x0 = problem_of(Changing()), starts(4)
    planners = {backend: ILQR(problem, ILQROptions(tolerance=1e-11, backend=backend)) for backend in ("native", "torch")}
    before = {backend: planner(x0).controls for backend, planner in planners.items()}
    torch.testing.assert_close(before["native"], before["torch"], rtol=1e-9, atol=1e-9)
    CHANGES[change](problem.dynamics)
    after = {backend: planner(x0).controls for backend, planner in planners.items()}
    assert not torch.allclose(before["torch"], after["torch"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(after["native"], after["torch"], rtol=1e-9, atol=1e-9)


def test_what_a_plain_function_reads_may_change_too(monkeypatch: pytest.MonkeyPatch) -> None:
    h, weights, matrix = 0.3, [1.0, 2.0, 3.0], M.clone()

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        return 0.8 * x + h * torch.tensor(weights, dtype=FLOAT) * first(u) + 0.1 * x @ matrix + SETTINGS.gain * x.sin()

    problem, x0 = problem_of(dynamics), starts(4)

    def assert_same() -> Tensor:
        native, reference = (solve(problem, x0, backend).controls for backend in ("native", "torch"))
        torch.testing.assert_close(native, reference, rtol=1e-9, atol=1e-9)
        return reference

    results = [assert_same()]
    h = 0.1
    results.append(assert_same())
    weights[1] = -1.0
    results.append(assert_same())
    matrix.neg_()
    results.append(assert_same())
    matrix = torch.eye(3, dtype=FLOAT)
    results.append(assert_same())
    monkeypatch.setattr(SETTINGS, "gain", 0.1)
    results.append(assert_same())
    assert all(not torch.allclose(one, other) for one, other in zip(results[1:], results[:-1], strict=True))


def test_a_change_between_the_solve_and_its_gradient_does_not_mix_two_models() -> None:
    """As in the PyTorch path for tensors: the gradient is that of the values solved with, or autograd refuses."""
    module = Changing()
    problem = problem_of(module)
    x0 = starts(3).requires_grad_()
    expected = torch.autograd.grad(solve(problem, x0, "native").controls.sum(), x0)[0]
    solution = solve(problem, x0, "native")
    solve(problem, starts(7, seed=1), "native", params={"u_max": torch.tensor([0.2, 0.1])})  # another solve in between
    torch.testing.assert_close(torch.autograd.grad(solution.controls.sum(), x0)[0], expected, rtol=0.0, atol=0.0)


def test_training_mode_with_dropout_is_refused_and_evaluation_mode_runs() -> None:
    module = nn.Module()
    module.drop = nn.Dropout(0.5)
    module.forward = lambda x, u: 0.8 * x + 0.3 * module.drop(x.sin()) + first(u)  # type: ignore[method-assign]
    problem = problem_of(module)
    planner = ILQR(problem, ILQROptions(tolerance=1e-11, backend="native"))
    with pytest.raises(ValueError, match=r"dropout|bernoulli|rand"):
        planner(starts(3))
    module.eval()
    torch.testing.assert_close(planner(starts(3)).controls, solve(problem, starts(3), "torch").controls, rtol=1e-9, atol=1e-9)
    module.train()
    with pytest.raises(ValueError, match=r"dropout|bernoulli|rand"):
        planner(starts(3))


# What never compiles again.


def compilations(told: list[str]) -> list[str]:
    return [line for line in told if "compiling" in line.lower()]


def test_values_are_arguments_and_compile_nothing(lines: Callable[[], list[str]]) -> None:
    class Learnt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A, self.b = nn.Parameter(0.3 * M), nn.Parameter(V.clone())
            self.register_buffer("wind", torch.zeros(3, dtype=FLOAT))
            self.layer = seeded_network(5, 9, 3, seed=9)

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return x @ self.A + self.b * first(u) + self.get_buffer("wind") + 0.1 * self.layer(torch.cat((x, u), dim=-1))

    problem = problem_of(Learnt())
    planner = ILQR(problem, ILQROptions(backend="native", tolerance=1e-11))
    planner(starts(3)).controls.sum().backward()
    count = len(compilations(lines()))
    optimiser = torch.optim.SGD(problem.parameters(), lr=0.05)
    for step in range(3):
        optimiser.zero_grad()
        planner(starts(4 + step, seed=step)).controls.square().sum().backward()
        optimiser.step()
    with torch.no_grad():
        problem.get_parameter("dynamics.b")[1] = 0.7
        problem.get_buffer("dynamics.wind").fill_(0.1)
    b, A = V + 0.1 * normal(5, 3, seed=3), 0.3 * M + 0.1 * normal(5, 3, 3, 3, seed=4)
    for params in (
        {"dynamics.b": V.neg()},
        {"dynamics.b": b},
        {"dynamics.A": A},
        {"dynamics.A": A, "dynamics.b": b, "u_max": A[..., 0, :2].abs()},
    ):
        native, reference = (
            ILQR(problem, ILQROptions(backend=backend, tolerance=1e-11))(starts(5), params=params)
            for backend in ("native", "torch")
        )
        torch.testing.assert_close(native.controls, reference.controls, rtol=1e-8, atol=1e-8)
    planner(starts(1)[0])
    planner(starts(300))
    for gradient in ("implicit", "diffmpc"):
        ILQR(problem, ILQROptions(backend="native", max_iterations=7), gradient=gradient)(starts(2)).cost.sum().backward()  # type: ignore[arg-type]
    other = ControlProblem(problem.dynamics, problem.stage_cost, horizon=9, state_size=3, control_size=2, u_min=-0.6, u_max=0.5)
    ILQR(other, ILQROptions(backend="native"))(starts(2))
    with torch.no_grad():
        planner(starts(2).float(), u_init=torch.ones(3, 2))
    assert len(compilations(lines())) == count


def test_two_problems_of_one_structure_share_their_code(lines: Callable[[], list[str]]) -> None:
    def build(seed: int) -> ControlProblem:
        return problem_of(seeded_dynamics(seed))

    first_controls = solve(build(1), starts(2), "native").controls
    count = len(compilations(lines()))
    for seed in (2, 3):
        problem = build(seed)
        native, reference = (solve(problem, starts(2), backend).controls for backend in ("native", "torch"))
        torch.testing.assert_close(native, reference, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(native, first_controls)
    assert len(compilations(lines())) == count


def seeded_dynamics(seed: int) -> nn.Module:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = seeded_network(5, 7, 3, seed=seed)

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return 0.5 * x + self.layer(torch.cat((x, u), dim=-1))

    return Network()
