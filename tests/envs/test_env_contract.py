"""What Gymnasium, Stable-Baselines3 and a planner expect of every environment (CONVENTIONS.md, Environments)."""

import copy
import functools
import math
import os
import pickle
import subprocess
import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import FrameStackObservation, RescaleAction
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv
from systems import IDS, actions, changed_physics, each_id, each_state_id, full, make, roll, still

import dilqr_rl.envs
from dilqr_rl import find_task


@each_id
@pytest.mark.parametrize("render_mode", [None, "human", "rgb_array"])
def test_e1_both_checkers_pass_without_a_warning(env_id: str, render_mode: str | None) -> None:
    env = make(env_id, render_mode=render_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        check_env_sb3(env, skip_render_check=False)
    env.close()


@each_state_id
def test_e1_observations_stay_in_the_space_up_to_the_last(env_id: str) -> None:
    for seed in range(5):
        env = make(env_id)
        env.reset(seed=seed)
        for step in range(1, 201):
            observation, _, terminated, truncated, info = env.step(full(env))
            assert env.observation_space.contains(observation)
            np.testing.assert_array_equal(
                observation, np.clip(info["state"], env.observation_space.low, env.observation_space.high).astype(np.float32)
            )
            assert truncated == (step == 200)
            if terminated or truncated:
                break


@each_id
def test_e2_changing_what_was_returned_changes_nothing(env_id: str) -> None:
    env, twin = make(env_id), make(env_id)
    observation, info = env.reset(seed=1)
    expected, _ = twin.reset(seed=1)
    start = info["state"].copy()
    for action in actions(env, 5):
        observation.fill(7)
        info["state"].fill(7.0)
        info["physics"].clear()
        env.unwrapped.physics.clear()
        observation, _, _, _, info = env.step(action)
        expected, _, _, _, other = twin.step(action)
        np.testing.assert_array_equal(info["state"], other["state"])
        np.testing.assert_array_equal(observation, expected)
    given_start, action = start.copy(), full(env)
    env.reset(options={"state": given_start})
    env.step(action)
    env.step(still(env))
    np.testing.assert_array_equal(given_start, start)
    np.testing.assert_array_equal(action, full(env))


@each_id
def test_e3_rewards_are_floats_flags_are_bools_and_images_are_bytes(env_id: str) -> None:
    env = make(env_id, render_mode="rgb_array").unwrapped
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(still(env))
    assert (type(reward), type(terminated), type(truncated)) == (float, bool, bool)
    assert observation.dtype == (np.uint8 if "Pixels" in env_id else np.float32)
    assert info["state"].dtype == np.float64
    assert {type(number) for number in info["physics"].values()} == {float}
    frame = env.render()
    assert (frame.shape, frame.dtype) == ((500, 500, 3), np.uint8)


@pytest.mark.slow
@each_id
def test_e5_ids_work_in_a_fresh_process_and_leave_pygame_alone(env_id: str) -> None:
    code = (
        "import sys, gymnasium as gym\n"
        f"env = gym.make('dilqr_rl.envs:{env_id}', render_mode='rgb_array')\n"
        "env.reset(seed=0); env.step(env.action_space.sample()); env.render(); env.close()\n"
        "sys.exit('pygame' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    log = [line for line in done.stderr.splitlines() if not line.startswith("compiling ")]  # once for all processes
    assert (done.returncode, done.stdout, log) == (0, "", [])


def test_e5_registering_twice_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dilqr_rl.envs.register_environments()
    assert all(gym.spec(env_id).max_episode_steps == 200 for env_id in IDS)


@each_id
def test_e6_a_spec_survives_json(env_id: str) -> None:
    (name, value), *rest = changed_physics(env_id).items()
    env = make(env_id, physics=dict(rest), randomize={name: (value, 1.1 * value)})
    again = EnvSpec.from_json(env.spec.to_json()).make()
    np.testing.assert_array_equal(roll(env), roll(again))
    assert again.unwrapped.physics == env.unwrapped.physics


@each_id
def test_e10_seeds_copies_and_pickles_repeat_an_episode(env_id: str) -> None:
    env = make(env_id, physics=changed_physics(env_id))
    first = roll(env, seed=5)
    np.testing.assert_array_equal(first, roll(env, seed=5))
    assert (first[0] != roll(env, seed=6)[0]).any()
    env.reset(seed=5)
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    after, _, _, _, info = env.step(full(env))
    fresh, _ = env.reset()
    for twin in twins:
        observation, _, _, _, other = twin.step(full(env))
        np.testing.assert_array_equal(observation, after)
        np.testing.assert_array_equal(other["state"], info["state"])
        np.testing.assert_array_equal(twin.reset()[0], fresh)


@each_id
def test_e10_a_time_limit_truncates_and_never_terminates(env_id: str) -> None:
    env = make(env_id, max_episode_steps=3)
    env.reset(seed=0)
    assert [env.step(still(env))[2:4] for _ in range(3)] == [(False, False), (False, False), (False, True)]


@pytest.mark.slow
@each_id
def test_e10_processes_of_stable_baselines3_repeat_an_episode(env_id: str) -> None:
    make_each: list[Any] = [functools.partial(gym.make, f"dilqr_rl.envs:{env_id}")] * 2
    vectors: list[Any] = [DummyVecEnv(make_each), SubprocVecEnv(make_each)]
    try:
        for vector in vectors:
            vector.seed(4)
        np.testing.assert_array_equal(*(vector.reset() for vector in vectors))
        shape = (30, 2, *vectors[0].action_space.shape)
        for action in np.random.default_rng(0).uniform(-1.0, 1.0, shape):
            one, other = (vector.step(action) for vector in vectors)
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1].astype(np.float32))  # the former keeps rewards in float32
    finally:
        for vector in vectors:
            vector.close()


