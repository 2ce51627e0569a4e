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
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import dilqr_rl.envs
from dilqr_rl import find_task

IDS = ["dilqr_rl/Pendulum-v0", "dilqr_rl/CartPole-v0"]
CHANGED = {
    "dilqr_rl/Pendulum-v0": {"mass": 1.2, "length": 0.9, "gravity": 9.0, "damping": 0.1, "wind": 0.5},
    "dilqr_rl/CartPole-v0": {"cart_mass": 1.2, "pole_mass": 0.15, "length": 0.6, "gravity": 9.0},
}
START = {"dilqr_rl/Pendulum-v0": [0.6, 0.8, 0.5], "dilqr_rl/CartPole-v0": [0.1, -0.2, 0.6, 0.8, 0.5]}
each_id = pytest.mark.parametrize("env_id", IDS)


def make(env_id: str, **arguments: Any) -> Any:
    return gym.make(env_id, **arguments)


def actions(env: Any, count: int, seed: int = 0) -> NDArray[np.float32]:
    generator = np.random.default_rng(seed)
    return generator.uniform(-1.0, 1.0, (count, *env.action_space.shape)).astype(np.float32)


def roll(env: Any, steps: int = 30, seed: int = 0, **reset: Any) -> NDArray[np.float64]:
    """The float64 states of an episode of random actions."""
    _, info = env.reset(seed=seed, **reset)
    return np.array([info["state"], *(env.step(action)[4]["state"] for action in actions(env, steps))])


@each_id
@pytest.mark.parametrize("render_mode", [None, "human", "rgb_array"])
def test_e1_both_checkers_pass_without_a_warning(env_id: str, render_mode: str | None) -> None:
    env = make(env_id, render_mode=render_mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
        check_env_sb3(env, skip_render_check=False)
    env.close()


@each_id
def test_e1_observations_stay_in_the_space_up_to_the_last(env_id: str) -> None:
    for seed in range(5):
        env = make(env_id)
        env.reset(seed=seed)
        for step in range(1, 201):
            observation, _, terminated, truncated, info = env.step(np.ones(1, np.float32))
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
    twin.reset(seed=1)
    start = info["state"].copy()
    for action in actions(env, 5):
        observation.fill(7.0)
        info["state"].fill(7.0)
        info["physics"].clear()
        observation, _, _, _, info = env.step(action)
        np.testing.assert_array_equal(info["state"], twin.step(action)[4]["state"])
    given_start = start.copy()
    env.reset(options={"state": given_start})
    env.step(np.ones(1))
    np.testing.assert_array_equal(given_start, start)


@pytest.mark.slow
@each_id
def test_e5_ids_work_in_a_fresh_process_and_leave_pygame_alone(env_id: str) -> None:
    code = (
        "import sys, gymnasium as gym\n"
        f"env = gym.make('dilqr_rl.envs:{env_id}')\n"
        "env.reset(seed=0); env.step(env.action_space.sample()); env.close()\n"
        "sys.exit('pygame' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_e5_registering_twice_is_silent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dilqr_rl.envs.register_environments()
    assert all(gym.spec(env_id).max_episode_steps == 200 for env_id in IDS)


@each_id
def test_e6_a_spec_survives_json(env_id: str) -> None:
    env = make(env_id, physics=CHANGED[env_id])
    again = EnvSpec.from_json(env.spec.to_json()).make()
    np.testing.assert_array_equal(roll(env), roll(again))
    assert again.reset()[1]["physics"] == CHANGED[env_id]


@each_id
def test_e7_vector_modes_agree_across_autoreset(env_id: str) -> None:
    sync, parallel = (gym.make_vec(env_id, num_envs=2, vectorization_mode=mode) for mode in ("sync", "async"))
    try:
        for one, other in zip(sync.reset(seed=3), parallel.reset(seed=3), strict=True):
            assert gym.utils.env_checker.data_equivalence(one, other, exact=True)
        ended = 0
        for action in actions(sync, 210):
            results = sync.step(action), parallel.step(action)
            ended += (results[0][2] | results[0][3]).sum()
            for one, other in zip(*results, strict=True):
                assert gym.utils.env_checker.data_equivalence(one, other, exact=True)
        assert ended >= 2
    finally:
        sync.close()
        parallel.close()


@each_id
def test_e9_every_physics_argument_acts_and_acts_alike_from_everywhere(env_id: str) -> None:
    default = make(env_id)
    for name, value in CHANGED[env_id].items():
        physics = {name: value}
        at_make = roll(make(env_id, physics=physics))
        at_reset = roll(default, options={"physics": physics})
        np.testing.assert_array_equal(at_make, at_reset)
        assert default.unwrapped.step(np.zeros(1))[4]["physics"][name] == value
        plain = roll(default)
        assert np.abs(plain - at_make).max() > 1e-4
        np.testing.assert_array_equal(plain, roll(make(env_id)))


@each_id
def test_e9_physics_of_a_reset_come_on_top_of_those_at_make_and_last_one_episode(env_id: str) -> None:
    (first, one), (second, two), *_ = CHANGED[env_id].items()
    env = make(env_id, physics={first: one})
    assert env.reset(options={"physics": {second: two}})[1]["physics"].items() >= {first: one, second: two}.items()
    np.testing.assert_array_equal(
        roll(env, options={"physics": {second: two}}), roll(make(env_id, physics={first: one, second: two}))
    )
    np.testing.assert_array_equal(roll(env), roll(make(env_id, physics={first: one})))


@each_id
def test_e10_seeds_copies_and_pickles_repeat_an_episode(env_id: str) -> None:
    env = make(env_id, physics=CHANGED[env_id])
    first = roll(env, seed=5)
    np.testing.assert_array_equal(first, roll(env, seed=5))
    assert (first[0] != roll(env, seed=6)[0]).any()
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    after, fresh = env.step(np.ones(1))[4]["state"], env.reset()[1]["state"]
    for twin in twins:
        np.testing.assert_array_equal(twin.step(np.ones(1))[4]["state"], after)
        np.testing.assert_array_equal(twin.reset()[1]["state"], fresh)


@pytest.mark.slow
@each_id
def test_e10_processes_of_stable_baselines3_repeat_an_episode(env_id: str) -> None:
    make_each: list[Any] = [functools.partial(gym.make, f"dilqr_rl.envs:{env_id}")] * 2
    vectors: list[Any] = [DummyVecEnv(make_each), SubprocVecEnv(make_each)]
    try:
        for vector in vectors:
            vector.seed(4)
        np.testing.assert_array_equal(*(vector.reset() for vector in vectors))
        for action in np.random.default_rng(0).uniform(-1.0, 1.0, (30, 2, 1)):
            one, other = (vector.step(action) for vector in vectors)
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1].astype(np.float32))  # the former keeps rewards in float32
    finally:
        for vector in vectors:
            vector.close()


