"""Spaces and models that no plan can be made for are refused by every policy at construction, with what to do instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from policy_data import ENV, POLICIES, batch, model, near_upright
from stable_baselines3 import A2C, PPO
from torch import Tensor, nn

from dilqr_rl import ControlTask, QuadraticCost, find_task
from dilqr_rl.agents import MPCPolicy, MPCSACPolicy, MPCTD3Policy, PlanningPolicy
from dilqr_rl.agents.spaces import check_spaces

STATES = spaces.Box(-8.0, 8.0, (3,), np.float32)
TORQUES = spaces.Box(-2.0, 2.0, (1,), np.float32)
PIXELS = spaces.Box(0, 255, (3, 8, 8), np.uint8)
each_kind = pytest.mark.parametrize("kind", [MPCPolicy, MPCSACPolicy, MPCTD3Policy])


def task(**changes: Any) -> ControlTask:
    with gym.make(ENV) as env:
        return replace(find_task(env), **changes)


def make(kind: type[PlanningPolicy], observations: Any = STATES, actions: Any = TORQUES, **changes: Any) -> PlanningPolicy:
    return kind(observations, actions, lambda _: 0.0, task=task(**changes), horizon=3)


@each_kind
@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (spaces.Discrete(3), r"plans are made of real numbers, .* each action of Discrete\(3\) stands for"),
        (spaces.MultiDiscrete([2]), r"expected a Box of shape \(1,\), as Pendulum-v1's model has, got MultiDiscrete"),
        (spaces.MultiBinary(1), r"expected a Box of shape \(1,\), as Pendulum-v1's model has, got MultiBinary"),
    ],
)
def test_actions_that_are_no_numbers_are_refused(kind: type[PlanningPolicy], actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"action_space: {message}"):
        make(kind, actions=actions)


class Pushes(gym.ActionWrapper[Any, Any, Any]):
    """To the left, nothing, to the right."""

    def __init__(self) -> None:
        super().__init__(near_upright())
        self.action_space = spaces.Discrete(3)

    def action(self, action: Any) -> Any:
        return np.array([action - 1.0], np.float32)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_an_environment_with_discrete_actions_is_refused(algorithm: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"action_space: plans are made of real numbers, .* each action of Discrete"):
        model(algorithm, Pushes())


@each_kind
@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (spaces.Box(-2.0, 2.0, (2,)), r"action_space: expected a Box of shape \(1,\), as Pendulum-v1's model has"),
        (
            spaces.Box(-1.0, 1.0, (1,)),
            r"expected one that holds the actions from -2 to 2 of Pendulum-v1's model.*RescaleAction",
        ),
        (spaces.Box(-1.0, 3.0, (1,)), r"holds the actions from -2 to 2.*Narrow the task's u_min and u_max"),
    ],
)
def test_other_actions_than_the_model_s_are_refused(kind: type[PlanningPolicy], actions: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(kind, actions=actions)


@each_kind
@pytest.mark.parametrize(
    ("observations", "message"),
    [
        (
            spaces.Dict({"obs": STATES, "goal": STATES}),
            r'observation_space: expected a part "state", from which plans start, got .*obs.*ObservationWrapper',
        ),
        (PIXELS, r'expected a flat Box, which Pendulum-v1\'s model turns into states, got .*Pixels.*a Dict with .* as "state"'),
        (spaces.Dict({"state": PIXELS}), r"observation_space: expected a flat Box"),
        (spaces.Dict({"state": spaces.Discrete(3)}), r"observation_space: expected a flat Box"),
        (spaces.Discrete(3), r"observation_space: expected a flat Box"),
        (spaces.MultiBinary(3), r"observation_space: expected a flat Box"),
        (spaces.Box(-1.0, 1.0, (4,)), r"observation_space: observation_to_state of Pendulum-v1's model makes shape \(4,\)"),
        (spaces.Dict({"state": spaces.Box(-1.0, 1.0, (2,))}), r"makes shape \(2,\) of an observation \(2,\), but its states"),
    ],
)
def test_observations_without_a_state_are_refused(kind: type[PlanningPolicy], observations: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(kind, observations)


@each_kind
def test_pixels_beside_a_state_are_welcome(kind: type[PlanningPolicy]) -> None:
    room = spaces.Dict({"picture": spaces.Box(0, 255, (3, 40, 40), np.uint8), "state": STATES})
    one = make(kind, room)
    room.seed(0)
    assert one.predict(room.sample())[0].shape == (1,)


class Shift(nn.Module):
    """A model of states of another size than it is told."""

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.cat((x, u), dim=-1)


@each_kind
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state_size": 4}, r"observation_space: .*makes shape \(3,\) of an observation \(3,\), but its states have \(4,\)"),
        ({"control_size": 2}, r"action_space: expected a Box of shape \(2,\)"),
        ({"dynamics": Shift()}, r"dynamics: .*\(1, 3\)"),
        ({"stage_cost": QuadraticCost([1.0] * 3, [0.0] * 3)}, r"stage_cost"),
        ({"terminal_cost": nn.Linear(3, 1, dtype=torch.float64)}, r"terminal_cost"),
        ({"observation_to_state": lambda seen: seen[..., :2]}, r"makes shape \(2,\) of an observation \(3,\)"),
        ({"u_min": -3.0}, r"action_space: expected one that holds the actions from -3 to 2"),
        ({"control_per_action": 0.5}, r"action_space: expected one that holds the actions from -4 to 4"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(kind: type[PlanningPolicy], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(kind, **changes)


@pytest.mark.parametrize("algorithm", POLICIES)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, "task: expected a ControlTask or an environment's id, got 3"),
        ("Nowhere-v0", "env: 'Nowhere-v0' can't be made"),
        ("FrozenLake-v1", "no model is known for 'FrozenLake-v1'"),
    ],
)
def test_a_task_that_is_none_is_refused(algorithm: type[Any], wrong: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model(algorithm, near_upright(), policy_kwargs={"task": wrong})


def test_spaces_that_fit_are_let_through() -> None:
    check_spaces(task(), STATES, TORQUES)
    check_spaces(task(), spaces.Dict({"state": STATES, "obs": PIXELS}), TORQUES)
    check_spaces(task(control_per_action=2.0), STATES, spaces.Box(-1.0, 1.0, (1,)))


def test_a_batch_is_refused_where_one_environment_is_meant() -> None:
    refused: Callable[[Any], Any] = MPCPolicy.for_env
    with pytest.raises(ValueError, match=r"env: expected a Gymnasium environment, got .*DummyVecEnv.*gymnasium\.make first"):
        refused(batch())


@pytest.mark.parametrize("change", [{"u_max": [2.0]}, {"u_min": None}, {"control_per_action": (1.0,)}])
def test_bounds_that_are_no_numbers_are_refused_by_the_task(change: dict[str, Any]) -> None:
    (name,) = change
    with pytest.raises(ValueError, match=f"{name}: expected a number, or a tensor"):
        replace(find_task(gym.make("Pendulum-v1")), **change)


def test_off_policy_algorithms_take_numbers() -> None:
    with pytest.raises(ValueError, match="action_space: expected a Box, since off-policy algorithms"):
        MPCSACPolicy.for_env(gym.make("CartPole-v1"))
