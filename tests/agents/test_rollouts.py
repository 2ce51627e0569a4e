"""Rolling out side by side is rolling out one by one; and anybody's environment is recorded as it runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FlattenObservation, RescaleAction, TimeLimit
from torch import Tensor, nn

from dilqr_rl import ControlTask, ILQROptions, QuadraticCost
from dilqr_rl.agents import (
    Demonstrations,
    DemonstrationsError,
    Episode,
    MPCPolicy,
    NetworkLearner,
    PhysicsLearner,
    record_plans,
    roll_out,
)
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.rollouts import record

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
    network = NetworkLearner(env_id, hidden=(4,))
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


# Recording in somebody's own environment.

CAR = "MountainCarContinuous-v0"


def push(observation: Any) -> Any:
    """Along with the speed: it gets the car up the hill."""
    return [0.9 if observation[1] >= 0.0 else -0.9]


@pytest.mark.parametrize("warm_start", [True, False])
@each_environment
def test_a_recording_in_a_single_environment_equals_roll_out(env_id: str, env_kwargs: dict[str, Any], warm_start: bool) -> None:
    policy = make(env_id, env_kwargs, warm_start=warm_start)
    env = make_env(env_id, env_kwargs)
    found = record(env, policy, episodes=3, seed=5)
    env.close()
    expected = roll_out(policy, env_id, env_kwargs, episodes=3, seed=5).demonstrations
    assert (found.env_id, found.env_kwargs, found.open_loop) == (expected.env_id, expected.env_kwargs, False)
    assert_same(found, list(expected.episodes))


def test_a_function_of_the_observation_is_recorded_until_the_car_is_up() -> None:
    with gym.make(CAR, goal_velocity=0.01) as env:
        found = record(env, push, episodes=2, seed=1)
        for number, episode in enumerate(found.episodes):
            assert (episode.terminated, episode.truncated) == (True, False)
            observation, _ = env.reset(seed=1 + number)
            for seen, action, reward in zip(episode.observations, episode.actions, episode.rewards, strict=False):
                np.testing.assert_array_equal(seen, observation, strict=True)
                np.testing.assert_array_equal(action, np.array(push(observation), np.float32), strict=True)
                observation, gain, ended, _, _ = env.step(action)
                assert reward == gain
            assert ended
            np.testing.assert_array_equal(episode.observations[-1], observation, strict=True)
    assert found.env_kwargs == {"goal_velocity": 0.01}


def test_the_outermost_wrapper_counts() -> None:
    env = TimeLimit(RescaleAction(gym.make("Pendulum-v1", max_episode_steps=-1), np.float32(-1.0), np.float32(1.0)), 3)
    found = record(env, lambda _: np.full(1, 0.5), episodes=1)
    assert found.env_kwargs == {"max_episode_steps": 3}
    assert found.episodes[0].actions.tolist() == [[0.5]] * 3
    assert found.episodes[0].truncated
    observation, _ = env.unwrapped.reset(seed=0)
    np.testing.assert_array_equal(found.episodes[0].observations[0], observation)
    np.testing.assert_array_equal(found.episodes[0].observations[1], env.unwrapped.step(np.ones(1))[0])  # 0.5 of its 2 N m


def test_an_environment_that_reuses_its_arrays_is_recorded_as_it_was() -> None:
    class Reusing(gym.Wrapper[Any, Any, Any, Any]):
        kept = np.zeros(2, dtype=np.float32)

        def step(self, action: Any) -> Any:
            observation, *rest = self.env.step(action)
            self.kept[:] = observation
            return self.kept, *rest

    with gym.make(CAR, max_episode_steps=4) as env:
        assert_same(record(Reusing(env), push, episodes=1), list(record(env, push, episodes=1).episodes))


class AngleDynamics(nn.Module):
    """Gymnasium's pendulum by its documentation, in the state (angle, rate): rate+ = rate + dt (3 g / (2 l) sin + 3 u / (m l^2))."""

    def __init__(self, gravity: float) -> None:
        super().__init__()
        self.gravity = nn.Parameter(torch.tensor(gravity, dtype=torch.float64))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        rate = x[..., 1] + 0.05 * (1.5 * self.gravity * torch.sin(x[..., 0]) + 3.0 * u[..., 0])
        return torch.stack((x[..., 0] + 0.05 * rate, rate), dim=-1)


def angle_and_rate(observation: Tensor) -> Tensor:
    seen = observation.double()
    return torch.stack((torch.atan2(seen[..., 1], seen[..., 0]), seen[..., 2]), dim=-1)


def users_task(gravity: float) -> ControlTask:
    return ControlTask(
        name="Pendulum-v1",
        dynamics=AngleDynamics(gravity),
        stage_cost=QuadraticCost((1.0, 0.1, 0.01), (0.0, 0.0, 0.0)),
        observation_to_state=angle_and_rate,
        horizon=5,
        state_size=2,
        control_size=1,
        u_min=-2.0,
        u_max=2.0,
    )


