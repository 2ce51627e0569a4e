"""Functions that fail or give something else than they should: each error says which, what came, and what to write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import FLOAT, smallest
from torch import Tensor
from torch.nn.functional import conv1d

from dilqr_rl import ILQR


def plan_with(**changes: Any) -> Any:
    problem = smallest(**changes)
    return ILQR(problem)(torch.ones(2, problem.state_size, dtype=FLOAT))


SQUARE = torch.tensor([[0.9, 0.1], [0.0, 0.8]], dtype=FLOAT)
SINGLE = torch.eye(1)  # float32

CASES: dict[str, tuple[Callable[[], object], str]] = {  # the door tries functions on one problem and one step
    "dynamics' shape": (
        lambda: plan_with(dynamics=lambda x, u: torch.cat((x, u), dim=-1)),
        r"dynamics: expected a result of shape \(2, 1\) for arguments \(2, 1\), \(2, 1\), got \(2, 2\)\.",
    ),
    "dynamics' type": (
        lambda: plan_with(dynamics=lambda x, u: (x, u)),
        r"dynamics: expected a result of shape \(2, 1\) for arguments \(2, 1\), \(2, 1\), got tuple\.",
    ),
    "cost not summed": (
        lambda: plan_with(stage_cost=lambda x, u: x.square()),
        r"stage_cost: expected a result of shape \(2, 1\) for arguments \(2, 1, 1\), \(2, 1, 1\), got \(2, 1, 1\)\.",
    ),
    "cost summed over all": (
        lambda: plan_with(stage_cost=lambda x, u: x.square().sum()),
        r"stage_cost: expected a result of shape \(2, 1\) for arguments \(2, 1, 1\), \(2, 1, 1\), got \(\)\.",
    ),
    "terminal cost's shape": (
        lambda: plan_with(terminal_cost=lambda x: x),
        r"terminal_cost: expected a result of shape \(2,\) for arguments \(2, 1\), got \(2, 1\)\.",
    ),
    "sizes that don't fit": (
        lambda: plan_with(dynamics=lambda x, u: x @ torch.ones(2, 2, dtype=FLOAT)),
        r"dynamics: expected a function of x \(\.\.\., n\) and u \(\.\.\., m\) with any leading dimensions, but arguments \(2, 1\), \(2, 1\) "
        r"gave: .*\. Do its sizes fit the problem's state_size and control_size\?",
    ),
    "dynamics of one state, by a matrix": (
        lambda: plan_with(dynamics=lambda x, u: SQUARE @ x + u, state_size=2, control_size=2),
        r"dynamics: expected a function of x .* with any leading dimensions, but .* gave: .* It would do for one state \(n,\), but "
        r"states come as a batch \(B, n\), controls as \(B, m\): write x @ A\.mT for A @ x, x\[\.\.\., 0\] for x\[0\]",
    ),
    "dynamics of one state, by number": (
        lambda: plan_with(dynamics=lambda x, u: torch.stack((x[0] + u[0], x[1])), state_size=2, control_size=2),
        r"dynamics: expected a result of shape .*, got .*\. It would do for one state",
    ),
    "dynamics of one state that broadcast": (
        lambda: plan_with(dynamics=lambda x, u: x + u * torch.sin(x[0]), state_size=2, control_size=2),
        r"dynamics: its value for one problem depends on .* index from the end \(x\[\.\.\., 0\] for x\[0\]",
    ),
    "costs of one state": (
        lambda: plan_with(stage_cost=lambda x, u: x @ x + u @ u, state_size=2, control_size=2),
        r"stage_cost: expected a (function|result) of .* It would do for one state .*\(x \* x\)\.sum\(-1\) for x @ x",
    ),
    "a terminal cost of one state": (
        lambda: plan_with(terminal_cost=lambda x: torch.dot(x, x)),
        r"terminal_cost: expected a function of x .* It would do for one state",
    ),
    "a branch on one state": (
        lambda: plan_with(dynamics=lambda x, u: x + u if x[0] > 0 else x - u, state_size=2, control_size=2),
        r"dynamics: expected a function of .* ambiguous\. It would do for one state .*torch\.where\(mask, a, b\) for an if",
    ),
    "a layer of rows": (
        lambda: plan_with(
            stage_cost=lambda x, u: conv1d(x.unsqueeze(-2), torch.ones(1, 1, 1, dtype=FLOAT)).sum((-2, -1)) + u.sum(-1)
        ),
        r"stage_cost: expected a function of .* A layer that takes one axis of rows needs them flattened",
    ),
    "NumPy's product": (
        lambda: plan_with(dynamics=lambda x, u: SQUARE.numpy() @ x, state_size=2, control_size=2),
        r"dynamics: expected PyTorch operations, .* got NumPy's .* or wrap a step in NumPy as Simulator\(step\)\.",
    ),
    "NumPy's array": (
        lambda: plan_with(dynamics=lambda x, u: x.detach().numpy()),
        r"dynamics: expected a result of shape .* got ndarray\. Write it with torch, or wrap a step in NumPy as Simulator\(step\)\.",
    ),
    "NumPy's array of costs": (
        lambda: plan_with(stage_cost=lambda x, u: x.detach().sum(-1).numpy()),
        r"stage_cost: expected a result of shape .* got ndarray\. Write it with torch\.$",
    ),
    "a slope without enable_grad": (
        lambda: plan_with(dynamics=lambda x, u: x + u - torch.autograd.grad((x**4).sum(), x, create_graph=True)[0]),
        r"dynamics: .* It takes a gradient itself, .*write `with torch\.enable_grad\(\):` around it",
    ),
    "dynamics' precision": (
        lambda: plan_with(dynamics=lambda x, u: (x + u).float()),
        r"dynamics: expected a result of torch\.float64, in which the solver computes, got torch\.float32\.",
    ),
    "float32 in a closure": (
        lambda: plan_with(dynamics=lambda x, u: x @ SINGLE + u),
        r"dynamics: mixes float64, in which the solver computes, with another type .* Hold its tensors as parameters or buffers",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_functions_are_refused_by_name(name: str) -> None:
    act, message = CASES[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        act()


def test_the_functions_results_are_checked_without_gradients_too() -> None:
    message = r"^dynamics: expected a result of shape \(2, 1\) for arguments \(2, 1\), \(2, 1\), got \(2, 2\)\."
    with torch.no_grad(), pytest.raises(ValueError, match=message):
        plan_with(dynamics=lambda x, u: torch.cat((x, u), dim=-1))


def test_an_error_inside_a_function_comes_through_as_it_is() -> None:
    def broken(x: Tensor, u: Tensor) -> Tensor:
        raise KeyError("the user's own")

    with pytest.raises(KeyError, match="the user's own"):
        plan_with(dynamics=broken)
