"""What wrappers make of actions must be the control that a task means by them, at every door; looking leaves no trace."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import ClipAction, RescaleAction, StickyAction, TimeLimit, TransformAction, vector
from policy_data import ENV, HORIZON, batch, model, near_upright
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from dilqr_rl import find_task
from dilqr_rl.agents import MPCPolicy, PhysicsLearner, SB3VecEnv, SystemIdentification, record, record_plans
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.wrapped_actions import refuse_actions_elsewhere
from dilqr_rl.agents.wrappers import refuse_changes

REFUSED = r"env: expected actions as Pendulum-v1's model has them, got them changed by {}, to Box\(.*Leave that wrapper out"
DRAWS = np.random.default_rng(0)  # which a wrapper's function may name


def refusal(name: str) -> str:
    return REFUSED.format(name)


def flipped(action: Any) -> Any:
    return -action


def transformed(change: Callable[[Any], Any], env: gym.Env[Any, Any] | None = None) -> gym.Env[Any, Any]:
    return TransformAction(gym.make(ENV) if env is None else env, change, None)


def rescaled(end: float = 1.0) -> gym.Env[Any, Any]:
    return RescaleAction(gym.make(ENV), np.float32(-end), np.float32(end))


class Filter(gym.ActionWrapper[Any, Any, Any]):
    """y = y + share (action - y); with a share of 0 what came before."""

    def __init__(self, env: gym.Env[Any, Any], share: float) -> None:
        super().__init__(env)
        self.share, self.last = share, np.zeros(env.action_space.shape or (1,))

    def action(self, action: Any) -> Any:
        last = self.last
        self.last = last + (self.share or 1.0) * (action - last)
        return self.last if self.share else last


class Noisy(gym.ActionWrapper[Any, Any, Any]):
    """gain * action, and noise of a share of half the range; counted where the environment is."""

    def __init__(self, env: gym.Env[Any, Any], gain: float = 1.0, share: float = 0.1) -> None:
        super().__init__(env)
        self.gain, self.deviation = gain, 2.0 * share  # N m

    def action(self, action: Any) -> Any:
        base: Any = self.unwrapped
        base.count = getattr(base, "count", 0) + 1
        return self.gain * action + self.np_random.normal(0.0, self.deviation, 1)


class Started(gym.ActionWrapper[Any, Any, Any]):
    """Needs an episode's start."""

    sign = None

    def reset(self, **kwargs: Any) -> Any:
        self.sign = 1.0
        return super().reset(**kwargs)

    def action(self, action: Any) -> Any:
        return self.sign * action


CHANGED: dict[str, Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = {
    "flipped": lambda env: transformed(flipped, env),
    "flipped in place": lambda env: transformed(lambda action: np.negative(action, out=action), env),
    "97 %": lambda env: transformed(lambda action: 0.97 * action, env),
    "pushed": lambda env: transformed(lambda action: action + 0.06, env),  # 3 % of half the range
    "all or nothing": lambda env: transformed(lambda action: 4 / 3 * np.sign(action), env),  # whose gain is 1 in the mean
    "limited": lambda env: transformed(lambda action: np.clip(action, -1.0, 1.0), env),
    "not a number": lambda env: transformed(lambda action: action * np.nan, env),
    "low-pass": lambda env: Filter(env, 0.5),
    "delay": lambda env: Filter(env, 0.0),
    "noise, flipped": lambda env: Noisy(env, -1.0, 0.3),
    "noise, halved": lambda env: Noisy(env, 0.5),
    "noise alone": lambda env: Noisy(env, 0.0, 3.0),
    "before a start": Started,
}
DISTURBED: dict[str, Callable[[gym.Env[Any, Any]], gym.Env[Any, Any]]] = {
    "same": lambda env: transformed(lambda action: action, env),
    "noise": Noisy,
    "much noise": lambda env: Noisy(env, 1.0, 0.5),
    "steps": lambda env: transformed(lambda action: np.round(action, 1), env),
    "dead zone": lambda env: transformed(lambda action: np.where(np.abs(action) < 0.1, 0.0, action), env),
    "twice": lambda env: RescaleAction(RescaleAction(env, np.float32(-1), np.float32(1)), np.float32(-2), np.float32(2)),
    "limits": ClipAction,
}


@pytest.mark.parametrize("name", CHANGED)
def test_another_unit_sign_or_delay_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED.format(r"\w+")):
        refuse_changes(CHANGED[name](gym.make(ENV)))


@pytest.mark.parametrize("name", DISTURBED)
def test_a_disturbance_is_not(name: str) -> None:
    refuse_changes(DISTURBED[name](gym.make(ENV)))


def test_what_needs_an_episodes_start_is_tried_after_it() -> None:
    env = Started(gym.make(ENV))
    with pytest.raises(ValueError, match=r"changed by Started, to .* can't be tried on a copy: call env\.reset\(\) first"):
        refuse_changes(env)
    env.reset(seed=0)
    refuse_changes(env)
    env.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"changed by Started, .* give what can't be copied a __deepcopy__"):
        refuse_changes(env)


