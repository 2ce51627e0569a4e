"""Dynamics as a NumPy function: the numbers of the torch function, for one state and for a batch, as the parameters are now."""

from __future__ import annotations

import copy
import logging
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from models import DOUBLE_PENDULUM, QUADROTOR_3D, ROCKET
from problems import FLOAT, Case
from torch import Tensor, nn

from dilqr_rl import compile_dynamics
from dilqr_rl.envs import CartPoleDynamics, PendulumDynamics


def in_torch(dynamics: Any, x: np.ndarray, u: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return dynamics(torch.from_numpy(x), torch.from_numpy(u)).numpy()


def points(count: int, n: int, m: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, n)), generator.normal(size=(count, m))


@pytest.mark.parametrize("case", [DOUBLE_PENDULUM, QUADROTOR_3D, ROCKET], ids=str)
def test_one_state_and_a_batch(case: Case) -> None:
    problem = case.build(5)
    step = compile_dynamics(problem.dynamics, state_size=problem.state_size, control_size=problem.control_size)
    assert step.native
    x, u = case.starts(7, 0).numpy(), points(7, problem.state_size, problem.control_size)[1] + 2.0
    found = step(x, u)
    expected = in_torch(problem.dynamics.double(), x, u)
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    for row, following in enumerate(found):
        np.testing.assert_array_equal(step(x[row], u[row]), following)
    np.testing.assert_array_equal(step(x[:0], u[:0]), found[:0])
    np.testing.assert_array_equal(step(np.asfortranarray(x), u.tolist()), found)


def test_parameters_are_followed_however_they_change() -> None:
    dynamics = PendulumDynamics()
    step, (x, u) = compile_dynamics(dynamics), points(3, 3, 1)

    def check() -> None:
        np.testing.assert_allclose(step(x, u), in_torch(dynamics, x, u), rtol=1e-13, atol=1e-13)

    check()
    with torch.no_grad():
        dynamics.mass.mul_(1.3)
    check()
    dynamics.length.data = torch.tensor(0.6, dtype=FLOAT)
    check()
    dynamics.gravity.data.fill_(3.0)
    check()
    dynamics.wind = nn.Parameter(torch.tensor(0.7, dtype=FLOAT))
    check()


def test_settings_are_those_of_the_moment() -> None:
    dynamics = PendulumDynamics(max_speed=1.0)
    first, (x, u) = compile_dynamics(dynamics), points(3, 3, 1)
    before = first(x, u)
    dynamics.max_speed = 0.5
    np.testing.assert_array_equal(first(x, u), before)
    np.testing.assert_allclose(compile_dynamics(dynamics)(x, u), in_torch(dynamics, x, u), rtol=1e-13, atol=1e-13)
    assert np.abs(compile_dynamics(dynamics)(x, u)[:, 2]).max() <= 0.5


def test_a_plain_function_with_a_tensor_and_a_number_of_its_own() -> None:
    matrix, share = torch.eye(2, dtype=FLOAT), 0.5

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        return share * x @ matrix.mT + u

    x, u = points(3, 2, 2)
    step = compile_dynamics(dynamics, state_size=2, control_size=2)
    np.testing.assert_allclose(step(x, u), 0.5 * x + u, rtol=1e-15)
    matrix[0, 1] = 2.0
    np.testing.assert_allclose(step(x, u), in_torch(dynamics, x, u), rtol=1e-15)
    share = 2.0
    again = compile_dynamics(dynamics, state_size=2, control_size=2)
    np.testing.assert_allclose(again(x, u), in_torch(dynamics, x, u), rtol=1e-15)


def test_what_cannot_be_compiled_steps_in_torch_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        return x + u if bool((u > -100).all()) else x

    x, u = points(3, 2, 2)
    with caplog.at_level(logging.WARNING, "dilqr_rl"):
        step = compile_dynamics(dynamics, state_size=2, control_size=2)
    assert not step.native
    (record,) = caplog.records
    assert "PyTorch" in record.getMessage()
    assert "test_dynamics.py" in record.getMessage()
    np.testing.assert_array_equal(step(x, u), x + u)


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^state_size: expected a positive integer, as an argument or an attribute"):
        compile_dynamics(lambda x, u: x)
    step = compile_dynamics(CartPoleDynamics())
    expected = r"^x, u: expected arrays of shapes \(5,\) and \(1,\), or \(B, 5\) and \(B, 1\), got \(4,\) and \(1,\)\."
    with pytest.raises(ValueError, match=expected):
        step(np.zeros(4), np.zeros(1))
    with pytest.raises(ValueError, match=r"got \(2, 5\) and \(3, 1\)\."):
        step(np.zeros((2, 5)), np.zeros((3, 1)))


def test_copies_and_pickles_of_an_environment_step_alike() -> None:
    env = gym.make("dilqr_rl/CartPole-v0")
    env.reset(seed=0)
    twins = (copy.deepcopy(env), pickle.loads(pickle.dumps(env)))
    action = env.action_space.sample()
    following = env.step(action)[0]
    for twin in twins:
        np.testing.assert_array_equal(twin.step(action)[0], following)


def test_dynamics_that_write_into_their_state_leave_the_callers_alone() -> None:
    def pushed(x: Tensor, u: Tensor) -> Tensor:
        x[..., 1] = x[..., 1] + 0.1 * u[..., 0]
        return x

    step = compile_dynamics(pushed, state_size=2, control_size=1)
    x = np.array([1.0, 2.0])
    assert np.array_equal(step(x, np.array([5.0])), [1.0, 2.5])
    assert np.array_equal(x, [1.0, 2.0])
