"""Bounds within the environment's, actions in float64, models of plain numbers, and algorithms that differentiate by everything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import ClipAction, TransformAction
from policy_data import HORIZON, model
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import Tensor, nn

from dilqr_rl import ControlTask, MPCPolicy, QuadraticCost, find_task
from dilqr_rl.agents import PhysicsLearner, record, record_plans, roll_out
from dilqr_rl.agents.learnable import freeze, parameter_values, thaw

SIDE = np.array([0.0, 1.0, 0.0], np.float32)  # a pendulum that wants all of the torque
SLED = "test/Sled64-v0"


class SledEnv(gym.Env[Any, Any]):
    """A mass that a bounded push is to bring to rest; actions are float64."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-0.1, 0.1, (1,), np.float64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2)
        return self.state.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not (isinstance(action, np.ndarray) and action.dtype == np.float64 and self.action_space.contains(action)):
            raise AssertionError(f"{action!r} isn't in the action space")
        self.state = np.array([self.state[0] + 0.1 * self.state[1], self.state[1] + action[0]])
        return self.state.copy(), -float(self.state @ self.state), False, False, {}


class Sled(nn.Module):
    """Its model, with a gain to be learnt, or a plain number."""

    def __init__(self, learnable: bool) -> None:
        super().__init__()
        self.gain: Any = nn.Parameter(torch.tensor(1.0, dtype=torch.float64)) if learnable else 1.0

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.stack((x[..., 0] + 0.1 * x[..., 1], x[..., 1] + self.gain * u[..., 0]), -1)


def itself(observation: Tensor) -> Tensor:
    return observation


def sled_task(learnable: bool = True) -> ControlTask:
    return ControlTask(
        name=SLED,
        dynamics=Sled(learnable),
        stage_cost=QuadraticCost([1.0, 1.0, 0.01], [0.0, 0.0, 0.0]),
        observation_to_state=itself,
        horizon=10,
        state_size=2,
        control_size=1,
        u_min=-0.1,
        u_max=0.1,
    )


@pytest.fixture
def sled() -> gym.Env[Any, Any]:
    if SLED not in gym.registry:
        gym.register(SLED, SledEnv, max_episode_steps=20)
    return gym.make(SLED)


def test_plans_may_keep_within_less_than_the_environment_takes() -> None:
    env = gym.make("Pendulum-v1")
    task = replace(find_task(env), u_min=-1.5, u_max=1.0)
    plan = MPCPolicy.for_env(env, task=task).plan(SIDE)
    assert plan.controls.min() >= -1.5
    assert plan.controls.max() <= 1.0
    assert (plan.controls == 1.0).any() or (plan.controls == -1.5).any()


