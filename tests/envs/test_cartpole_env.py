"""The cart-pole: its reward, its bounds, its starts."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

import dilqr_rl.envs  # noqa: F401
from dilqr_rl import find_task


def make(env_id: str, **arguments: Any) -> Any:
    return gym.make(env_id, **arguments)


def test_reward_is_exp_of_minus_the_cost_that_plans_minimise() -> None:
    env = make("dilqr_rl/CartPole-v0")
    task: Any = find_task(env)
    np.testing.assert_array_equal(task.stage_cost.weights.detach(), [0.1, 0.1, 1.0, 1.0, 0.1, 0.001])
    np.testing.assert_array_equal(task.stage_cost.goal.detach(), [0.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    generator = np.random.default_rng(0)
    for seed in range(5):
        _, info = env.reset(seed=seed)
        for _ in range(10):
            state, action = torch.from_numpy(info["state"]), generator.uniform(-1.0, 1.0, 1)
            _, reward, _, _, info = env.step(action)
            with torch.no_grad():
                cost = task.stage_cost(state, torch.from_numpy(20.0 * action))
            assert reward == pytest.approx(math.exp(-cost.item()), rel=1e-12)
            assert 0.0 < reward <= 1.0


def test_reward_is_one_upright_and_still_in_the_middle() -> None:
    env = make("dilqr_rl/CartPole-v0")
    env.reset(options={"state": [0.0, 0.0, 1.0, 0.0, 0.0]})
    for _ in range(200):
        observation, reward, terminated, truncated, _ = env.step(np.zeros(1))
        assert reward == 1.0
    np.testing.assert_array_equal(observation, [0.0, 0.0, 1.0, 0.0, 0.0])
    assert (terminated, truncated) == (False, True)


@pytest.mark.parametrize(("limits", "index"), [({"track_limit": 0.6}, 0), ({"max_speed": 0.6}, 1), ({"max_rate": 1.1}, 4)])
def test_it_ends_where_the_observation_space_ends(limits: dict[str, float], index: int) -> None:
    (bound,) = limits.values()
    for push in (-1.0, 1.0):
        env = make("dilqr_rl/CartPole-v0", **limits)
        _, info = env.reset(seed=0)
        terminated = False
        while not terminated:
            assert abs(info["state"][index]) <= bound
            observation, reward, terminated, truncated, info = env.step(np.array([push]))
            assert not truncated
        assert abs(info["state"][index]) > bound
        assert abs(observation[index]) == np.float32(bound)
        assert env.observation_space.contains(observation)
        assert reward > 0.0


def test_starts_cover_the_published_ranges() -> None:
    env = make("dilqr_rl/CartPole-v0")
    starts = np.array([env.reset(seed=seed if seed == 0 else None)[1]["state"] for seed in range(500)])
    angle = np.arctan2(starts[:, 3], starts[:, 2])
    for values, high in ((starts[:, 0], 0.5), (starts[:, 1], 0.5), (angle, math.pi), (starts[:, 4], 1.0)):
        assert np.abs(values).max() <= high
        assert values.max() > 0.95 * high
        assert values.min() < -0.95 * high


@pytest.mark.parametrize(("name", "least"), [("track_limit", 0.5), ("max_speed", 0.5), ("max_rate", 1)])
def test_bounds_that_leave_no_room_for_a_start_are_refused(name: str, least: float) -> None:
    for wrong in (0.99 * least, math.nan, math.inf):
        with pytest.raises(ValueError, match=rf"{name}: expected a finite number of at least {least:g}, got"):
            make("dilqr_rl/CartPole-v0", **{name: wrong})
