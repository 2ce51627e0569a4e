"""Wrappers that change what a model reads are refused at every door, by name; those that pass it on are not."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import wrappers
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import vector
from learner_data import tensors
from policy_data import ENV, HORIZON, POLICIES, StateBeside, batch, model, near_upright, planning
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
)
from wrapped import CHANGED, HIGH, LOW, PASSED_ON, SIZES, Late, Reversed, changed

from dilqr_rl import find_task
from dilqr_rl.agents import MPCPolicy, PhysicsLearner, SB3VecEnv, record, record_plans
from dilqr_rl.envs import ContextObservation

each_changed = pytest.mark.parametrize("name", CHANGED)
WHICH = (
    r"env: expected observations as Pendulum-v1 gives them, .* changed by {}: .*Leave that wrapper out, or give a task with an"
)


def refusal(name: str) -> str:
    return WHICH.format(name)


@each_changed
def test_what_changes_observations_is_refused_for_one_environment(name: str) -> None:
    env = changed(name)
    with pytest.raises(ValueError, match=refusal(name)):
        MPCPolicy.for_env(env)
    with pytest.raises(ValueError, match=refusal(name)):
        MPCPolicy.for_env(wrappers.TimeLimit(env, 3), task=find_task(env))  # whose model reads what is within, too
    with pytest.raises(ValueError, match=refusal(name)):
        PhysicsLearner.for_env(env)


@pytest.mark.parametrize("name", PASSED_ON)
def test_what_passes_observations_on_is_welcome(name: str) -> None:
    env = PASSED_ON[name](gym.make(ENV))
    policy = MPCPolicy.for_env(env, horizon=HORIZON, warm_start=False)
    seen, _ = env.reset(seed=0)
    expected = MPCPolicy.for_env(gym.make(ENV), horizon=HORIZON, warm_start=False).predict(gym.make(ENV).reset(seed=0)[0])[0]
    np.testing.assert_allclose(policy.predict(seen)[0], expected, rtol=1e-5)  # of float32, scaled and back
    PPO("MPCPolicy", env, policy_kwargs=planning(), n_steps=4, batch_size=4, device="cpu")


def test_looking_at_a_wrapper_leaves_it_as_it_was() -> None:
    env = Late(gym.make(ENV))
    with pytest.raises(ValueError, match=refusal("Late")):
        MPCPolicy.for_env(env)
    assert env.last is None
    noise = wrappers.TransformObservation(env.env, lambda seen: seen, None)
    before = str(env.unwrapped.observation_space.np_random.bit_generator.state)
    MPCPolicy.for_env(noise)
    assert str(env.unwrapped.observation_space.np_random.bit_generator.state) == before
    env.reset(seed=0)
    state = env.unwrapped.np_random.bit_generator.state
    with pytest.raises(ValueError, match=refusal("Noisy")):
        MPCPolicy.for_env(Noisy(env.env))
    assert env.unwrapped.np_random.bit_generator.state == state


class Noisy(gym.ObservationWrapper[Any, Any, Any]):
    def observation(self, observation: Any) -> Any:
        return observation + self.np_random.normal(0.0, 0.1, 3)


def test_a_task_that_reads_what_the_wrapper_shows_acts_as_without_it() -> None:
    raw, env = gym.make(ENV), changed("RescaleObservation")
    task = replace(find_task(env), observation_to_state=lambda seen: seen * torch.as_tensor(SIZES))
    settings = {"horizon": HORIZON, "warm_start": False}
    one, other = MPCPolicy.for_env(env, task=task, **settings), MPCPolicy.for_env(raw, **settings)
    np.testing.assert_allclose(
        one.predict(env.reset(seed=1)[0])[0], other.predict(raw.reset(seed=1)[0])[0], atol=1e-5
    )  # float32
    PPO("MPCPolicy", DummyVecEnv([lambda: changed("RescaleObservation")]), policy_kwargs=planning(task=task), device="cpu")
    assert record(env, PhysicsLearner(task, horizon=HORIZON), episodes=1).episodes[0].observations.shape == (201, 3)


def test_a_task_of_an_environment_s_own_wrapper_reads_it() -> None:
    env = ContextObservation(gym.make("dilqr_rl/Pendulum-v0"))
    MPCPolicy.for_env(wrappers.TimeLimit(env, 3), horizon=HORIZON)
    with pytest.raises(ValueError, match="changed by RescaleObservation"):
        MPCPolicy.for_env(wrappers.RescaleObservation(env, LOW, HIGH), horizon=HORIZON)
    with pytest.raises(ValueError, match="changed by TransformObservation"):
        MPCPolicy.for_env(wrappers.TransformObservation(env, lambda seen: 2 * seen, None), task=find_task(env))


class OwnState(StateBeside):
    """An environment that shows a Dict by itself, and has a model of its "state"."""

    def control_task(self) -> Any:
        return find_task(self.env)


def test_the_state_may_be_all_that_is_shown_of_a_dict() -> None:
    """Where a model's own environment shows more, too."""
    alone = wrappers.FlattenObservation(wrappers.FilterObservation(OwnState(near_upright()), ["state"]))
    settings = {"horizon": HORIZON, "warm_start": False}
    seen, _ = near_upright().reset(seed=0)
    expected, _ = MPCPolicy.for_env(near_upright(), **settings).predict(seen)
    np.testing.assert_array_equal(MPCPolicy.for_env(alone, **settings).predict(alone.reset(seed=0)[0])[0], expected)
    beside = batch(2, lambda: OwnState(near_upright()))
    model(PPO, VecExtractDictObs(beside, "state"), {"task": None})
    with pytest.raises(ValueError, match=r"changed by VecExtractDictObs: they are of Box\(-100"):
        model(PPO, VecExtractDictObs(beside, "obs"), {"task": None})
    with pytest.raises(ValueError, match="changed by FlattenObservation"):
        MPCPolicy.for_env(wrappers.FlattenObservation(OwnState(near_upright())))
    with pytest.raises(ValueError, match="changed by TransformObservation"):
        MPCPolicy.for_env(wrappers.TransformObservation(alone, lambda state: -state, None))


