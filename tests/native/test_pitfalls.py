"""Where a trace could be wrong without a word: derivatives that are stopped or replaced, kinks, and what code is built from."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from problems import FLOAT
from torch import Tensor, nn

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Solution, Status

X0 = torch.tensor([[0.0, 0.0], [0.6, -0.4]], dtype=FLOAT)


def problem_of(dynamics: Callable[[Tensor, Tensor], Tensor]) -> ControlProblem:
    cost = QuadraticCost([1.0, 1.0, 0.1, 0.1], [0.5, -0.3, 0.0, 0.0])
    return ControlProblem(dynamics, cost, horizon=3, state_size=2, control_size=2, u_min=-1.0, u_max=1.0)


def solve(problem: ControlProblem, backend: Literal["auto", "native", "torch"]) -> tuple[Solution, Tensor]:
    x0 = X0.clone().requires_grad_()
    solution = ILQR(problem, ILQROptions(backend=backend, tolerance=1e-9))(x0)
    (gradient,) = torch.autograd.grad(solution.controls.square().sum(), x0)
    return solution, gradient


def check(problem: ControlProblem, backend: Literal["auto", "native"] = "native") -> None:
    (found, gradient), (truth, true_gradient) = solve(problem, backend), solve(problem, "torch")
    assert torch.equal(found.status, truth.status)
    torch.testing.assert_close(found.controls, truth.controls, rtol=0, atol=1e-8)
    torch.testing.assert_close(gradient, true_gradient, rtol=1e-8, atol=1e-8)


@torch.no_grad()
def speed(x: Tensor) -> Tensor:
    return (x * x).sum(-1, keepdim=True).sqrt()


def stopped(x: Tensor, u: Tensor) -> Tensor:
    with torch.no_grad():
        drag = 0.1 * x.square().sum(-1, keepdim=True)
    return 0.9 * x + u - drag * x - 0.01 * speed(x)


class StraightThrough(torch.autograd.Function):
    """Rounds, with the derivative of not rounding."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.round(10 * x) / 10

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a block without gradient": stopped,
    "softplus far out": lambda x, u: 0.9 * x + 0.1 * u + 1e-3 * F.softplus(x + 9.0, beta=100.0),
    "elu far out": lambda x, u: 0.9 * x + 0.1 * u + 1e-4 * F.elu(1000.0 * (x + 2.0)),
    "the largest of a dimension": lambda x, u: 0.9 * x + u + 0.1 * torch.cat((x, x), -1).max(-1, keepdim=True).values,
    "a parameter written over": lambda x, u: torch.zeros_like(x).copy_(u).add_(0.5).mul_(0.5) + 0.9 * x,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_derivatives_are_those_of_torch(name: str) -> None:
    check(problem_of(OPERATIONS[name]))


def test_a_norm_at_rest() -> None:
    """Its derivative there is zero, as torch has it; torch's second derivative is NaN, on which its line search fails."""
    problem = problem_of(lambda x, u: 0.9 * x + u - 0.1 * torch.linalg.vector_norm(x, dim=-1, keepdim=True) * x)
    found = ILQR(problem, ILQROptions(backend="native", tolerance=1e-9))(X0)
    assert found.converged.all()
    assert not found.singular.any()
    smooth = problem_of(lambda x, u: 0.9 * x + u - 0.1 * (x.square().sum(-1, keepdim=True) + 1e-24).sqrt() * x)
    torch.testing.assert_close(found.controls, solve(smooth, "torch")[0].controls, rtol=0, atol=1e-7)


def test_a_custom_derivative_takes_the_pytorch_path() -> None:
    problem = problem_of(lambda x, u: 0.9 * x + u + 0.01 * StraightThrough.apply(x))
    with pytest.raises(ValueError, match=r"in a custom autograd\.Function, whose backward only PyTorch follows"):
        solve(problem, "native")
    x0 = X0[1:]
    found, truth = (ILQR(problem, ILQROptions(backend=b))(x0).controls for b in ("auto", "torch"))
    assert torch.equal(found, truth)


def test_too_many_states_take_the_pytorch_path() -> None:
    n = 70
    cost = QuadraticCost([1.0] * n + [1.0], [0.1] * (n + 1))
    problem = ControlProblem(lambda x, u: 0.9 * x + u, cost, horizon=2, state_size=n, control_size=1)
    with pytest.raises(ValueError, match=r"n \+ m up to 64, got 71"):
        ILQR(problem, ILQROptions(backend="native"))(torch.zeros(1, n, dtype=FLOAT))
    assert ILQR(problem)(torch.zeros(1, n, dtype=FLOAT)).converged.all()


# What generated code is built from, and how it may change.


class Base(nn.Module):
    share = 0.9

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.share * x + u


class Derived(Base):
    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return super().forward(x, u) - 0.01 * x


def follow(problem: ControlProblem, change: Callable[[], None]) -> None:
    check(problem)
    before = solve(problem, "native")[0].controls
    change()
    check(problem)
    assert not torch.equal(solve(problem, "native")[0].controls, before)


