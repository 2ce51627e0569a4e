"""What a ClipAction would cut off of a plan, and what wrappers make of discrete actions, is told at every door."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import ClipAction, RescaleAction, TransformAction, vector
from policy_data import ENV, model
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from dilqr_rl import ControlTask, find_task
from dilqr_rl.agents import MPCPolicy, PhysicsLearner, SB3VecEnv, record, record_plans
from dilqr_rl.agents.wrapped_actions import refuse_actions_elsewhere
from dilqr_rl.agents.wrappers import refuse_changes

CUT_OFF = (
    r"env: expected the limits of ClipAction, which cuts off what is beyond, to hold the actions from \[?-2\.?\]? to {} of"
)
CART = "CartPole-v1"
THREE = spaces.Box(-3.0, 3.0, (1,))
SWAPPED = (
    r"env: expected actions as CartPole-v1's model has them, got them changed by {}, to Discrete\(2\)\..* discrete_controls"
)


def task(**changes: Any) -> ControlTask:
    return replace(find_task(gym.make(ENV)), **changes)


def batches(make: Callable[[], gym.Env[Any, Any]], around: Any = None) -> list[Any]:
    """The same in Stable-Baselines3's form, and in Gymnasium's with a wrapper around."""
    inner = SyncVectorEnv([make, make], autoreset_mode=AutoresetMode.SAME_STEP)
    return [DummyVecEnv([make, make])] if around is None else [SB3VecEnv(around(inner))]


@pytest.mark.parametrize(
    ("change", "end"), [({"u_max": 2.5}, "2.5"), ({"u_max": np.inf}, "inf"), ({"u_max": np.array([2.5])}, r"\[2.5\]")]
)
def test_a_single_environments_limits_hold_the_plans(change: dict[str, Any], end: str) -> None:
    env, wide = ClipAction(gym.make(ENV)), task(**change)
    with pytest.raises(ValueError, match=CUT_OFF.format(end) + ".*Narrow the task's u_min and u_max"):
        MPCPolicy.for_env(env, task=wide)
    learner = PhysicsLearner(wide, horizon=2)
    for call in (record, record_plans):
        with pytest.raises(ValueError, match=CUT_OFF.format(end)):
            call(env, learner, episodes=1)


def said_to_end(inner: Any) -> Any:
    return vector.VectorizeTransformAction(vector.ClipAction(inner), TransformAction, func=np.array, action_space=THREE)


@pytest.mark.parametrize(
    "make",
    [
        lambda: batches(lambda: TransformAction(ClipAction(gym.make(ENV)), np.array, THREE))[0],
        lambda: batches(lambda: gym.make(ENV), said_to_end)[0],
    ],
    ids=["DummyVecEnv", "vector.ClipAction"],
)
def test_those_of_a_batch_do(make: Callable[[], Any]) -> None:
    """Algorithms refuse spaces without bounds, but not a wrapper that says that there are some."""
    model(PPO, make())
    with pytest.raises(ValueError, match=r"got them changed by \w*TransformAction, to Box\(-3"):
        model(PPO, make(), {"task": task(u_max=2.5)})


def test_limits_are_in_the_unit_of_what_they_cut_off() -> None:
    shares, wide = (task(control_per_action=2.0, **more) for more in ({}, {"u_max": 2.5}))
    inside = ClipAction(RescaleAction(gym.make(ENV), np.float32(-1.0), np.float32(1.0)))
    doubled = TransformAction(ClipAction(gym.make(ENV)), lambda action: 2.0 * action, None)
    for env in (inside, doubled):
        refuse_changes(env, shares)
    with pytest.raises(ValueError, match=r"to hold the actions from -1 to 1\.25"):
        refuse_changes(inside, wide)
    with pytest.raises(ValueError, match="got them changed by TransformAction"):  # where it is only tried
        refuse_changes(doubled, wide)
    noisy = TransformAction(ClipAction(gym.make(ENV)), lambda action: action + torch.randn(1).numpy(), None)
    refuse_changes(noisy, task())  # noise at full power isn't within


def test_the_sign_of_a_unit_hides_no_end() -> None:
    with pytest.raises(ValueError, match=r"expected one that holds the actions from -2\.5 to 2 of"):
        MPCPolicy(
            gym.make(ENV).observation_space,
            gym.make(ENV).action_space,
            lambda _: 0.0,
            task=task(control_per_action=-1.0, u_max=2.5),
        )


class Swaps(gym.ActionWrapper[Any, Any, Any]):
    """Left for right, with a chance."""

    def __init__(self, env: gym.Env[Any, Any], chance: float = 1.0) -> None:
        super().__init__(env)
        self.chance = chance

    def action(self, action: Any) -> Any:
        return 1 - action if self.np_random.random() < self.chance else action


class Late(gym.ActionWrapper[Any, Any, Any]):
    """The action before."""

    last = 0

    def action(self, action: Any) -> Any:
        self.last, late = action, self.last
        return late


class Pushes(gym.ActionWrapper[Any, Any, Any]):
    """A pendulum with three torques, of which 1 is none."""

    def __init__(self, torque: float = 1.0, noise: float = 0.0) -> None:
        super().__init__(ClipAction(gym.make(ENV)))
        self.action_space, self.torque, self.noise = spaces.Discrete(3, start=1), torque, noise  # type: ignore[assignment]

    def action(self, action: Any) -> Any:
        return np.array([self.torque * (action - 2) + self.noise * self.np_random.normal()], np.float32)


CHANGED: dict[str, Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = {
    "swapped": Swaps,
    "mostly swapped": lambda env: Swaps(env, 0.9),
    "anything": lambda env: Swaps(env, 0.5),
    "late": Late,
    "always left": lambda env: TransformAction(env, lambda _: 0, None),
    "none of them": lambda env: TransformAction(env, lambda action: action - 1, None),
}
SAME: dict[str, Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = {
    "identity": lambda env: TransformAction(env, lambda action: action, None),
    "swapped twice": lambda env: Swaps(Swaps(env)),
    "seldom swapped": lambda env: Swaps(env, 0.05),
}


@pytest.mark.parametrize("name", CHANGED)
def test_discrete_actions_that_mean_something_else_are_refused(name: str) -> None:
    env = CHANGED[name](gym.make(CART))
    with pytest.raises(ValueError, match=SWAPPED.format(r"\w+")):
        MPCPolicy.for_env(env)


@pytest.mark.parametrize("name", SAME)
def test_those_that_mean_the_same_are_not(name: str) -> None:
    env = SAME[name](gym.make(CART))
    assert MPCPolicy.for_env(env).predict(env.reset(seed=0)[0])[0] in (0, 1)


def test_a_task_may_say_what_they_mean_there() -> None:
    env, own = Swaps(gym.make(CART)), find_task(gym.make(CART))
    refuse_changes(env, replace(own, discrete_controls=[[10.0], [-10.0]]))
    refuse_changes(env, replace(own, discrete_controls=[[9.0], [-9.0]]))  # of which the environment's are the nearest
    with pytest.raises(ValueError, match="changed by Swaps"):
        refuse_changes(gym.Wrapper(env), replace(own, discrete_controls=[[-9.0], [9.0]]))


@pytest.mark.parametrize(
    "make",
    [
        lambda: batches(lambda: Swaps(gym.make(CART)))[0],
        lambda: batches(lambda: gym.make(CART), lambda inner: vector.TransformAction(inner, lambda actions: 1 - actions))[0],
    ],
    ids=["DummyVecEnv", "vector.TransformAction"],
)
def test_a_batchs_are_tried_too(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=SWAPPED.format(r"(Swaps|TransformAction)")):
        PPO("MPCPolicy", make(), device="cpu")


def test_a_batchs_identity_is_none() -> None:
    same = batches(lambda: gym.make(CART), lambda inner: vector.TransformAction(inner, lambda actions: 1 * actions))[0]
    PPO("MPCPolicy", same, n_steps=4, batch_size=4, device="cpu")


def test_numbers_behind_discrete_actions_are_the_tasks_controls() -> None:
    three = [[-1.0], [0.0], [1.0]]
    refuse_changes(Pushes(), task(discrete_controls=three))
    refuse_changes(Pushes(noise=0.2), task(discrete_controls=three))
    refuse_changes(Pushes(2.0), task(discrete_controls=[[-2.0], [0.0], [2.0]]))
    for env in (Pushes(0.9), Pushes(-1.0), Pushes(2.5)):
        with pytest.raises(ValueError, match=r"changed by Pushes, to Discrete\(3, start=1\)"):
            refuse_changes(env, task(discrete_controls=three))
    with pytest.raises(ValueError, match="changed by Pushes"):  # of which the clip lets 2 through
        refuse_changes(Pushes(2.5), task(u_max=2.5, u_min=-2.5, discrete_controls=[[-2.5], [0.0], [2.5]]))


def test_where_no_model_is_known_discrete_actions_mean_what_the_task_says() -> None:
    env = Pushes()
    env.env = RescaleAction(gym.make(ENV), np.float32(-1.0), np.float32(1.0))
    env.unwrapped.spec = None
    refuse_changes(env, task(discrete_controls=[[-1.0], [0.0], [1.0]]))


def test_of_other_processes_there_are_classes_alone() -> None:
    own, swapped = find_task(gym.make(CART)), DummyVecEnv([lambda: Swaps(gym.make(CART))])
    with pytest.raises(ValueError, match="an ActionWrapper in another process"):
        refuse_actions_elsewhere(swapped, gym.make(CART), own)
    refuse_actions_elsewhere(DummyVecEnv([Pushes]), gym.make(ENV), task(discrete_controls=[[-1.0], [0.0], [1.0]]))
