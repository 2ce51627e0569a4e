"""The pendulum, against Gymnasium's own."""

import math
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import dilqr_rl.envs  # noqa: F401
from dilqr_rl import find_task
from dilqr_rl.envs import pendulum_v1_task

SEEDS = range(10)
Actor = Callable[[np.random.Generator, float], NDArray[np.float64]]


def make(env_id: str, **arguments: Any) -> Any:
    return gym.make(env_id, **arguments)


def random_actions(generator: np.random.Generator, rate: float) -> NDArray[np.float64]:
    # 1/1024ths: Pendulum-v1 multiplies float32 torques by 3 in float32, and these products are exact.
    return np.round(1024.0 * generator.uniform(-1.0, 1.0, 1)) / 1024.0


def push_along(generator: np.random.Generator, rate: float) -> NDArray[np.float64]:
    return np.array([math.copysign(1.0, rate)])


@pytest.mark.parametrize("act", [random_actions, push_along])
def test_e12_default_physics_step_like_pendulum_v1(act: Actor) -> None:
    fastest = 0.0
    for seed in SEEDS:
        ours, theirs = make("dilqr_rl/Pendulum-v0"), make("Pendulum-v1")
        np.testing.assert_array_equal(ours.reset(seed=seed)[0], theirs.reset(seed=seed)[0])
        generator, truncated = np.random.default_rng(seed), False
        while not truncated:
            action = act(generator, theirs.unwrapped.state[1]).astype(np.float32)
            observation, reward, terminated, truncated, info = ours.step(action)
            expected = theirs.step(2.0 * action)
            angle, rate = theirs.unwrapped.state
            np.testing.assert_allclose(info["state"], [math.cos(angle), math.sin(angle), rate], rtol=0.0, atol=1e-9)
            np.testing.assert_allclose(observation, expected[0], rtol=0.0, atol=1e-6)
            assert reward == pytest.approx(float(expected[1]), abs=1e-8)
            assert (terminated, truncated) == expected[2:4]
            fastest = max(fastest, abs(rate))
    assert act is random_actions or fastest == 8.0


def test_e12_any_action_in_float64_steps_like_pendulum_v1() -> None:
    for seed in SEEDS:
        ours, theirs = make("dilqr_rl/Pendulum-v0").unwrapped, make("Pendulum-v1").unwrapped
        ours.reset(seed=seed), theirs.reset(seed=seed)
        generator = np.random.default_rng(seed)
        for _ in range(100):
            action = generator.uniform(-1.0, 1.0, 1)
            _, reward, _, _, info = ours.step(action)
            expected = theirs.step(2.0 * action)
            angle, rate = theirs.state
            # Both round alike, but a swing past the top multiplies what a sine's last bit leaves.
            np.testing.assert_allclose(info["state"], [math.cos(angle), math.sin(angle), rate], rtol=0.0, atol=1e-9)
            assert reward == pytest.approx(float(expected[1]), abs=1e-8)


def test_without_a_speed_limit_it_speeds_up_and_the_observation_is_clipped() -> None:
    env = make("dilqr_rl/Pendulum-v0", max_speed=math.inf, max_torque=20.0)
    _, info = env.reset(seed=0)
    bound = env.observation_space.high[2]
    assert bound == pytest.approx(math.pi / 0.05)
    for _ in range(100):
        observation, _, _, _, info = env.step(np.ones(1))
    assert info["state"][2] > bound
    assert observation[2] == bound


def test_the_model_knows_no_speed_limit() -> None:
    env = make("dilqr_rl/Pendulum-v0")
    task: Any = find_task(env)
    with torch.no_grad():
        following = task.dynamics(torch.tensor([0.0, 1.0, 7.9]).double(), torch.tensor([2.0]).double())
    assert following[2] > 8.0
    assert (task.u_min, task.u_max, task.control_per_action) == (-2.0, 2.0, 2.0)


def test_the_cost_is_the_published_one() -> None:
    cost = make("dilqr_rl/Pendulum-v0").unwrapped.stage_cost()
    np.testing.assert_array_equal(cost.weights.detach(), [1.0, 1.0, 0.1, 0.001])
    np.testing.assert_array_equal(cost.goal.detach(), [1.0, 0.0, 0.0, 0.0])


def test_the_task_of_pendulum_v1_predicts_it() -> None:
    env = make("Pendulum-v1", g=9.81)
    task: Any = find_task(env)
    assert (task.name, task.u_min, task.u_max, task.control_per_action) == ("Pendulum-v1", -2.0, 2.0, 1.0)
    assert task.dynamics.physics["gravity"] == 9.81
    for seed in SEEDS:
        env.reset(seed=seed)
        angle, rate = env.unwrapped.state
        state = torch.tensor([math.cos(angle), math.sin(angle), rate], dtype=torch.float64)
        env.step(np.array([1.5]))
        with torch.no_grad():
            following = task.dynamics(state, torch.tensor([1.5], dtype=torch.float64))
        angle, rate = env.unwrapped.state
        np.testing.assert_allclose(following, [math.cos(angle), math.sin(angle), rate], rtol=0.0, atol=1e-12)


def test_the_task_of_pendulum_v1_refuses_other_environments() -> None:
    with pytest.raises(ValueError, match=r"env: expected Gymnasium's Pendulum-v1, got .*CartPole.*, which lacks"):
        pendulum_v1_task(make("CartPole-v1"))


@pytest.mark.parametrize("max_speed", [0.0, -1.0, math.nan, "fast"])
def test_impossible_speed_limits_are_refused(max_speed: Any) -> None:
    with pytest.raises(ValueError, match=r"max_speed: expected a finite number of at least 1, got"):
        make("dilqr_rl/Pendulum-v0", max_speed=max_speed)
