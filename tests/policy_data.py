"""What the tests of policies share: tiny models of every algorithm, on starts near upright and on one problem structure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv

from dilqr_rl.agents import MPCPolicy, MPCSACPolicy, MPCTD3Policy, PlanningPolicy
from dilqr_rl.agents.environments import make_env

ENV = "Pendulum-v1"
HORIZON = 4
EPISODE = 6
STEPS = 16  # in which every algorithm updates its policy
POLICIES: dict[type[BaseAlgorithm], type[PlanningPolicy]] = {
    PPO: MPCPolicy,
    A2C: MPCPolicy,
    SAC: MPCSACPolicy,
    TD3: MPCTD3Policy,
}
_OFF_POLICY: dict[str, Any] = {"buffer_size": 64, "batch_size": 4, "learning_starts": 4}
TINY: dict[type[BaseAlgorithm], dict[str, Any]] = {
    PPO: {"n_steps": 4, "batch_size": 4, "n_epochs": 2},
    A2C: {"n_steps": 4},
    SAC: _OFF_POLICY,
    TD3: {**_OFF_POLICY, "action_noise": NormalActionNoise(np.zeros(1), 0.1 * np.ones(1))},
    DDPG: _OFF_POLICY,
}


class NearUpright(gym.Wrapper[Any, Any, Any, Any]):
    """Starts where the best torque lies between its bounds, and depends on the physics."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self.env.reset(seed=seed, options={"x_init": 0.04, "y_init": 0.04})


class StateBeside(gym.ObservationWrapper[Any, Any, Any]):
    """{"obs": the state in other units, "state": the state}."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        box = gym.spaces.Box(-100.0, 100.0, (3,), np.float32)
        self.observation_space = gym.spaces.Dict({"obs": box, "state": env.observation_space})

    def observation(self, observation: Any) -> dict[str, Any]:
        return {"obs": np.float32(5.0) * observation + np.float32(1.0), "state": observation}


def near_upright() -> gym.Env[Any, Any]:
    return NearUpright(TimeLimit(gym.make(ENV).unwrapped, EPISODE))


def state_beside() -> gym.Env[Any, Any]:
    return StateBeside(near_upright())


def batch(count: int = 2, make: Any = near_upright) -> DummyVecEnv:
    return DummyVecEnv([make] * count)


def planning(**changes: Any) -> dict[str, Any]:
    """Arguments of a policy."""
    return {"task": ENV, "horizon": HORIZON, "net_arch": [8], **changes}


def model(algorithm: type[Any], env: Any = None, policy_kwargs: Mapping[str, Any] | None = None, **changes: Any) -> Any:
    """A tiny model; `policy_kwargs` are added to those of `planning`."""
    settings = {"seed": 0, "device": "cpu", **TINY[algorithm], **changes}
    return algorithm("MPCPolicy", batch() if env is None else env, policy_kwargs=planning(**(policy_kwargs or {})), **settings)


def policy(kind: type[PlanningPolicy] = MPCPolicy, **changes: Any) -> Any:
    """A policy by itself."""
    with make_env(ENV) as env:
        return kind.for_env(env, **planning(**{"warm_start": False, **changes}))


def observed(count: int, seed: int = 0, spread: float = 0.04) -> NDArray[np.float32]:
    """Observations (count, 3) near upright; with a spread of 0.3 some of the best torques are on their bounds."""
    angle, rate = np.random.default_rng(seed).uniform(-spread, spread, (2, count))
    return np.stack((np.cos(angle), np.sin(angle), rate), axis=-1).astype(np.float32)


def both(states: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """What `state_beside` makes of them."""
    return {"obs": np.float32(5.0) * states + np.float32(1.0), "state": states}


def shake(module: torch.nn.Module, size: float = 0.01) -> None:
    """Move all that is trained a little, so that what is lost on the way somewhere is missed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in filter(lambda one: one.requires_grad, module.parameters()):
            parameter.add_(size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def described(a_policy: PlanningPolicy) -> dict[str, str]:
    """Every argument of its constructor, as text that is the same in every process."""
    arguments = {**a_policy.constructor_arguments(), "task": a_policy.task.name}
    return {name: repr(value) for name, value in arguments.items() if name != "lr_schedule"}
