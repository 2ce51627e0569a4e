"""What may change between two calls: settings, which are built into the code, and values, which are its arguments."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from problems import FLOAT, normal, seeded_network, uniform
from torch import Tensor, nn
from traced_operations import M, V, first

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Solution


def problem_of(dynamics: Any) -> ControlProblem:
    def tame(x: Tensor, u: Tensor) -> Tensor:
        return (x - 0.2).square().sum(-1) + 0.5 * u.square().sum(-1)

    return ControlProblem(dynamics, tame, horizon=3, state_size=3, control_size=2, u_min=-0.6, u_max=0.5)


def solve(problem: ControlProblem, x0: Tensor, backend: Literal["native", "torch"], **arguments: Any) -> Solution:
    return ILQR(problem, ILQROptions(tolerance=1e-11, backend=backend))(x0, **arguments)


def starts(count: int, seed: int = 0) -> Tensor:
    return uniform(count, seed, (-1.0, 1.0), (-1.0, 1.0), (-1.0, 1.0))


# Settings, which must be seen.

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


# Values, which compile nothing.


@pytest.fixture
def compilations(caplog: pytest.LogCaptureFixture) -> Callable[[], int]:
    """How often a person has been told that something compiles."""
    caplog.set_level(logging.WARNING, logger="dilqr_rl")
    return lambda: sum("compiling" in record.getMessage() for record in caplog.records)


def test_values_are_arguments_and_compile_nothing(compilations: Callable[[], int]) -> None:
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
    count = compilations()
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
    assert compilations() == count


def test_two_problems_of_one_structure_share_their_code(compilations: Callable[[], int]) -> None:
    def build(seed: int) -> ControlProblem:
        return problem_of(seeded_dynamics(seed))

    first_controls = solve(build(1), starts(2), "native").controls
    count = compilations()
    for seed in (2, 3):
        problem = build(seed)
        native, reference = (solve(problem, starts(2), backend).controls for backend in ("native", "torch"))
        torch.testing.assert_close(native, reference, rtol=1e-9, atol=1e-9)
        assert not torch.allclose(native, first_controls)
    assert compilations() == count


def seeded_dynamics(seed: int) -> nn.Module:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = seeded_network(5, 7, 3, seed=seed)

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return 0.5 * x + self.layer(torch.cat((x, u), dim=-1))

    return Network()


class _Slots:
    __slots__ = ("first", "second")


class _ReadsSlots(torch.nn.Module):
    def __init__(self, held: _Slots) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        return (self.held.second if hasattr(self.held, "second") else self.held.first) * x + u


def _linear(dynamics: torch.nn.Module) -> ControlProblem:
    return ControlProblem(dynamics, QuadraticCost([1.0, 1.0], [0.0, 0.0]), horizon=3, state_size=1, control_size=1)


def test_a_slot_that_is_filled_later_is_noticed() -> None:
    held = _Slots()
    held.first = 0.5
    problem, x0 = _linear(_ReadsSlots(held)), torch.ones(1, 1, dtype=torch.float64)
    before = ILQR(problem)(x0).cost
    held.second = 0.9
    after = ILQR(problem)(x0).cost
    assert after > before
    torch.testing.assert_close(after, ILQR(problem, ILQROptions(backend="torch"))(x0).cost)


def test_a_shallow_copy_with_other_dynamics_is_another_problem() -> None:
    first, second = _Slots(), _Slots()
    first.first, second.first = 0.5, 0.9
    problem, x0 = _linear(_ReadsSlots(first)), torch.ones(1, 1, dtype=torch.float64)
    before = ILQR(problem)(x0).cost
    other = copy.copy(problem)
    other._modules = dict(other._modules)
    other.dynamics = _ReadsSlots(second)
    torch.testing.assert_close(ILQR(other)(x0).cost, ILQR(other, ILQROptions(backend="torch"))(x0).cost)
    torch.testing.assert_close(ILQR(problem)(x0).cost, before)