@pytest.mark.parametrize("seed", range(3))
def test_sticky_actions_are_known(seed: int) -> None:
    """Which seeds made them look like a change, and hid one, was chance."""
    sticky, around = StickyAction(gym.make(ENV), 0.3), StickyAction(transformed(flipped), 0.3)
    for env in (sticky, around):
        env.reset(seed=seed)
        env.step(np.ones(1, np.float32))
    refuse_changes(sticky)
    with pytest.raises(ValueError, match=refusal("TransformAction")):
        refuse_changes(around)


@pytest.mark.parametrize("end", [1e-7, np.inf])
def test_the_range_is_the_tasks(end: float) -> None:
    task = replace(find_task(gym.make(ENV)), u_min=-end, u_max=end)
    refuse_changes(transformed(lambda action: action), task)
    with pytest.raises(ValueError, match=refusal("TransformAction")):
        refuse_changes(transformed(flipped), task)
    if end == np.inf:
        with pytest.raises(ValueError, match=refusal("TransformAction")):
            refuse_changes(transformed(lambda action: 100.0 * np.tanh(action / 100.0)), task)  # a straight line up to 1
        refuse_changes(transformed(lambda action: action), replace(task, u_min=1.0))


def test_components_that_are_mixed_are_refused() -> None:
    with make_env("dilqr_rl/Quadrotor-v0") as env:
        refuse_changes(transformed(lambda action: action, env))
        for change in (lambda action: action[::-1], lambda action: action + 0.05 * action[::-1], lambda action: action[:1]):
            with pytest.raises(ValueError, match="dilqr_rl/Quadrotor-v0's model has them, got them changed by TransformAction"):
                refuse_changes(transformed(change, env))


def test_a_bound_control_has_no_gain() -> None:
    task = replace(find_task(gym.make(ENV)), u_min=1.0, u_max=1.0)
    refuse_changes(transformed(lambda action: action), task)
    with pytest.raises(ValueError, match=refusal("TransformAction")):
        refuse_changes(transformed(flipped), task)


def test_actions_in_another_unit_than_the_models_are_refused() -> None:
    env = rescaled()
    with pytest.raises(ValueError, match=refusal("RescaleAction")):
        MPCPolicy.for_env(env)
    with pytest.raises(ValueError, match=refusal("RescaleAction")):  # within the space, and yet of another unit
        MPCPolicy.for_env(env, task=replace(find_task(env), u_min=-1.0, u_max=0.5))
    shares = replace(find_task(env), control_per_action=2.0)
    assert np.abs(MPCPolicy.for_env(env, task=shares).predict(np.array([0.0, 1.0, 0.0], np.float32))[0]) == 1.0
    halved = replace(find_task(env), control_per_action=0.5, u_min=-1.0, u_max=0.9)  # another unit, and a tighter limit
    MPCPolicy.for_env(transformed(lambda action: 0.5 * action), task=halved)


def test_no_learner_takes_what_another_unit_would_make_another_mass() -> None:
    for env in (rescaled(), transformed(flipped), transformed(lambda action: action / 2)):
        with pytest.raises(ValueError, match=REFUSED.format(r"(Rescale|Transform)Action")):
            SystemIdentification.for_env(env, learn=("dynamics.mass",))


@pytest.mark.parametrize("expert", ["policy", "learner", "model"])
def test_no_planner_is_recorded_where_its_actions_mean_something_else(expert: str) -> None:
    env = TimeLimit(transformed(flipped), 2)
    made: dict[str, Callable[[], Any]] = {
        "policy": lambda: MPCPolicy.for_env(gym.make(ENV), horizon=HORIZON),
        "learner": lambda: PhysicsLearner(ENV, horizon=2),
        "model": lambda: model(PPO),
    }
    planner = made[expert]()
    for call in (record, record_plans) if expert == "learner" else (record,):
        with pytest.raises(ValueError, match=refusal("TransformAction")):
            call(env, planner, episodes=1)


def test_a_recording_for_which_no_model_holds_is_told(caplog: pytest.LogCaptureFixture) -> None:
    def push(_: Any) -> Any:
        return np.ones(1, np.float32)

    with caplog.at_level(logging.WARNING, "dilqr_rl"):
        record(TimeLimit(Noisy(gym.make(ENV)), 2), push, episodes=1)
        assert not caplog.records
        record(TimeLimit(rescaled(), 2), push, episodes=1)
    (line,) = [one.getMessage() for one in caplog.records]
    assert line.startswith(
        "these demonstrations are for learners with a task of their own; env: expected actions as Pendulum-v1"
    )
    assert "changed by RescaleAction" in line


