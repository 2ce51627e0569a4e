"""The published systems, against their equations written out once more, by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dilqr_rl.experiments.systems import SYSTEMS, linear_problem, linear_starts, problem, starts

RNG = np.random.default_rng(5)


def pendulum_step(x: np.ndarray, u: float, damping: float = 0.0, wind: float = 0.0) -> list[float]:
    """EXPERIMENTS: theta'+ = theta' + dt (3g/(2l) sin(theta + b) + 3u/(m l^2) - d theta); theta+ = theta + dt theta'+."""
    theta = math.atan2(x[1], x[0])
    rate = x[2] + 0.05 * (15.0 * math.sin(theta + wind) + 3.0 * u - damping * theta)
    return [math.cos(theta + 0.05 * rate), math.sin(theta + 0.05 * rate), rate]


def cartpole_step(x: np.ndarray, u: float) -> list[float]:
    """Explicit Euler on all four, with g 9.8, cart 1, pole 0.1, half-length 0.5."""
    theta, M = math.atan2(x[3], x[2]), 1.1
    a = (u + 0.1 * 0.5 * x[4] ** 2 * math.sin(theta)) / M
    turn = (9.8 * math.sin(theta) - a * math.cos(theta)) / (0.5 * (4 / 3 - 0.1 * math.cos(theta) ** 2 / M))
    push = a - 0.1 * 0.5 * turn * math.cos(theta) / M
    after = theta + 0.05 * x[4]
    return [x[0] + 0.05 * x[1], x[1] + 0.05 * push, math.cos(after), math.sin(after), x[4] + 0.05 * turn]


@pytest.mark.parametrize(
    ("name", "step", "weights", "bound"),
    [
        ("pendulum", pendulum_step, (1, 1, 0.1, 0.001), 2.0),
        ("pendulum-complex", lambda x, u: pendulum_step(x, u, 1.0, 0.1), (1, 1, 0.1, 0.001), 2.0),
        ("cartpole", cartpole_step, (0.1, 0.1, 1, 1, 0.1, 0.001), 100.0),
    ],
)
def test_the_problem_is_the_published_one(name: str, step: object, weights: tuple[float, ...], bound: float) -> None:
    tested, x0 = problem(name, 7), starts(name, 20, 3)
    controls = RNG.uniform(-bound, bound, 20)
    found = tested.dynamics(x0, torch.from_numpy(controls)[:, None]).detach()
    expected = [step(x, u) for x, u in zip(x0.numpy(), controls, strict=True)]  # type: ignore[operator]
    np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)
    goal = np.zeros(len(weights))
    goal[0 if "pendulum" in name else 2] = 1.0
    tau = np.concatenate((x0.numpy(), controls[:, None]), axis=1)
    cost = 0.5 * (np.array(weights) * (tau - goal) ** 2).sum(1)
    np.testing.assert_allclose(tested.stage_cost(x0, torch.from_numpy(controls)[:, None]).detach(), cost, rtol=1e-13)
    assert (tested.horizon, tested.u_min.tolist(), tested.u_max.tolist()) == (7, [-bound], [bound])


@pytest.mark.parametrize(
    ("name", "ranges"),
    [
        ("pendulum", [(-math.pi / 2, math.pi / 2), (-1, 1)]),
        ("cartpole", [(-0.5, 0.5), (-0.5, 0.5), (-math.pi, math.pi), (-1, 1)]),
    ],
)
def test_starts_fill_the_published_ranges_and_repeat(name: str, ranges: list[tuple[float, float]]) -> None:
    x0 = starts(name, 2000, 0).numpy()
    *rest, cos, sin, rate = x0.T
    for values, (low, high) in zip((*rest, np.arctan2(sin, cos), rate), ranges, strict=True):
        assert low <= values.min() < low + 0.01 * (high - low)  # missed by 2000 draws with a chance of 2e-9
        assert high - 0.01 * (high - low) < values.max() <= high
    np.testing.assert_array_equal(starts(name, 2000, 0), x0)
    assert not np.array_equal(starts(name, 2000, 1), x0)


def test_learners_start_from_the_published_wrong_physics() -> None:
    assert SYSTEMS["pendulum"].learner == {"gravity": 15.0, "mass": 3.0, "length": 0.5}
    assert SYSTEMS["pendulum"].truth == {"gravity": 10.0, "mass": 1.0, "length": 1.0}
    assert SYSTEMS["cartpole"].learner == {"gravity": 9.8, "cart_mass": 3.0, "pole_mass": 0.1, "length": 1.0}
    assert SYSTEMS["cartpole"].truth == {"gravity": 9.8, "cart_mass": 1.0, "pole_mass": 0.1, "length": 0.5}
    moved = problem("cartpole", 5, SYSTEMS["cartpole"].learner)
    assert moved.dynamics.physics == dict(SYSTEMS["cartpole"].learner)


def test_the_lqr_s_cost_is_the_published_one_up_to_a_constant() -> None:
    tested, x = linear_problem(5, seed=4), linear_starts(6, seed=1)
    u = torch.from_numpy(RNG.standard_normal((6, 3)))
    tau, p = torch.cat((x, u), dim=1), -tested.stage_cost.goal
    expected = 0.5 * tau.square().sum(1) + tau @ p
    difference = (tested.stage_cost(x, u) - expected).detach()
    torch.testing.assert_close(difference, difference[:1].expand(6), rtol=0, atol=1e-13)
    A, B = tested.dynamics.A.detach().numpy(), tested.dynamics.B.detach().numpy()
    np.testing.assert_allclose(tested.dynamics(x, u).detach(), x.numpy() @ A.T + u.numpy() @ B.T, rtol=1e-13)
    assert 0.05 < np.std(A - np.eye(3)) < 0.4  # nine draws of 0.2 N(0, 1)
    assert torch.isinf(tested.u_max).all()


def test_an_unknown_system_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^system: expected one of pendulum, .*, got 'acrobot'\.$"):
        problem("acrobot", 5)
