"""What can be traced, one operation at a time."""

from __future__ import annotations

import pytest
import torch
from interpreted_code import differences
from problems import FLOAT, normal
from torch import Tensor, nn
from traced_operations import NUMBERS, OPERATIONS, Operation, V, first
from traced_problems import problem_of, solve, starts

from dilqr_rl import ControlProblem


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