@pytest.mark.parametrize("algorithm", POLICIES)
@pytest.mark.parametrize("name", ["RescaleObservation", "TransformObservation", "Late", "TimeAwareObservation"])
def test_what_changes_observations_is_refused_by_every_algorithm(algorithm: type[Any], name: str) -> None:
    for task in (ENV, find_task(gym.make(ENV))):
        with pytest.raises(ValueError, match=refusal(name)):
            model(algorithm, batch(2, lambda: CHANGED[name](near_upright())), {"task": task})


def test_what_is_around_a_batch() -> None:
    with pytest.raises(ValueError, match=refusal("VecFrameStack")):
        model(PPO, VecFrameStack(batch(), 2))
    model(PPO, VecMonitor(VecCheckNan(batch())))
    beside = batch(2, lambda: StateBeside(near_upright()))
    model(PPO, VecExtractDictObs(beside, "state"))
    with pytest.raises(ValueError, match=refusal("VecExtractDictObs")):
        model(PPO, VecExtractDictObs(beside, "obs"))
    model(PPO, VecFrameStack(batch(2, near_upright), 1))
    with pytest.raises(ValueError, match=refusal("VecFrameStack")):
        model(PPO, VecFrameStack(beside, 2))


def test_a_state_in_a_dict_that_was_scaled_before() -> None:
    with pytest.raises(ValueError, match=refusal("RescaleObservation")):
        model(PPO, batch(2, lambda: StateBeside(CHANGED["RescaleObservation"](near_upright()))))


def test_an_environment_that_comes_later_is_looked_at() -> None:
    one = model(PPO)
    one.set_env(batch(2, lambda: Reversed(near_upright())))
    with pytest.raises(ValueError, match=refusal("Reversed")):
        one.learn(8)


def make_vec(env_id: str = ENV, inside: Any = (), mode: str = "sync") -> Any:
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
    more = {"autoreset_mode": "same_step"} if mode == "vector_entry_point" else {"vector_kwargs": same_step, "wrappers": inside}
    return gym.make_vec(env_id, 2, vectorization_mode=mode, **more)


