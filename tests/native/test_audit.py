"""Native code is held against the functions it was made from, while it is in use: what it finds, and what it costs."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch
from problems import FLOAT
from torch import Tensor

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Solution, compile_dynamics, planner
from dilqr_rl.native import audit
from dilqr_rl.native.audit import Audit

X0 = torch.tensor([[0.3, 0.4], [-0.5, 0.2]], dtype=FLOAT)


def problem_of(dynamics: Any) -> ControlProblem:
    cost = QuadraticCost([1.0, 1.0, 0.1, 0.1], [0.5, 0.5, 0.0, 0.0])
    return ControlProblem(dynamics, cost, horizon=3, state_size=2, control_size=2, u_min=-1.0, u_max=1.0)


WRITABLE = bytearray(np.full(100_000, 0.9).tobytes())
TABLE = np.frombuffer(WRITABLE)  # too large for the watch, and, as far as NumPy knows,
TABLE.setflags(write=False)  # nobody can write into it


def set_table(number: float) -> None:
    memoryview(WRITABLE).cast("d")[7] = number


def by_table(x: Tensor, u: Tensor) -> Tensor:
    return TABLE[7] * x + u


def test_what_no_watch_sees_the_audit_finds(caplog: pytest.LogCaptureFixture) -> None:
    planners = {backend: ILQR(problem_of(by_table), ILQROptions(backend=backend)) for backend in ("auto", "native", "torch")}
    step = compile_dynamics(by_table, state_size=2, control_size=2)
    state, control = X0.numpy()
    try:
        for backend in ("auto", "native"):
            planners[backend](X0)
        assert step.native
        step(state, control)
        set_table(0.4)
        with caplog.at_level(logging.WARNING, logger="dilqr_rl"):
            found = planners["auto"](X0).controls
            np.testing.assert_allclose(step(state, control), 0.4 * state + control, rtol=1e-15)
        torch.testing.assert_close(found, planners["torch"](X0).controls, rtol=0, atol=1e-9)
        assert "its dynamics gave other results than native code that was made from them" in caplog.text
        assert "by_table" in caplog.text
        assert not step.native
        set_table(0.7)
        with pytest.raises(ValueError, match=r'backend: "native" is not possible for .*its dynamics gave other results'):
            planners["native"](X0)
    finally:
        set_table(0.9)


class Time:
    """A clock that is set."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(audit, "time", clock)
    return clock


def test_the_audit_takes_two_percent_of_the_time(clock: Time) -> None:
    """100,000 uses of 0.2 ms, and looks of 4 ms."""
    looks, audit = 0, Audit()
    for use in range(100_000):
        if audit.due(2e-4):
            looks += use >= 16
            audit.look(lambda: clock.passes(4e-3))
    assert 0.019 < looks * 4e-3 / (100_000 * 2e-4) < 0.021


def test_the_audit_waits_for_room(clock: Time) -> None:
    audit = Audit()
    assert audit.due(1e-3, room=1e-4)  # what a look costs isn't known yet
    audit.look(lambda: clock.passes(4e-3))
    assert not audit.due(1e-3, room=3e-3)
    assert audit.due(1e-3, room=6e-3)


def test_in_a_planner_the_audit_waits_for_a_call_with_time(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that takes a second has no room in a call of 0.1 s; the next call without a budget makes up for it."""
    looks: list[Solution] = []

    def look(_: Any, solution: Solution) -> None:
        looks.append(solution)
        clock.passes(1.0)

    monkeypatch.setattr(planner, "disagreement", look)
    problem = problem_of(lambda x, u: 0.8 * x + u)
    ILQR(problem)(X0)
    assert len(looks) == 1
    for _ in range(3):
        ILQR(problem, ILQROptions(max_seconds=0.1))(X0)
    assert len(looks) == 1
    ILQR(problem)(X0)
    assert len(looks) == 2


def coupled_far_out(x: Tensor, u: Tensor) -> Tensor:
    return (x - 3.0).square().sum(-1) + 0.1 * u.square().sum(-1) + torch.where(x[..., 0] > 1.5, x.mean(), 0.0)


def test_problems_that_depend_on_each_other_far_from_the_start_are_refused() -> None:
    """Every time: the PyTorch path, which looks near the start alone, must not take over."""
    problem = ControlProblem(lambda x, u: 0.9 * x + u, coupled_far_out, horizon=4, state_size=2, control_size=2)
    planner = ILQR(problem)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"stage_cost: its value for one problem depends on the other problems or steps"):
            planner(X0)
