"""A and B learnt from actions, against least squares on the whole horizon at once, and against the A and B that acted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dilqr_rl import ILQR, ILQROptions, QuadraticCost
from dilqr_rl.agents.demonstrations import Demonstrations
from dilqr_rl.agents.learners import FitOptions, LinearDynamics, LinearLearner
from dilqr_rl.agents.learners.segments import Segments
from dilqr_rl.tasks import ControlTask

Floats = NDArray[np.float64]
HORIZON, N, M = 4, 3, 2
GOAL = np.array([0.3, -1.0, 0.5, 0.2, -0.4])


def task(bound: float = np.inf) -> ControlTask:
    expert = LinearDynamics.draw(N, M, torch.Generator().manual_seed(1))
    cost = QuadraticCost([1.0] * (N + M), torch.from_numpy(GOAL))
    return ControlTask("linear", expert, cost, lambda seen: seen, HORIZON, N, M, -bound, bound)


def make(**settings: Any) -> LinearLearner:
    return LinearLearner(task(), solver=ILQROptions(tolerance=1e-10, backend="native"), **settings)


def starts(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def demonstrations(count: int, seed: int, bound: float = np.inf) -> Demonstrations:
    with torch.no_grad():
        acted = ILQR(task(bound).problem(), ILQROptions(tolerance=1e-10))(starts(count, seed))
    return Demonstrations.from_arrays("linear", acted.states.numpy(), acted.controls.numpy(), open_loop=True)


def trajectory(A: Floats, B: Floats, x0: Floats) -> tuple[Floats, Floats]:
    """States (T+1, n) and controls (T, m) that minimise the cost, as one least-squares problem in all controls."""
    free = [np.linalg.matrix_power(A, t) @ x0 for t in range(HORIZON + 1)]
    forced = np.zeros((HORIZON + 1, N, HORIZON * M))
    for t in range(HORIZON):
        forced[t + 1] = A @ forced[t]
        forced[t + 1][:, t * M : (t + 1) * M] += B
    rows = np.concatenate((*forced[:HORIZON], np.eye(HORIZON * M)))
    wanted = np.concatenate((*(GOAL[:N] - x for x in free[:HORIZON]), *[GOAL[N:]] * HORIZON))
    u = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return np.stack(free) + forced @ u, u.reshape(HORIZON, M)


@pytest.mark.parametrize("compare", ["controls", "states_and_controls"])
def test_loss_is_that_of_least_squares(compare: str) -> None:
    learner, x0 = make(compare=compare, seed=5), starts(3, 2)
    A, B = (parameter.detach().numpy() for parameter in learner.problem.dynamics.parameters())
    draws = torch.Generator().manual_seed(4)
    shown_x = torch.cat((x0[:, None], torch.randn(3, HORIZON, N, generator=draws, dtype=torch.float64)), 1)
    shown_u = torch.randn(3, HORIZON, M, generator=draws, dtype=torch.float64)
    expected = []
    for start, states, controls in zip(x0.numpy(), shown_x.numpy(), shown_u.numpy(), strict=True):
        x, u = trajectory(A, B, start)
        errors = (u - controls).ravel() if compare == "controls" else np.concatenate((x - states, u - controls), axis=None)
        counted = HORIZON * M if compare == "controls" else HORIZON * (N + M)  # the first state is given, not compared
        expected.append((errors**2).sum() / counted)
    found = learner.loss(Segments(shown_x, shown_u)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-8)  # the planner's tolerance, 1e-10, beside numbers of order 1


def test_start_is_drawn_by_the_published_law() -> None:
    drawn = [LinearDynamics.draw(4, 5, torch.Generator().manual_seed(seed)) for seed in range(400)]
    A, B = (torch.stack([getattr(dynamics, name).detach() for dynamics in drawn]) for name in "AB")
    error = 5 / 400**0.5  # five standard errors of a mean of 400, in units of the spread
    torch.testing.assert_close(A.mean(0), torch.eye(4, dtype=torch.float64), rtol=0, atol=0.2 * error)
    torch.testing.assert_close(B.mean(0), torch.zeros(4, 5, dtype=torch.float64), rtol=0, atol=error)
    assert abs(A.std(0).mean() - 0.2) < 0.01
    assert abs(B.std(0).mean() - 1.0) < 0.05
    one, other, same = (make(seed=seed).problem.dynamics.get_parameter("A") for seed in (1, 2, 1))
    assert (one != other).all()
    torch.testing.assert_close(one, same, rtol=0, atol=0)


@pytest.mark.parametrize(("compare", "bound"), [("states_and_controls", np.inf), ("controls", 0.8)])
def test_fit_finds_what_acted(compare: str, bound: float) -> None:
    """By restarts, where the first start sticks; bounds hold some of the controls."""
    learner = LinearLearner(task(bound), compare=compare, seed=3)
    result = learner.fit(demonstrations(40, 6, bound), demonstrations(10, 7, bound))
    assert result.best_validation_loss < 1e-12 < result.start_loss
    for name, found in learner.readable_parameters().items():
        truth = task().dynamics.get_parameter(name.removeprefix("dynamics.")).detach()
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-5)  # the planner's tolerance, 1e-7, times its sensitivity


def test_each_restart_begins_elsewhere() -> None:
    learner, segments = make(seed=3), Segments(starts(2, 1)[:, None], starts(2, 1)[:, None, :M])
    seen = [learner.problem.dynamics.get_parameter("A").detach().clone()]
    for attempt in (1, 2, 1):
        learner.restart(attempt, segments, FitOptions())
        seen.append(learner.problem.dynamics.get_parameter("A").detach().clone())
    assert all((one != other).all() for one, other in ((seen[0], seen[1]), (seen[0], seen[2]), (seen[1], seen[2])))
    torch.testing.assert_close(seen[1], seen[3], rtol=0, atol=0)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_gradient_descent_lowers_the_loss(optimizer: Any) -> None:
    learner = make(seed=3)
    result = learner.fit(demonstrations(40, 6), demonstrations(10, 7), FitOptions(optimizer=optimizer, epochs=20))
    assert result.best_validation_loss < 0.5 * result.start_loss


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(compare="states"), "compare: expected one of"),
        (lambda: make(seed=-1), "seed: expected a whole number from 0 on, got -1"),
        (lambda: make(physics={"A": 1.0}), "physics: the learner 'lqr' draws its A and B"),
        (lambda: LinearDynamics(torch.eye(2), torch.ones(3, 1)), r"A, B: expected the shapes \(n, n\) and \(n, m\)"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