class Halved(gym.vector.VectorWrapper):
    """Another space around a batch."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        box = env.single_observation_space
        self.single_observation_space = gym.spaces.Box(box.low / 2, box.high / 2, dtype=np.float32)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)


def test_batches_of_gymnasium() -> None:
    model(PPO, SB3VecEnv(make_vec()))
    native = partial(make_vec, "dilqr_rl/Pendulum-v0", mode="vector_entry_point")
    model(PPO, SB3VecEnv(native()), {"task": "dilqr_rl/Pendulum-v0"})
    with pytest.raises(ValueError, match=refusal("RescaleObservation")):
        model(PPO, SB3VecEnv(make_vec(inside=[CHANGED["RescaleObservation"]])))
    with pytest.raises(ValueError, match=refusal("Reversed")):
        model(PPO, SB3VecEnv(make_vec(inside=[Reversed])))
    with pytest.raises(ValueError, match=r"dilqr_rl/Pendulum-v0|PendulumEnv.* changed by Halved"):
        model(PPO, SB3VecEnv(Halved(native())), {"task": "dilqr_rl/Pendulum-v0"})
    later = make_vec(inside=[])
    later.metadata = {**later.metadata, "autoreset_mode": AutoresetMode.DISABLED}  # what Gymnasium's own wrappers ask for
    scaled = vector.TransformObservation(later, lambda seen: 0.5 * seen)
    later.metadata["autoreset_mode"] = AutoresetMode.SAME_STEP
    with pytest.raises(ValueError, match=refusal("TransformObservation")):
        model(PPO, SB3VecEnv(scaled))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["RescaleObservation", "Reversed"])
def test_environments_in_other_processes(name: str) -> None:
    for make in (
        lambda: SubprocVecEnv([partial(changed, name)] * 2),
        lambda: SB3VecEnv(make_vec(inside=[CHANGED[name]], mode="async")),
    ):
        envs = make()
        if name == "RescaleObservation" or isinstance(envs, SubprocVecEnv):
            with pytest.raises(
                ValueError, match=r"env: expected observations as Pendulum-v1 gives them, .* in another process"
            ):
                model(PPO, envs)
        envs.close()
    plain = SubprocVecEnv([partial(gym.make, ENV)] * 2)
    model(PPO, plain)
    plain.get_attr = lambda *_: [None, None]  # the specs of environments that gymnasium.make hasn't made
    with pytest.raises(
        ValueError, match=r"task: expected one, since .* have no id to find a model by\. Give it in policy_kwargs"
    ):
        model(PPO, plain, {"task": None})
    plain.close()


@each_changed
def test_recordings(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A planner is refused; anybody else's actions are recorded, and that no model reads what goes with them is told."""
    env, expert = wrappers.TimeLimit(changed(name), 3), PhysicsLearner(ENV, horizon=3)
    space = env.observation_space
    recorded = isinstance(space, gym.spaces.Dict) or (isinstance(space, gym.spaces.Box) and len(space.shape) == 1)
    for call in (lambda: record(env, expert, episodes=1), lambda: record_plans(env, expert, episodes=1)):
        with pytest.raises(ValueError, match=refusal(name) if recorded else "env: expected flat observations"):
            call()
    if recorded and name != "Within":
        with caplog.at_level(logging.WARNING, "dilqr_rl"):
            record(env, lambda _: np.zeros(1, np.float32), episodes=1)
        assert any(f"changed by {name}" in one.getMessage() for one in caplog.records)


def test_a_model_of_stable_baselines3_is_recorded_as_what_it_plans_with() -> None:
    one = model(PPO)
    record(near_upright(), one, episodes=1)
    with pytest.raises(ValueError, match=refusal("Reversed")):
        record(Reversed(near_upright()), one, episodes=1)


def test_what_a_learner_goes_on_with() -> None:
    learner = PhysicsLearner(ENV, horizon=HORIZON)
    before = tensors(learner)
    learner.to_sb3(PPO, batch(), n_steps=4, batch_size=4, device="cpu")
    with pytest.raises(ValueError, match=refusal("Reversed")):
        learner.to_sb3(PPO, batch(2, lambda: Reversed(near_upright())), device="cpu")
    assert tensors(learner).keys() == before.keys()


def test_an_environment_without_a_model_is_its_task_s_own_affair(caplog: pytest.LogCaptureFixture) -> None:
    class Plain(gym.Env[Any, Any]):
        observation_space, action_space = gym.spaces.Box(-SIZES, SIZES), gym.spaces.Box(-2.0, 2.0, (1,))

    task = replace(find_task(gym.make(ENV)), name="Nowhere-v0")
    MPCPolicy.for_env(CHANGED["RescaleObservation"](Plain()), task=task, horizon=HORIZON)
    model(PPO, DummyVecEnv([lambda: CHANGED["RescaleObservation"](Plain())]), {"task": task})
    with pytest.raises(ValueError, match=r"env: expected observations as Plain gives them, .* changed by RescaleObservation"):
        model(PPO, DummyVecEnv([lambda: CHANGED["RescaleObservation"](Plain())]), {"task": ENV})