@each_state_id
def test_usual_wrappers_work(env_id: str) -> None:
    env: Any = RescaleAction(FrameStackObservation(make(env_id), 3), np.float32(-2.0), np.float32(2.0))
    env.reset(seed=0)
    assert env.step(2 * full(env))[0].shape == (3, env.unwrapped.dynamics_class.state_size)


@each_id
def test_a_state_given_at_reset_resumes_bit_by_bit(env_id: str) -> None:
    env, other = make(env_id), make(env_id)
    env.reset(seed=0)
    for action in actions(env, 10):
        state = env.step(action)[4]["state"]
    _, info = other.reset(options={"state": state})
    np.testing.assert_array_equal(info["state"], state)
    np.testing.assert_array_equal(*(each.step(0.3 * full(env))[4]["state"] for each in (env, other)))


@given(angle=st.floats(-10.0, 10.0), error=st.floats(-0.1, 0.1))
@settings(max_examples=50, deadline=None)
@each_state_id
def test_a_start_state_is_moved_onto_the_circle_or_refused(env_id: str, angle: float, error: float) -> None:
    env = make(env_id).unwrapped
    index = env.dynamics_class.cosines[0]
    state = env.reset(seed=0)[1]["state"]
    state[index : index + 2] = (1.0 + error) * np.array([math.cos(angle), math.sin(angle)])
    if abs(error) > 1e-3 + 1e-9:
        with pytest.raises(ValueError, match=r'options\["state"\]: expected a cosine and a sine at places .*, at radius'):
            env.reset(options={"state": state})
    elif abs(error) < 1e-3 - 1e-9:
        observation, info = env.reset(options={"state": state})
        assert env.observation_space.contains(observation)
        np.testing.assert_allclose(info["state"][index : index + 2], [math.cos(angle), math.sin(angle)], atol=1e-12)


@each_state_id
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_states_that_are_not_finite_or_out_of_bounds_are_refused(env_id: str, wrong: float) -> None:
    env = make(env_id)
    state = env.reset(seed=0)[1]["state"]
    state[-1] = wrong
    with pytest.raises(ValueError, match=r'options\["state"\]: expected an array .* finite numbers, got'):
        env.reset(options={"state": state})
    state[-1] = 999.0
    with pytest.raises(ValueError, match=r'options\["state"\]: expected absolute values of at most \[.*\], got'):
        env.reset(options={"state": state})


@each_id
@pytest.mark.parametrize("kind", ["too many", "a column", "a number", "nan", "inf", "text", "nothing"])
def test_bad_actions_are_refused_and_change_nothing(env_id: str, kind: str) -> None:
    env, twin = make(env_id), make(env_id)
    for each in (env, twin):
        each.reset(seed=2)
    m = env.action_space.shape[0]
    bad = {
        "too many": np.zeros(m + 1),
        "a column": np.zeros((m, 1)),
        "a number": 0.5,
        "nan": [np.nan] * m,
        "inf": [np.inf] * m,
        "text": ["left"] * m,
        "nothing": None,
    }
    with pytest.raises(ValueError, match=rf"action: expected an array of shape \({m},\) that holds finite numbers, got"):
        env.unwrapped.step(bad[kind])
    np.testing.assert_array_equal(env.step(full(env))[4]["state"], twin.step(full(env))[4]["state"])