@each_id
def test_usual_wrappers_work(env_id: str) -> None:
    env: Any = RescaleAction(FrameStackObservation(make(env_id), 3), np.float32(-2.0), np.float32(2.0))
    env.reset(seed=0)
    assert env.step(np.array([2.0], np.float32))[0].shape == (3, env.unwrapped.dynamics_class.state_size)


@each_id
def test_a_state_given_at_reset_resumes_bit_by_bit(env_id: str) -> None:
    env, other = make(env_id), make(env_id)
    env.reset(seed=0)
    for action in actions(env, 10):
        state = env.step(action)[4]["state"]
    _, info = other.reset(options={"state": state})
    np.testing.assert_array_equal(info["state"], state)
    np.testing.assert_array_equal(*(each.step(np.array([0.3]))[4]["state"] for each in (env, other)))


@given(angle=st.floats(-10.0, 10.0), error=st.floats(-0.1, 0.1))
@settings(max_examples=50, deadline=None)
@pytest.mark.parametrize("env_id", IDS)
def test_a_start_state_is_moved_onto_the_circle_or_refused(env_id: str, angle: float, error: float) -> None:
    env = make(env_id).unwrapped
    index = env.dynamics_class.cosines[0]
    state = np.array(START[env_id])
    state[index : index + 2] = (1.0 + error) * np.array([math.cos(angle), math.sin(angle)])
    if abs(error) > 1e-3 + 1e-9:
        with pytest.raises(ValueError, match=r'options\["state"\]: expected a cosine and a sine at places .*, at radius'):
            env.reset(options={"state": state})
    elif abs(error) < 1e-3 - 1e-9:
        observation, info = env.reset(options={"state": state})
        assert env.observation_space.contains(observation)
        np.testing.assert_allclose(info["state"][index : index + 2], [math.cos(angle), math.sin(angle)], atol=1e-12)