class Felt(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps what reaches the environment."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.actions: list[float] = []

    def step(self, action: Any) -> Any:
        self.actions.append(float(action[0]))
        return super().step(action)


@pytest.mark.parametrize("algorithm", [PPO, A2C, SAC, TD3])
def test_what_is_tried_around_plans_keeps_to_the_action_space(algorithm: type[Any]) -> None:
    """The task's own limits are the plans', as docs/policies.md says, unless the space is narrowed to them."""
    tight = {"task": replace(find_task(gym.make("Pendulum-v1")), u_min=-0.5, u_max=0.5), "horizon": HORIZON}
    noise = {"action_noise": NormalActionNoise(np.zeros(1), np.ones(1))} if algorithm is TD3 else {}
    largest = []
    for narrowed in (False, True):
        felt = Felt(gym.make("Pendulum-v1"))
        env = TransformAction(felt, lambda action: action, spaces.Box(-0.5, 0.5, (1,))) if narrowed else felt
        model(algorithm, env, tight, **noise).learn(32)
        largest.append(np.abs(felt.actions).max())
    assert largest[0] > 0.6
    assert 0.4 < largest[1] <= 0.5


def test_wider_bounds_are_refused_with_advice_that_helps() -> None:
    env = gym.make("Pendulum-v1")
    with pytest.raises(ValueError, match="Narrow the task's u_min and u_max to what the environment takes"):
        MPCPolicy.for_env(env, task=replace(find_task(env), u_max=2.5))


def test_an_unbounded_action_space_takes_any_plan() -> None:
    usual, clipped = (MPCPolicy.for_env(env) for env in (gym.make("Pendulum-v1"), ClipAction(gym.make("Pendulum-v1"))))
    assert np.array_equal(usual.predict(SIDE)[0], clipped.predict(SIDE)[0])


def test_actions_in_float32_fit_a_space_of_float64(sled: gym.Env[Any, Any]) -> None:
    """float32(0.1) is above 0.1."""
    learner = PhysicsLearner(sled_task())
    found = (record(sled, learner, episodes=2), record_plans(sled, learner, episodes=2), roll_out(learner, SLED, episodes=2))
    for demonstrations in (*found[:2], found[2].demonstrations):
        actions = np.concatenate([episode.actions for episode in demonstrations.episodes])
        assert np.abs(actions).max() == 0.1
    with pytest.raises(ValueError, match="expected actions within"):
        record(sled, lambda _: np.array([0.1001], np.float32), episodes=1)


def test_a_model_of_plain_numbers_controls(sled: gym.Env[Any, Any]) -> None:
    seen, task = np.array([0.05, -0.02]), sled_task(learnable=False)
    assert np.array_equal(
        MPCPolicy.for_env(sled, task=task).predict(seen)[0], MPCPolicy.for_env(sled, task=task, learn=()).predict(seen)[0]
    )
    with pytest.raises(ValueError, match=r"nothing called 'physics'; .* learn=\(\)"):
        MPCPolicy.for_env(sled, task=task, learn=("physics",))


@pytest.mark.parametrize("gradient", ["unroll", "implicit"])
def test_trpo_differentiates_by_every_parameter(gradient: str) -> None:
    settings = {"horizon": 5, "gradient": gradient}
    model = TRPO(MPCPolicy, "Pendulum-v1", policy_kwargs=settings, n_steps=64, batch_size=32, device="cpu", seed=0)
    before = {name: value.detach().clone() for name, value in model.policy.named_parameters()}
    if gradient == "implicit":
        with pytest.raises(NotImplementedError, match='use gradient="unroll"'):
            model.learn(64)
        return
    model.learn(64)
    moved = [name for name, value in model.policy.named_parameters() if not torch.equal(value, before[name])]
    assert any("dynamics" in name for name in moved)
    assert "log_std" in moved
    # TRPO's step is float64 for all of them.
    types = {name: value.dtype for name, value in before.items()}
    assert {name: value.dtype for name, value in model.policy.named_parameters()} == types
    assert set(types.values()) == {torch.float32, torch.float64}


def test_what_is_frozen_is_a_buffer_until_it_is_thawed() -> None:
    torch.manual_seed(0)
    problem = sled_task().problem()
    problem.dynamics.layer, problem.dynamics.memory = nn.Linear(2, 2), nn.LSTMCell(1, 2)
    problem.dynamics.again = problem.dynamics.layer
    values, keys = parameter_values(problem), list(problem.state_dict())
    freeze(problem.requires_grad_(False))
    assert not list(problem.parameters())
    assert {name: value.tolist() for name, value in parameter_values(problem).items()} == {
        name: value.tolist() for name, value in values.items()
    }
    assert sorted(problem.state_dict()) == sorted(keys)
    assert thaw(problem)
    assert not thaw(problem)
    assert set(dict(problem.named_parameters())) == set(values)


def test_an_algorithms_own_environment_brings_the_model(tmp_path: Any) -> None:
    model = PPO("MPCPolicy", "Pendulum-v1", policy_kwargs={"horizon": 5}, n_steps=64, device="cpu")
    assert model.policy.task.name == "Pendulum-v1"
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model")
    assert np.array_equal(again.predict(SIDE, deterministic=True)[0], model.predict(SIDE, deterministic=True)[0])
    elsewhere = make_vec_env("Pendulum-v1", 1, vec_env_cls=SubprocVecEnv)
    assert PPO("MPCPolicy", elsewhere, device="cpu").policy.task.name == "Pendulum-v1"
    elsewhere.close()
    with pytest.raises(ValueError, match="no model is known"):
        PPO("MPCPolicy", SledEnv(), device="cpu")


@pytest.mark.parametrize(("name", "hint"), [("horizn", "Is it 'horizon'"), ("xyz", "It has")])
def test_a_typo_in_policy_kwargs_is_told(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=f"policy_kwargs: expected arguments of MPCPolicy, got '{name}'. {hint}"):
        PPO("MPCPolicy", "Pendulum-v1", policy_kwargs={name: 5}, device="cpu")