@each_id
def test_actions_are_clipped(env_id: str) -> None:
    env, twin = make(env_id), make(env_id)
    for each in (env, twin):
        each.reset(seed=2)
    one, other = env.step(-7.0 * full(env)), twin.step(-full(env))
    np.testing.assert_array_equal(one[4]["state"], other[4]["state"])
    assert one[1] == other[1]


@each_id
def test_stepping_or_drawing_before_a_reset_is_refused(env_id: str) -> None:
    env = make(env_id, render_mode="rgb_array").unwrapped
    for call in (lambda: env.step(still(env)), env.render):
        with pytest.raises(gym.error.ResetNeeded, match=r"Call reset\(\) before"):
            call()


def test_a_state_that_overflows_is_an_error_not_a_number() -> None:
    env = make("dilqr_rl/CartPole-v0", physics={"cart_mass": 1e-310, "pole_mass": 1e-310}).unwrapped
    env.reset(seed=0)
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=r"is not finite; the physics .* are too extreme"):
            env.step(np.ones(1))


@each_id
def test_the_task_predicts_the_next_state(env_id: str) -> None:
    generator = np.random.default_rng(0)
    for seed in range(5):
        physics = {name: value * generator.uniform(0.9, 1.1) for name, value in changed_physics(env_id).items()}
        env = make(env_id)
        _, info = env.reset(seed=seed, options={"physics": physics})
        task: Any = find_task(env)
        assert task.name == env_id
        assert task.dynamics.physics == physics
        state = torch.from_numpy(info["state"])
        for action in actions(env, 20, seed):
            control = task.control_per_action * torch.from_numpy(action).double()
            assert (control.abs() <= task.u_max).all()
            with torch.no_grad():
                following = task.dynamics(state, control)
            _, _, terminated, _, info = env.step(action)
            np.testing.assert_allclose(following.numpy(), info["state"], rtol=0.0, atol=1e-12)
            state = torch.from_numpy(info["state"])
            if terminated:
                break


@each_state_id
def test_the_task_reads_the_state_off_the_observation(env_id: str) -> None:
    env = make(env_id)
    observation, info = env.reset(seed=0)
    read = find_task(env).observation_to_state(torch.from_numpy(observation))
    np.testing.assert_array_equal(read.numpy(), info["state"].astype(np.float32))


@each_state_id
def test_the_reward_is_its_function(env_id: str) -> None:
    env = make(env_id).unwrapped
    _, info = env.reset(seed=0)
    reward_function = env.reward_function()
    for action in actions(env, 10):
        state = torch.from_numpy(info["state"])
        _, reward, _, _, info = env.step(action)
        with torch.no_grad():
            expected = reward_function(state, env.control_limit * torch.from_numpy(action).double())
        assert reward == pytest.approx(float(expected), rel=1e-12)


@each_id
def test_the_task_is_a_copy(env_id: str) -> None:
    env, twin = make(env_id), make(env_id)
    task = env.unwrapped.control_task()
    with torch.no_grad():
        for parameter in (*task.dynamics.parameters(), *task.stage_cost.parameters()):
            parameter.fill_(3.0)
    np.testing.assert_array_equal(roll(env), roll(twin))
    fresh, other = env.unwrapped.control_task(), twin.unwrapped.control_task()
    assert fresh.dynamics.physics == other.dynamics.physics
    assert torch.equal(fresh.stage_cost.weights, other.stage_cost.weights)
    n, m = fresh.state_size, fresh.control_size
    assert fresh.stage_cost.weights.shape == (n + m,)
    problem = fresh.problem()
    assert problem.horizon == env.unwrapped.horizon
    names = env.unwrapped.physics
    assert [name for name, _ in problem.named_parameters()][: len(names)] == [f"dynamics.{name}" for name in names]


@each_id
def test_a_foreign_default_device_does_not_reach_the_environment(env_id: str) -> None:
    with torch.device("meta"):
        env = make(env_id)
        states = roll(env)
        assert env.unwrapped.control_task().dynamics.physics == make(env_id).reset()[1]["physics"]
    np.testing.assert_array_equal(states, roll(make(env_id)))