@each_id
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stat": [1.0]}, r"options: expected a dict with keys among \('physics', 'state'\), got \{'stat'"),
        ([1.0], r"options: expected a dict with keys among \('physics', 'state'\), got \[1\.0\]"),
        ({"physics": {"bogus": 1.0}}, r"physics: expected names among \[.*'length', 'gravity'.*\], got \['bogus'\]"),
        ({"physics": {"length": -1.0}}, r"length: expected a finite number above 0, got -1\.0"),
        ({"physics": {"length": math.nan}}, r"length: expected a finite number above 0, got nan"),
        ({"physics": "moon"}, r"physics: expected a dict of numbers, .* got 'moon'"),
        ({"state": [1.0]}, r'options\["state"\]: expected an array of shape \(\d,\) that holds finite numbers, got \[1\.0\]'),
        ({"state": "up"}, r'options\["state"\]: expected an array of shape \(\d,\) that holds finite numbers, got \'up\''),
    ],
)
def test_bad_options_are_refused_and_change_nothing(env_id: str, options: Any, message: str) -> None:
    env, twin = make(env_id), make(env_id)
    for each in (env, twin):
        each.reset(seed=2, options={"physics": {"gravity": 8.0}})
    with pytest.raises(ValueError, match=message):
        env.reset(seed=9, options=options)
    for action in actions(env, 3):
        np.testing.assert_array_equal(env.step(action)[4]["state"], twin.step(action)[4]["state"])
    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])


@each_id
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_states_that_are_not_finite_or_out_of_bounds_are_refused(env_id: str, wrong: float) -> None:
    env = make(env_id)
    state = [*START[env_id][:-1], wrong]
    with pytest.raises(ValueError, match=r'options\["state"\]: expected an array .* finite numbers, got \[.*(nan|inf)\]'):
        env.reset(options={"state": state})
    with pytest.raises(ValueError, match=r'options\["state"\]: expected absolute values of at most \[.*\], got \[.*99\.0\]'):
        env.reset(options={"state": [*state[:-1], 99.0]})


@each_id
@pytest.mark.parametrize("action", [np.zeros(2), np.zeros((1, 1)), 0.5, [np.nan], [np.inf], ["left"], None])
def test_bad_actions_are_refused_and_change_nothing(env_id: str, action: Any) -> None:
    env, twin = make(env_id), make(env_id)
    for each in (env, twin):
        each.reset(seed=2)
    with pytest.raises(ValueError, match=r"action: expected an array of shape \(1,\) that holds finite numbers, got"):
        env.unwrapped.step(action)
    np.testing.assert_array_equal(env.step(np.ones(1))[4]["state"], twin.step(np.ones(1))[4]["state"])


@each_id
def test_actions_are_clipped(env_id: str) -> None:
    env, twin = make(env_id), make(env_id)
    for each in (env, twin):
        each.reset(seed=2)
    one, other = env.step(np.array([-7.0])), twin.step(np.array([-1.0]))
    np.testing.assert_array_equal(one[4]["state"], other[4]["state"])
    assert one[1] == other[1]


@each_id
def test_bad_arguments_are_refused_at_make(env_id: str) -> None:
    env_class = make(env_id).unwrapped.__class__
    with pytest.raises(ValueError, match=r"render_mode: expected one of \(None, 'human', 'rgb_array'\), got 'ansi'"):
        env_class(render_mode="ansi")
    with pytest.raises(ValueError, match=r"physics: expected names among .*, got \['bogus'\]"):
        make(env_id, physics={"bogus": 1.0})
    limit = "max_torque" if env_class is dilqr_rl.envs.PendulumEnv else "max_force"
    for wrong in (0.0, -1.0, math.nan, None):
        with pytest.raises(ValueError, match=rf"{limit}: expected a finite number above 0, got"):
            env_class(**{limit: wrong})


@each_id
def test_stepping_or_drawing_before_a_reset_is_refused(env_id: str) -> None:
    env = make(env_id, render_mode="rgb_array").unwrapped
    for call in (lambda: env.step(np.zeros(1)), env.render):
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
        physics = {name: value * generator.uniform(0.9, 1.1) for name, value in CHANGED[env_id].items()}
        env = make(env_id)
        observation, info = env.reset(seed=seed, options={"physics": physics})
        task: Any = find_task(env)
        assert task.name == env_id
        assert task.dynamics.physics == physics
        state = torch.from_numpy(info["state"])
        torch.testing.assert_close(task.observation_to_state(torch.from_numpy(observation)), state.float(), rtol=0.0, atol=0.0)
        for action in actions(env, 20, seed):
            control = task.control_per_action * torch.from_numpy(action).double()
            assert task.u_min <= control.item() <= task.u_max
            with torch.no_grad():
                state = task.dynamics(state, control)
            following = env.step(action)[4]["state"]
            np.testing.assert_allclose(state.numpy(), following, rtol=0.0, atol=1e-12)


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
    assert [name for name, _ in problem.named_parameters()][: len(CHANGED[env_id])] == [
        f"dynamics.{k}" for k in CHANGED[env_id]
    ]


@each_id
def test_a_foreign_default_device_does_not_reach_the_environment(env_id: str) -> None:
    with torch.device("meta"):
        env = make(env_id)
        states = roll(env)
        assert env.unwrapped.control_task().dynamics.physics == make(env_id).reset()[1]["physics"]
    np.testing.assert_array_equal(states, roll(make(env_id)))
