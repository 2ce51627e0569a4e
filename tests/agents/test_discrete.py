"""Discrete actions: Gymnasium's classic control, and PPO and A2C with a Categorical around the plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor

from dilqr_rl import MPCPolicy, find_task
from dilqr_rl.agents import PhysicsLearner, PlanState, SystemIdentification, record, roll_out
from dilqr_rl.agents.discrete import controls_of

IDS = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0")


@pytest.mark.parametrize("env_id", IDS)
def test_a_model_takes_the_environments_own_step(env_id: str) -> None:
    env, rng = gym.make(env_id).unwrapped, np.random.default_rng(0)
    task, span = (
        find_task(env),
        {"CartPole-v1": [2, 3, 3, 3], "Acrobot-v1": [3, 3, 3, 3], "MountainCar-v0": [0.5, 0.03]}[env_id],
    )
    for _ in range(50):
        env.reset(seed=0)
        state = rng.uniform(-1, 1, len(span)) * span
        env.state = state.copy()  # type: ignore[attr-defined]
        before = torch.as_tensor(env._get_ob() if env_id == "Acrobot-v1" else state)  # type: ignore[attr-defined]
        action = int(rng.integers(env.action_space.n))  # type: ignore[attr-defined]
        seen = env.step(action)[0]
        control = torch.as_tensor(controls_of(task)[action])
        after = task.dynamics(task.observation_to_state(before.double()), control)
        expected = task.observation_to_state(torch.as_tensor(seen).double())
        turned = (after - expected + torch.pi) % (2 * torch.pi) - torch.pi  # the acrobot's angles end at pi
        assert turned.abs().max() < 1e-5, (state, action, after, expected)


@pytest.mark.parametrize(("env_id", "least"), [("CartPole-v1", 500.0), ("Acrobot-v1", -100.0), ("MountainCar-v0", -150.0)])
def test_the_ready_controller_solves_it(env_id: str, least: float) -> None:
    """500 are all steps; the others count as solved from -100 and -110 in the mean."""
    env = gym.make(env_id)
    policy = MPCPolicy.for_env(env)
    for seed in range(3):
        seen, state, over, total = env.reset(seed=seed)[0], None, False, 0.0
        while not over:
            action, state = policy.predict(seen, state)
            assert action in env.action_space
            seen, reward, terminated, truncated, _ = env.step(int(action))
            total, over = total + float(reward), terminated or truncated
        assert total >= least


def test_applied_controls_follow_planned_ones_in_the_mean() -> None:
    state = PlanState.begin(torch.zeros(1, 3, 1), 2)
    controls, planned, applied = np.array([[-10.0], [10.0]]), [], []
    for step in range(200):
        wanted = np.array([[4.0 * np.sin(0.02 * step)]])
        action, state = state.choose(wanted, controls)
        planned.append(wanted[0, 0])
        applied.append(state.previous[0, 0])
        assert applied[-1] == controls[action[0], 0]
        assert abs(sum(planned) - sum(applied)) <= 10.0 + 1e-9
        assert state.owed[0, 0] == pytest.approx(sum(planned) - sum(applied))


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_algorithms_learn_with_a_categorical_around_the_plan(algorithm: type[BaseAlgorithm], tmp_path: Path) -> None:
    model: Any = algorithm("MPCPolicy", "CartPole-v1", n_steps=64, seed=0, device="cpu")
    before = {name: value.detach().clone() for name, value in model.policy.named_parameters()}
    model.learn(128)
    moved = {name for name, value in model.policy.named_parameters() if not torch.equal(value, before[name])}
    assert "action_net.log_std" in moved
    assert any("dynamics" in name for name in moved)
    model.save(tmp_path / "model")
    seen = np.array([0.0, 0.0, 0.02, 0.0], np.float32)
    again: Any = algorithm.load(tmp_path / "model")
    assert again.predict(seen, deterministic=True)[0] == model.predict(seen, deterministic=True)[0]
    assert torch.equal(again.policy.plan(seen).controls, model.policy.plan(seen).controls)


def test_the_likeliest_action_is_the_planned_controls_nearest() -> None:
    policy = MPCPolicy.for_env(gym.make("Acrobot-v1"), warm_start=False)
    seen = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.3, -0.2], [0.8, 0.6, 1.0, 0.0, 1.0, 0.0]])
    distribution: Any = policy.get_distribution(seen)
    planned = policy.plan(seen).controls[:, 0]
    torques = torch.tensor([-1.0, 0.0, 1.0])
    expected: Tensor = (planned.float() - torques).abs().argmin(1)
    assert torch.equal(distribution.distribution.probs.argmax(1), expected)
    assert np.array_equal(policy.predict(seen.numpy())[0], expected.numpy())


def test_a_rollout_and_a_checkpoint(tmp_path: Path) -> None:
    policy = MPCPolicy.for_env(gym.make("CartPole-v1"))
    policy.save(tmp_path / "policy.safetensors")
    again = MPCPolicy.load(tmp_path / "policy.safetensors")
    found = [roll_out(one, "CartPole-v1", episodes=1).returns for one in (policy, again)]
    assert found[0] == found[1] == 500.0


def test_what_has_no_place_is_refused_with_a_sentence() -> None:
    env = gym.make("CartPole-v1")
    task = find_task(env)
    for policy in ("MPCPolicy", MPCPolicy):
        with pytest.raises(ValueError, match="DQN learns what each action is worth and has no actor"):
            DQN(policy, "CartPole-v1")
    with pytest.raises(ValueError, match="doesn't say which control each action of Discrete\\(2\\) stands for"):
        MPCPolicy.for_env(env, task=replace(task, discrete_controls=None))
    with pytest.raises(ValueError, match="expected 3 actions"):
        MPCPolicy.for_env(env, task=replace(task, discrete_controls=[[-1.0], [0.0], [1.0]]))
    with pytest.raises(ValueError, match=r"expected Discrete\(2\), .* got Box"):
        MPCPolicy.for_env(
            gym.make("Pendulum-v1"), task=replace(find_task(gym.make("Pendulum-v1")), discrete_controls=[[-1.0], [1.0]])
        )
    for wrong in ([[-20.0], [20.0]], [-10.0, 10.0], [[1.0]], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="discrete_controls: expected a control of 1 numbers within the bounds"):
            replace(task, discrete_controls=wrong)
    with pytest.raises(ValueError, match=r"task: a learner fits real-valued controls, .*SystemIdentification"):
        PhysicsLearner(task)


class Forces(gym.ActionWrapper[Any, Any, Any]):
    """Takes the force that an action of the cart-pole stands for."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = gym.spaces.Box(-10.0, 10.0, (1,))  # type: ignore[assignment]

    def action(self, action: Any) -> int:
        return int(action[0] > 0)


