"""The model of Gymnasium's MountainCarContinuous-v0: beside the environment's own step, and as what a controller plans with."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from dilqr_rl import find_task
from dilqr_rl.agents import MPCPolicy, roll_out
from dilqr_rl.envs import MountainCarDynamics, mountain_car_task

CAR = "MountainCarContinuous-v0"
ROUNDING = 1e-7  # the environment keeps its state in float32, which has 6e-8 around 1


def after(env: Any, state: np.ndarray, action: float) -> np.ndarray:
    """The environment's own next state."""
    env.unwrapped.state = state
    return env.unwrapped.step(np.array([action], dtype=np.float64))[0]


@pytest.mark.parametrize("power", [0.0015, 0.002])
def test_it_predicts_the_next_state_within_the_road(power: float) -> None:
    generator = np.random.default_rng(0)
    states = np.stack((generator.uniform(-1.1, 0.5, 500), generator.uniform(-0.06, 0.06, 500)), axis=1)
    actions = generator.uniform(-1, 1, (500, 1))
    with gym.make(CAR) as env:
        env.unwrapped.power = power  # type: ignore[attr-defined]
        task = find_task(env)
        env.reset(seed=0)
        expected = [after(env, state, action) for state, action in zip(states, actions[:, 0], strict=True)]
    assert task.dynamics.power.item() == power
    predicted = task.dynamics(torch.as_tensor(states), torch.as_tensor(actions)).detach().numpy()
    np.testing.assert_allclose(predicted, np.stack(expected), rtol=0, atol=ROUNDING)


def test_what_the_environment_clamps_is_not_in_the_model() -> None:
    """So that a gradient passes there, too."""
    state = torch.tensor([-1.19, -0.05], dtype=torch.float64, requires_grad=True)
    model = MountainCarDynamics()
    with gym.make(CAR) as env:
        env.reset(seed=0)
        assert after(env, state.detach().numpy(), -1.0).tolist() == [np.float32(-1.2), 0.0]
    position, speed = model(state, torch.tensor([-1.0], dtype=torch.float64))
    assert position < -1.2
    assert speed < -0.04
    (slope,) = torch.autograd.grad(position, state)
    assert slope[1] == 1.0


def test_physics_are_named_and_stay_possible() -> None:
    assert MountainCarDynamics(power=0.002).physics == {"power": 0.002, "gravity": 0.0025}
    for name in ("power", "gravity"):
        with pytest.raises(ValueError, match=f"{name}: expected a finite number above 0"):
            MountainCarDynamics(**{name: 0.0})


def test_the_task_takes_what_the_environment_holds() -> None:
    with gym.make(CAR, goal_velocity=0.02) as env:
        task = find_task(env)
    assert task.env_kwargs == {"goal_velocity": 0.02}
    assert task.stage_cost.goal.tolist() == [0.6, 0.02, 0.0]
    assert (task.u_min, task.u_max, task.control_per_action) == (-1.0, 1.0, 1.0)


def test_other_environments_are_refused() -> None:
    with (
        gym.make("Pendulum-v1") as env,
        pytest.raises(ValueError, match=r"expected Gymnasium's MountainCarContinuous-v0, got .*, which lacks \['power'"),
    ):
        mountain_car_task(env)


@pytest.mark.slow
@pytest.mark.parametrize("warm_start", [True, False])
def test_the_controller_reaches_the_flag_from_twenty_seeded_starts(warm_start: bool) -> None:
    """100 for the flag, less 0.1 u² a step; above 90 the task counts as solved. Without a warm start it acts as PPO trains."""
    with gym.make(CAR) as env:
        policy = MPCPolicy.for_env(env, warm_start=warm_start)
    found = roll_out(policy, CAR, episodes=20)
    assert all(episode.terminated for episode in found.demonstrations.episodes)
    assert found.returns.min() > 92  # 100 starts lie between 92.3 and 93.2
    assert found.converged > 0.99
    seen = np.concatenate([episode.observations for episode in found.demonstrations.episodes])
    assert seen[:, 0].min() > -0.75  # far from the wall, which the model doesn't have
    assert np.abs(seen[:, 1]).max() < 0.035  # and far from the speed limit of 0.07


def test_ppo_plans_for_the_car_by_name() -> None:
    with gym.make(CAR) as env:
        model = PPO("MPCPolicy", env, policy_kwargs={"task": CAR}, n_steps=16, batch_size=16, n_epochs=1, seed=0, device="cpu")
        before = model.policy.parameter_values()["dynamics.power"]
        model.learn(16)
        assert model.policy.parameter_values()["dynamics.power"] != before
