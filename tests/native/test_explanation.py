"""Which path a problem takes, told before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import MODELS
from problems import CASES
from torch import Tensor, nn

from dilqr_rl import ControlProblem, QuadraticCost, Simulator, explain
from dilqr_rl.cli import main


def cost(x: Tensor, u: Tensor) -> Tensor:
    return (x * x).sum(-1) + (u * u).sum(-1)


def problem(dynamics: Any) -> ControlProblem:
    return ControlProblem(dynamics, cost, horizon=3, state_size=2, control_size=1)


@pytest.mark.parametrize("case", [*CASES, *MODELS], ids=lambda case: case.name)
def test_the_models_of_the_agreement_tests_are_native(case: Any) -> None:
    one, start = case.build(5), case.starts(2, 3)
    told = explain(one, start[0])
    assert told.native
    assert told.reason == ""
    assert told.lines > 10
    assert told.parameters == sum(tensor.numel() for tensor in (*one.parameters(), *one.buffers()))
    assert str(told) == f"native: {told.lines} lines of code to compile, {told.parameters} parameters as arguments"


def branch(x: Tensor, u: Tensor) -> Tensor:
    return x + u if x.abs().max() < 1e9 else x - u  # the line that is told


def inverse(x: Tensor, u: Tensor) -> Tensor:
    twice = torch.cat((x, x), -1)
    matrix = torch.eye(4, dtype=x.dtype) + twice.unsqueeze(-1) * twice.unsqueeze(-2)
    return torch.linalg.solve(matrix, twice)[..., :2] + u


@pytest.mark.parametrize(
    ("dynamics", "words"),
    [
        (branch, ("test_explanation.py:",)),
        (inverse, ("linalg_solve of a matrix 4 by 4, above 3 by 3, has no native form", "test_explanation.py:")),
        (Simulator(lambda x, u: x), ("Simulator", "runs on the PyTorch path")),
        (lambda x, u: torch.as_tensor(x.detach().numpy()), ("test_explanation.py:", "a step in NumPy is for a Simulator")),
        (lambda x, u: x + u * torch.rand(()), ("random numbers", "test_explanation.py:")),
    ],
)
def test_what_stands_in_the_way_is_named_with_its_line(dynamics: Callable[..., Any], words: tuple[str, ...]) -> None:
    told = explain(problem(dynamics))
    assert not told.native
    assert told.lines == 0
    assert all(word in told.reason for word in words), told.reason
    assert str(told) == f"PyTorch, which is slower than native code: {told.reason}"


def test_sizes_that_are_too_large_are_told() -> None:
    large = ControlProblem(lambda x, u: x + u, cost, horizon=2, state_size=64, control_size=1)
    assert explain(large).reason == "native code is for n + m up to 64, got 65"


def test_what_cannot_be_watched_is_told() -> None:
    numbers = iter(range(10**6))
    told = explain(problem(lambda x, u: x + u + 0.0 * next(numbers)))
    assert not told.native
    assert "iterator" in told.reason


def test_nothing_is_compiled(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double().requires_grad_(False)
    assert explain(problem(lambda x, u: x + net(torch.cat((x, u), -1)))).native
    assert not caplog.messages


def test_what_a_planner_would_refuse_is_refused() -> None:
    with pytest.raises(ValueError, match="dynamics: expected a result of shape"):
        explain(problem(lambda x, u: x[..., :1]))
    with pytest.raises(ValueError, match="can't be differentiated by PyTorch: derivative for aten::floor_divide is not"):
        explain(problem(lambda x, u: x // 0.3 + u))
    with pytest.raises(ValueError, match=r"dynamics: expected PyTorch operations, .* got NumPy's"):
        explain(problem(lambda x, u: torch.as_tensor(np.sin(x.numpy())) + u))
    net = nn.Linear(2, 2).double()
    with pytest.raises(ValueError, match="dynamics: depends on a tensor that requires a gradient but is no parameter"):
        explain(problem(lambda x, u: net(x) + u))
    with torch.no_grad():
        assert explain(problem(lambda x, u: net(x) + u)).native
    with pytest.raises(ValueError, match=r"x0: expected a tensor \(2,\), got \(3,\)"):
        explain(problem(branch), torch.zeros(3))
    with pytest.raises(ValueError, match="problem: expected a ControlProblem, got QuadraticCost"):
        explain(QuadraticCost([1.0], [0.0]))  # type: ignore[arg-type]


def test_the_command_tells_it(capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "Pendulum-v1"])
    assert capsys.readouterr().out.startswith("Pendulum-v1: native: ")