def test_class_attributes_and_methods_of_bases(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = problem_of(Derived())
    follow(problem, lambda: monkeypatch.setattr(Base, "share", 0.7))
    follow(problem, lambda: monkeypatch.setattr(Base, "forward", lambda self, x, u: 0.5 * x + u))
    follow(problem, lambda: monkeypatch.setattr(Derived, "forward", lambda self, x, u: 0.3 * x + u))


def test_numbers_of_a_python_module_and_of_plain_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: Any = ModuleType("settings_of_a_user")
    monkeypatch.setitem(sys.modules, settings.__name__, settings)
    settings.share, objects = 0.9, SimpleNamespace(gain=1.0, history=[])

    class Slotted:
        __slots__ = ("drag",)

    slotted = Slotted()
    slotted.drag = np.float64(0.01)
    problem = problem_of(lambda x, u: settings.share * x + objects.gain * u - slotted.drag * x)
    follow(problem, lambda: setattr(settings, "share", 0.8))
    follow(problem, lambda: setattr(slotted, "drag", np.float64(0.2)))
    for gain in np.linspace(0.5, 0.9, 5):  # NumPy's numbers come and go at the same addresses
        follow(problem, lambda gain=gain: setattr(objects, "gain", gain))


def test_a_redefined_helper() -> None:
    scope: dict[str, Any] = {}
    exec("def helper(x): return 0.9 * x\ndef dynamics(x, u): return helper(x) + u", scope)
    problem = problem_of(scope["dynamics"])
    for share in (0.8, 0.7, 0.6, 0.5):
        follow(problem, lambda share=share: exec(f"def helper(x): return {share} * x", scope))


def test_a_module_in_a_closure() -> None:
    network = nn.Linear(2, 2, dtype=FLOAT).requires_grad_(False)
    problem = problem_of(lambda x, u: 0.5 * x + u + 0.1 * network(x))
    check(problem)
    for parameter in network.parameters():
        parameter.copy_(torch.full_like(parameter, 0.3))
    check(problem)
    network.weight = nn.Parameter(torch.full((2, 2), -0.4, dtype=FLOAT), requires_grad=False)
    check(problem)


def test_what_the_functions_do_not_read_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Counting(Base):
        calls = 0

    module = Counting()
    module.log = []
    problem = problem_of(module)
    check(problem)
    programs = len(vars(problem)["_native_programs"])
    for call in range(5):
        module.calls = call
        module.log.append(call)
        check(problem)
    assert len(vars(problem)["_native_programs"]) == programs


def test_a_later_process_compiles_nothing(tmp_path: Path) -> None:
    code = (
        "import torch; from dilqr_rl import *; from dilqr_rl.envs import PendulumDynamics\n"
        "cost = QuadraticCost([1.0, 1.0, 0.1, 0.001], [1.0, 0.0, 0.0, 0.0])\n"
        "problem = ControlProblem(PendulumDynamics(), cost, horizon=5, state_size=3, control_size=1, u_min=-2.0, u_max=2.0)\n"
        "ILQR(problem)(torch.tensor([[0.8, 0.6, 0.1]])).controls.sum().backward()\n"
        "compile_dynamics(PendulumDynamics())\n"
    )
    lines = [
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True).stderr
        for _ in range(2)
    ]
    assert "compiling" not in lines[1]


class Scattered(nn.Module):
    """Reads its settings in every way but by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.coef0, self.coef1, self.late = 0.9, 0.1, 1.0
        self.functions = [lambda x: self.late * x]
        self.recent = deque([0.01])

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        first, second = (getattr(self, f"coef{i}") for i in range(2))
        return first * self.functions[0](x) + second * u - self.recent[0] * x


def test_settings_read_without_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Scattered()
    problem = problem_of(module)
    follow(problem, lambda: setattr(module, "coef0", 0.7))
    follow(problem, lambda: setattr(module, "coef1", 0.3))
    follow(problem, lambda: setattr(module, "late", 0.8))
    follow(problem, lambda: module.recent.appendleft(0.2))
    monkeypatch.setenv("SHARE_OF_A_USER", "0.9")
    problem = problem_of(lambda x, u: float(os.environ["SHARE_OF_A_USER"]) * x + u)
    follow(problem, lambda: monkeypatch.setenv("SHARE_OF_A_USER", "0.5"))


def test_nothing_times_nan_is_nan() -> None:
    problem = problem_of(lambda x, u: 0.9 * x + u + 0.0 * torch.log(x + 0.5))
    x0 = torch.tensor([[0.1, 0.2], [-0.7, 0.0]], dtype=FLOAT)
    for backend in ("native", "torch"):
        assert ILQR(problem, ILQROptions(backend=backend))(x0).status.tolist() == [Status.CONVERGED, Status.NONFINITE]


def test_a_standard_deviation_of_equal_numbers() -> None:
    problem = problem_of(lambda x, u: 0.9 * x + u - 0.1 * x.std(-1, keepdim=True) * x)
    assert ILQR(problem, ILQROptions(backend="native"))(torch.zeros(1, 2, dtype=FLOAT)).converged.all()


def test_masks_keep_infinite_slopes_out() -> None:
    check(problem_of(lambda x, u: 0.9 * x + 0.1 * u + 0.1 * (x - 0.3).relu().sqrt()))


def test_numbers_taken_out_of_a_tensor() -> None:
    share = torch.tensor([0.9, 0.1], dtype=FLOAT)
    problem = problem_of(lambda x, u: share.tolist()[0] * x + u)
    follow(problem, lambda: share.mul_(0.5))