def test_looking_leaves_no_trace() -> None:
    mine, calls = np.random.default_rng(3), []

    def drawn(action: Any) -> Any:
        calls.append(action)
        noise = mine.normal() + DRAWS.normal() + random.gauss() + float(torch.randn(())) + np.random.normal()
        return action + 0.01 * noise

    env = Noisy(transformed(drawn))
    env.reset(seed=0)
    sources: list[Callable[[], Any]] = [
        lambda: env.unwrapped.np_random.bit_generator.state,
        lambda: mine.bit_generator.state,
        lambda: DRAWS.bit_generator.state,
        random.getstate,
        lambda: np.random.get_state()[1:3],
        lambda: torch.get_rng_state().tolist(),
        lambda: env.unwrapped.action_space.np_random.bit_generator.state,
    ]
    before = [str(source()) for source in sources]
    refuse_changes(env)
    assert [str(source()) for source in sources] == before
    assert not calls
    assert not hasattr(env.unwrapped, "count")
    env.step(np.ones(1, np.float32))
    assert (len(calls), env.unwrapped.count) == (1, 1)  # type: ignore[attr-defined]


def test_an_environment_that_was_never_reset_gets_no_generator() -> None:
    env = Noisy(gym.make(ENV))
    refuse_changes(env)
    assert env.unwrapped._np_random is None


def native() -> Any:
    return gym.make_vec(
        "dilqr_rl.envs:dilqr_rl/Pendulum-v0", 2, vectorization_mode="vector_entry_point", autoreset_mode="same_step"
    )


def test_what_is_around_a_batch() -> None:
    task = {"task": "dilqr_rl/Pendulum-v0"}
    model(PPO, SB3VecEnv(vector.TransformAction(native(), lambda actions: np.round(actions, 2))), task)
    around = {
        "TransformAction": lambda: vector.TransformAction(native(), flipped),
        "RescaleAction": lambda: vector.RescaleAction(native(), np.float32(-2), np.float32(2)),
    }
    for name, make in around.items():
        with pytest.raises(ValueError, match=f"dilqr_rl/Pendulum-v0's model has them, got them changed by {name}, to Box"):
            model(PPO, SB3VecEnv(make()), task)


def test_an_environment_that_comes_later_is_looked_at() -> None:
    with pytest.raises(ValueError, match=refusal("TransformAction")):
        model(PPO, batch(2, lambda: transformed(lambda action: 0.5 * action, near_upright())))
    one = model(PPO)
    one.set_env(batch(2, lambda: transformed(flipped, near_upright())))
    with pytest.raises(ValueError, match=refusal("TransformAction")):
        one.learn(8)


def test_other_policies_are_not_asked() -> None:
    PPO(ActorCriticPolicy, transformed(flipped), device="cpu", n_steps=4, batch_size=4)


def test_of_other_processes_there_are_classes_and_bounds() -> None:
    """Which a batch in this process tells as one elsewhere does."""
    base, task = gym.make(ENV), find_task(gym.make(ENV))
    shares, upside_down = replace(task, control_per_action=2.0), transformed(flipped)
    for env, right in ((StickyAction(gym.make(ENV), 0.3), task), (ClipAction(gym.make(ENV)), task), (rescaled(), shares)):
        refuse_actions_elsewhere(DummyVecEnv([lambda env=env: env]), base, right)
    limited = TransformAction(ClipAction(gym.make(ENV)), flipped, base.action_space)
    for env, wrong in ((upside_down, task), (rescaled(), task), (limited, task)):
        with pytest.raises(
            ValueError, match=r"an ActionWrapper in another process, .* in this process \(DummyVecEnv\) it is tried"
        ):
            refuse_actions_elsewhere(DummyVecEnv([lambda env=env: env]), base, wrong)
    clipped = DummyVecEnv([lambda: ClipAction(RescaleAction(gym.make(ENV), np.float32(-1.0), np.float32(1.0)))])
    refuse_actions_elsewhere(clipped, base, shares)
    with pytest.raises(ValueError, match=r"limits of a ClipAction in another process, .* the actions from -2 to 2.5"):
        refuse_actions_elsewhere(clipped, base, replace(shares, u_max=2.5))


def test_in_another_process_nobody_sees_a_function() -> None:
    """Nor can it be sent, and what asks for the environment's id says so."""

    def flipped() -> gym.Env[Any, Any]:  # with nothing of this module, which another process can't import
        return TransformAction(gym.make("Pendulum-v1"), lambda action: -action, None)

    envs = SubprocVecEnv([flipped])
    try:
        with pytest.raises(
            ValueError, match=refusal("an ActionWrapper in another process").replace("Leave", "can't be seen .*")
        ):
            model(PPO, envs, {"task": ENV})
        with pytest.raises(
            ValueError, match=r"task: expected one, since .* can't tell their id.* Make them anew and give it in"
        ):
            model(PPO, envs, {"task": None})
    finally:
        for process in envs.processes:
            process.terminate()
