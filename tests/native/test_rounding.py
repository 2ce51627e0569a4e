"""What rounding alone makes of a result drops no native code: people's physics go far while they are learnt."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor, nn

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Status
from dilqr_rl.consistency import is_rounding

ANGLES = torch.linspace(1e11, 3e11, 20, dtype=torch.float64)


class Spinner(nn.Module):
    """A pendulum whose rate grows by a factor of `growth` in every step: after a few, nobody knows its angle."""

    def __init__(self, growth: float) -> None:
        super().__init__()
        self.growth = nn.Parameter(torch.tensor(growth, dtype=torch.float64))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        c, s, rate = x.unbind(-1)
        rate = self.growth * rate + u[..., 0] / 3.0
        angle = torch.atan2(s, c) + rate * 1.1
        return torch.stack((torch.cos(angle), torch.sin(angle), rate), -1)


def test_physics_that_run_away_stay_native(caplog: pytest.LogCaptureFixture) -> None:
    problem = ControlProblem(
        Spinner(30.0),
        QuadraticCost([1.0, 1.0, 1e-30, 1e-3], [1.0, 0.0, 0.0, 0.0]),
        horizon=12,
        state_size=3,
        control_size=1,
        u_min=-1.0,
        u_max=1.0,
    )
    planner = ILQR(problem, ILQROptions(max_iterations=20))
    x0 = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -3.0], [1.0, 0.0, 0.3]], dtype=torch.float64)
    with caplog.at_level(logging.WARNING, "dilqr_rl"):
        for _ in range(10):
            solution = planner(x0)
            planner(x0[:1]).cost.sum().backward()
    assert not [record.message for record in caplog.records if "with PyTorch" in record.message]
    assert int(Status.NONFINITE) not in solution.status.tolist()
    assert float(solution.states[..., 2].detach().abs().max()) > 1e15  # the case that is meant


@pytest.mark.parametrize(("ulps", "expected"), [(0, True), (2, True), (4, True), (1e5, False)])
def test_differences_are_compared_with_what_rounding_makes_there(ulps: float, expected: bool) -> None:
    found = torch.sin(ANGLES * (1 + ulps * torch.finfo(torch.float64).eps))
    assert is_rounding([found], lambda x: [torch.sin(x)], [ANGLES]) is expected


def test_no_difference_of_a_smooth_function_is_rounding() -> None:
    x = torch.linspace(-3.0, 3.0, 50, dtype=torch.float64)
    assert is_rounding([torch.sin(x) + 1e-15], lambda x: [torch.sin(x)], [x])
    assert not is_rounding([torch.sin(x) + 1e-7], lambda x: [torch.sin(x)], [x])
    assert not is_rounding([torch.sin(x) * torch.nan], lambda x: [torch.sin(x)], [x])


def test_a_function_that_changes_its_mind_has_no_excuse() -> None:
    calls: list[int] = []

    def counted(x: Tensor) -> list[Tensor]:
        calls.append(1)
        return [x * len(calls)]

    assert not is_rounding([5 * ANGLES], counted, [ANGLES])
