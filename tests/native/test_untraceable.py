"""What can't be traced: the PyTorch path's result and one line in the log, or a ValueError."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from packaging.version import Version
from problems import FLOAT
from torch import Tensor, nn
from traced_operations import M, Operation, V, first, spread
from traced_problems import Backend, problem_of, solve, starts

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, explain
from dilqr_rl.native.programs import trace_problem

GRID = torch.tensor([-0.5, 0.5], dtype=FLOAT)


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
    return rf"test_untraceable\.py\D{{1,10}}{line}\b"


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
    with pytest.raises(
        ValueError, match=r"^torch\.cond has no native form; write torch\.where\(mask, a, b\) .*test_untraceable"
    ):
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
    r"indexing with an index or mask that depends on the state .* write torch\.where\(mask, a, b\), in .*test_untraceable\.py:"
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


def test_a_number_that_is_written_as_text_names_its_line() -> None:
    def named(x: Tensor, u: Tensor) -> Tensor:
        return x + u * len(f"{x.mean():+.1f}")

    problem = ControlProblem(named, QuadraticCost([1.0] * 4, [0.0] * 4), horizon=2, state_size=2, control_size=2)
    assert re.search(
        r"Python or NumPy makes of a tensor's numbers has no native form, in .*test_untraceable", explain(problem).reason
    )
