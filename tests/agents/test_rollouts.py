"""Rolling out side by side is rolling out one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from dilqr_rl import ILQROptions
from dilqr_rl.agents import Demonstrations, Episode, MPCPolicy, network_policy, roll_out
from dilqr_rl.agents.environments import make_env

# The pole's speed soon passes this limit, where an episode terminates.
ENDING: tuple[str, dict[str, Any]] = ("dilqr_rl/CartPole-v0", {"max_rate": 3.0, "max_episode_steps": 8})
ENVIRONMENTS: list[tuple[str, dict[str, Any]]] = [
    ENDING,
    ("dilqr_rl/Pendulum-v0", {"max_episode_steps": 6}),
    ("Pendulum-v1", {"max_episode_steps": 6}),
]
each_environment = pytest.mark.parametrize(("env_id", "env_kwargs"), ENVIRONMENTS)


def make(env_id: str, env_kwargs: dict[str, Any], **settings: Any) -> MPCPolicy:
    env = make_env(env_id, env_kwargs)
    policy = MPCPolicy.for_env(env, **{"horizon": 5, **settings})
    env.close()
    return policy


def alone(policy: Any, env_id: str, env_kwargs: dict[str, Any], seed: int) -> Episode:
    """One episode, as anybody would write the loop."""
    env = make_env(env_id, env_kwargs)
    observation, _ = env.reset(seed=seed)
    observations, actions, rewards, state, start = [observation], [], [], None, np.ones(1, dtype=bool)
    terminated = truncated = False
    while not (terminated or truncated):
        action, state = policy.predict(observation, state, start, deterministic=True)
        observation, reward, terminated, truncated, _ = env.step(action)
        start = np.zeros(1, dtype=bool)
        observations.append(observation)
        actions.append(action)
        rewards.append(float(reward))
    env.close()
    return Episode(np.array(observations), np.array(actions), np.array(rewards), terminated, truncated)


def assert_same(found: Demonstrations, expected: list[Episode]) -> None:
    for one, other in zip(found.episodes, expected, strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
        assert (one.terminated, one.truncated) == (other.terminated, other.truncated)


@pytest.mark.parametrize("warm_start", [True, False])
@each_environment
def test_side_by_side_equals_one_by_one(env_id: str, env_kwargs: dict[str, Any], warm_start: bool) -> None:
    hasty = ILQROptions(max_iterations=1)  # plans that are cut off show where they started
    policy = make(env_id, env_kwargs, warm_start=warm_start, options=hasty, horizon=10)
    found = roll_out(policy, env_id, env_kwargs, episodes=3, seed=7).demonstrations  # the first cart ends first
    assert (found.env_id, found.env_kwargs) == (env_id, env_kwargs)
    assert_same(found, [alone(policy, env_id, env_kwargs, seed) for seed in (7, 8, 9)])


@each_environment
def test_the_same_seeds_give_the_same_episodes(env_id: str, env_kwargs: dict[str, Any]) -> None:
    policy = make(env_id, env_kwargs)
    three = roll_out(policy, env_id, env_kwargs, episodes=3, seed=2).demonstrations
    assert_same(roll_out(policy, env_id, env_kwargs, episodes=3, seed=2).demonstrations, list(three.episodes))
    assert_same(roll_out(policy, env_id, env_kwargs, episodes=2, seed=3).demonstrations, list(three.episodes[1:]))


def test_ends_by_the_environment_and_by_the_clock_are_told_apart() -> None:
    env_id, env_kwargs = ENDING
    found = roll_out(make(env_id, env_kwargs), env_id, env_kwargs, episodes=8, seed=0).demonstrations
    ends = [(episode.terminated, episode.truncated) for episode in found.episodes]
    assert {(True, False), (False, True)} <= set(ends)
    for episode, (terminated, _) in zip(found.episodes, ends, strict=True):
        assert len(episode) <= 8
        assert episode.observations.shape == (len(episode) + 1, 5)
        assert episode.actions.shape == (len(episode), 1)
        assert terminated or len(episode) == 8


def test_health_is_reported() -> None:
    env_id, env_kwargs = ENVIRONMENTS[1]
    steps: list[int] = []
    found = roll_out(make(env_id, env_kwargs), env_id, env_kwargs, episodes=2, on_step=steps.append)
    assert steps == [2] * 6
    assert sum(steps) == found.demonstrations.num_steps
    assert found.converged == 1.0
    assert 0.0 < found.iterations <= 50.0
    assert found.seconds_per_step > 0.0
    np.testing.assert_array_equal(found.returns, found.demonstrations.returns)


def test_a_policy_that_does_not_plan_has_no_health() -> None:
    env_id, env_kwargs = ENVIRONMENTS[1]
    env = make_env(env_id)
    network = network_policy(env, layers=(4,))
    found = roll_out(network, env_id, env_kwargs, episodes=2)
    assert math.isnan(found.converged)
    assert math.isnan(found.iterations)
    expected = [alone(network, env_id, env_kwargs, seed) for seed in (0, 1)]
    for one, other in zip(found.demonstrations.episodes, expected, strict=True):
        np.testing.assert_allclose(one.observations, other.observations, rtol=0.0, atol=1e-5)  # float32 matrix products


def test_an_id_with_its_module_is_the_same_environment() -> None:
    policy = make(*ENVIRONMENTS[1])
    found = roll_out(policy, "dilqr_rl.envs:dilqr_rl/Pendulum-v0", {"max_episode_steps": 2}, episodes=1)
    assert found.demonstrations.env_id == "dilqr_rl/Pendulum-v0" == policy.task.name


@pytest.mark.parametrize("episodes", [0, -1])
def test_no_episodes_are_refused(episodes: int) -> None:
    with pytest.raises(ValueError, match="episodes: expected at least 1"):
        roll_out(make(*ENVIRONMENTS[1]), "dilqr_rl/Pendulum-v0", episodes=episodes)


@pytest.mark.parametrize("env_id", ["Nowhere-v0", "nowhere:Nowhere-v0", "dilqr_rl/Nowhere-v0", ""])
def test_an_unknown_environment_is_named(env_id: str) -> None:
    with pytest.raises(ValueError, match=f"env: '{env_id}' can't be made with {{}}"):
        roll_out(make(*ENVIRONMENTS[1]), env_id, episodes=1)


def test_impossible_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="colour"):
        roll_out(make(*ENVIRONMENTS[1]), "dilqr_rl/Pendulum-v0", {"colour": 1}, episodes=1)


def test_the_environments_are_closed_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    from dilqr_rl.envs import PendulumEnv

    closed: list[Any] = []
    monkeypatch.setattr(PendulumEnv, "close", lambda env: closed.append(env))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    policy = make(*ENVIRONMENTS[1])
    closed.clear()
    with pytest.raises(KeyboardInterrupt):
        roll_out(policy, "dilqr_rl/Pendulum-v0", episodes=3, on_step=interrupt)
    assert len(closed) == 3