def test_a_recording_serves_the_task_of_its_user(tmp_path: Path) -> None:
    task = users_task(gravity=10.0)
    expert, other = (PhysicsLearner(users_task(gravity), learn=("dynamics.gravity",)) for gravity in (10.0, 5.0))
    with gym.make("Pendulum-v1", max_episode_steps=8) as env:
        record(env, expert, episodes=3).save(tmp_path / "pendulum.npz")
    found = Demonstrations.load(tmp_path / "pendulum.npz")
    for episode in found.episodes:
        seen = torch.as_tensor(episode.observations).double()
        ahead = task.dynamics(angle_and_rate(seen[:-1]), torch.as_tensor(episode.actions).double())
        expected = torch.stack((torch.cos(ahead[:, 0]), torch.sin(ahead[:, 0]), ahead[:, 1]), dim=-1)
        torch.testing.assert_close(seen[1:], expected, rtol=0.0, atol=1e-5)  # observations are float32
    assert expert.imitation_loss(found) < 1e-10  # actions too
    assert other.imitation_loss(found) > 1e-3


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (
            lambda _: np.zeros(2),
            r"expected actions within Box\(-1\.0, 1\.0, \(1,\), float32\), got .* of shape \(2,\)\. Clip or scale them",
        ),
        (lambda _: 0.5, r"got 0\.5 of shape \(\)"),
        (lambda _: [1.5], r"got \[1\.5\] of shape \(1,\)"),
        (lambda _: [math.nan], r"got \[nan\]"),
        ("PPO", "policy: expected a function or an object with a method predict, got 'PPO'"),
    ],
)
def test_actions_that_are_none_are_refused(policy: Any, message: str) -> None:
    with gym.make(CAR, max_episode_steps=2) as env, pytest.raises(ValueError, match=message):
        record(env, policy, episodes=1)


class Dictionary(gym.ObservationWrapper[Any, Any, Any]):
    observation_space: Any = spaces.Dict(
        car=spaces.Dict({"speed": spaces.Box(-1.0, 1.0, (1,)), "place": spaces.Box(-2.0, 2.0, (1,))})
    )

    def observation(self, observation: Any) -> Any:
        return {"car": {"speed": observation[1:], "place": observation[:1]}}


class Written(Dictionary):
    observation_space = spaces.Dict({"speed": spaces.Text(3)})


def test_observations_that_are_not_flat_are_refused_with_what_to_do() -> None:
    with gym.make(CAR, max_episode_steps=2) as car:
        env = Dictionary(car)
        found = (
            record(env, lambda seen: push([seen["car"]["place"], seen["car"]["speed"]]), episodes=1).episodes[0].observations
        )
        assert {name: part.shape for name, part in found.items()} == {"car/speed": (3, 1), "car/place": (3, 1)}
        assert record(FlattenObservation(env), lambda _: [0.0], episodes=1).episodes[0].observations.shape == (3, 2)
    with (
        make_env("dilqr_rl/PendulumPixels-v0") as env,
        pytest.raises(
            ValueError, match=r"env: expected flat observations, a Box of one axis, got Box.* Wrap it in .*FlattenObservation"
        ),
    ):
        record(env, push, episodes=1)
    with gym.make(CAR, max_episode_steps=2) as car, pytest.raises(ValueError, match=r"expected flat observations.* got Dict"):
        record(Written(car), push, episodes=1)
    with gym.make("CartPole-v1") as env, pytest.raises(ValueError, match=r"expected flat actions, .* got Discrete\(2\)"):
        record(env, push, episodes=1)


def test_environments_that_can_not_be_recorded_are_refused() -> None:
    with gym.make(CAR) as env, pytest.raises(ValueError, match="episodes: expected at least 1, got 0"):
        record(env, push, episodes=0)
    with gym.make(CAR) as env, pytest.raises(ValueError, match="seed: expected 0 or more, got -1"):
        record(env, push, episodes=1, seed=-1)
    with gym.make(CAR) as env, pytest.raises(ValueError, match=r"expected one made by gymnasium\.make, so that it has an id"):
        record(type(env.unwrapped)(), push, episodes=1)
    batch = gym.make_vec(CAR, 2)
    with pytest.raises(ValueError, match="env: expected a single Gymnasium environment, got"):
        record(batch, push, episodes=1)
    batch.close()


def test_a_recording_of_another_environment_trains_nothing() -> None:
    with gym.make(CAR, max_episode_steps=3) as env:
        found = record(env, push, episodes=1)
    with pytest.raises(DemonstrationsError, match=rf"expected Pendulum-v1, whose model the learner has, got {CAR}"):
        PhysicsLearner("Pendulum-v1", horizon=4).imitation_loss(found)


def test_recorded_plans_are_carried_out_as_they_were_made() -> None:
    learner = PhysicsLearner("dilqr_rl/Pendulum-v0", horizon=6)
    with make_env("dilqr_rl/Pendulum-v0") as env:
        found = record_plans(env, learner, episodes=3, seed=5)
        starts = np.stack([env.reset(seed=5 + number)[0] for number in range(3)])
    assert found.open_loop
    expected = learner.planner(torch.as_tensor(starts, dtype=torch.float64))
    for episode, states, controls in zip(found.episodes, expected.states, expected.controls, strict=True):
        np.testing.assert_allclose(episode.observations, states.detach(), atol=1e-5)  # float32 observations
        np.testing.assert_allclose(episode.actions, controls.detach() / 2.0, atol=1e-6)


def test_plans_longer_than_an_episode_are_refused() -> None:
    learner = PhysicsLearner("dilqr_rl/Pendulum-v0", horizon=6)
    with (
        make_env("dilqr_rl/Pendulum-v0", {"max_episode_steps": 4}) as env,
        pytest.raises(ValueError, match=r"expected plans of 6 steps to be carried out, but episode 0 ended after 4\. Shorten"),
    ):
        record_plans(env, learner, episodes=1)