def test_forces_behind_actions_are_recorded_and_tell_the_physics(caplog: pytest.LogCaptureFixture) -> None:
    """As `record` advises, where it refuses the actions."""
    rng, env = np.random.default_rng(0), gym.make("CartPole-v1")
    with pytest.raises(ValueError, match="record what discrete actions stand for, by a wrapper that takes it"):
        record(env, lambda _: 0, episodes=1)
    data = record(Forces(env), lambda _: rng.choice([-10.0, 10.0], 1), episodes=5)
    assert not caplog.records
    learner = SystemIdentification(replace(find_task(env), discrete_controls=None), physics={"length": 1.0})
    learner.fit(data)
    assert learner.readable_parameters()["dynamics.length"].item() == pytest.approx(0.5, abs=1e-4)  # of float32


def test_controls_in_another_unit_than_actions() -> None:
    """A share of the force is planned; which of the actions it means is the same."""
    env = gym.make("CartPole-v1")
    task = find_task(env)
    shares = replace(task, control_per_action=5.0)
    seen = np.array([[0.0, 0.0, 0.02, 0.3], [0.1, -0.3, -0.05, -0.2]], np.float32)
    plain, other = (MPCPolicy.for_env(env, task=one, warm_start=False) for one in (task, shares))
    assert np.array_equal(plain.predict(seen)[0], other.predict(seen)[0])
    probabilities = [one.get_distribution(torch.as_tensor(seen)).distribution.probs for one in (plain, other)]  # type: ignore[attr-defined]
    assert torch.allclose(*probabilities, atol=1e-6)
