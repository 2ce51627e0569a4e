"""Physics in the observation."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import FlattenObservation
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from systems import each_state_id, make, still

from dilqr_rl import MPCPolicy
from dilqr_rl.agents import SB3VecEnv
from dilqr_rl.envs import ContextObservation, ContextVectorObservation


@each_state_id
def test_physics_follow_the_observation(env_id: str) -> None:
    env = ContextObservation(make(env_id, randomize={"gravity": (8.0, 11.0)}))
    n = env.unwrapped.observation_space.shape[0]  # type: ignore[index]
    for _ in range(3):
        for observation, info in (
            env.reset(seed=1),
            env.step(still(env))[::4],
            env.reset(options={"physics": {"gravity": 3.0}}),
        ):
            assert env.observation_space.contains(observation)
            np.testing.assert_array_equal(observation[:n], info["state"].astype(np.float32))
            np.testing.assert_array_equal(observation[n:], np.array([*info["physics"].values()], np.float32))


def test_some_of_the_names_in_the_order_asked_for() -> None:
    env = ContextObservation(make("dilqr_rl/Pendulum-v0"), names=("gravity", "mass"))
    assert env.reset(seed=0)[0][3:].tolist() == [10.0, 1.0]
    np.testing.assert_array_equal(env.observation_space.low[3:], [-np.finfo(np.float32).max, 0.0])  # type: ignore[attr-defined]


@each_state_id
def test_the_checkers_pass_without_a_warning(env_id: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = ContextObservation(make(env_id))
        check_env_sb3(env)
    with pytest.warns(UserWarning, match="is different from the unwrapped version") as told:  # Gymnasium's, of every wrapper
        check_env(env, skip_render_check=True)
    assert len(told) == 1


def test_a_planner_reads_the_state_and_not_the_physics() -> None:
    plain, wrapped = make("dilqr_rl/Pendulum-v0"), ContextObservation(make("dilqr_rl/Pendulum-v0"))
    actions = [
        MPCPolicy.for_env(env, horizon=5).predict(env.reset(seed=0)[0])[0] for env in (plain, FlattenObservation(wrapped))
    ]
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize(
    ("env", "names", "message"),
    [
        ("Pendulum-v1", None, r"env: expected an environment of dilqr_rl\.envs, got .*Pendulum-v1"),
        ("dilqr_rl/PendulumPixels-v0", None, r"env: expected observations in a flat Box, .* got Box\(0, 255, \(64, 64, 12\)"),
        ("dilqr_rl/Pendulum-v0", ("bogus",), r"names: expected some of \['mass', 'length', .*\], got \('bogus',\)"),
        ("dilqr_rl/Pendulum-v0", "mass", r"names: expected some of \['mass', 'length', .*\], got 'mass'"),
        ("dilqr_rl/Pendulum-v0", (), r"names: expected some of"),
    ],
)
def test_what_has_no_context_is_refused(env: str, names: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContextObservation(gym.make(env), names)


def test_a_wrapped_environment_is_made_again_from_its_spec() -> None:
    env = ContextObservation(make("dilqr_rl/Pendulum-v0"), names=("gravity",))
    again = gym.make(env.spec)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again.reset(seed=0)[0], env.reset(seed=0)[0])


@each_state_id
@pytest.mark.parametrize("mode", ["next_step", "same_step"])
def test_a_batch_with_context_is_what_single_ones_are(env_id: str, mode: str) -> None:
    arguments: dict[str, Any] = {"randomize": {"gravity": (8.0, 11.0)}, "max_episode_steps": 5}
    ours = ContextVectorObservation(gym.make_vec(env_id, 3, "vector_entry_point", autoreset_mode=mode, **arguments))
    vector_kwargs = {"autoreset_mode": AutoresetMode[mode.upper()]}
    theirs = gym.make_vec(env_id, 3, "sync", vector_kwargs=vector_kwargs, wrappers=[ContextObservation], **arguments)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.observation_space == theirs.observation_space
    assert data_equivalence(ours.reset(seed=3), theirs.reset(seed=3), exact=True)
    ours.action_space.seed(0)
    for _ in range(12):
        action = ours.action_space.sample()
        assert data_equivalence(ours.step(action), theirs.step(action), exact=True)


def test_stable_baselines3_takes_a_batch_with_context() -> None:
    vector = gym.make_vec("dilqr_rl/Pendulum-v0", 4, "vector_entry_point", autoreset_mode="same_step")
    venv = SB3VecEnv(ContextVectorObservation(vector, names=["length"]))
    assert venv.reset().shape == (4, 4)


def test_a_batch_of_others_has_no_context() -> None:
    with pytest.raises(
        ValueError, match=r'env: expected a batch of dilqr_rl\.envs, mode "vector_entry_point" of make_vec, got'
    ):
        ContextVectorObservation(gym.make_vec("dilqr_rl/Pendulum-v0", 2, "sync"))
    with pytest.raises(ValueError, match=r"names: expected some of"):
        ContextVectorObservation(gym.make_vec("dilqr_rl/Pendulum-v0", 2), ["bogus"])
    with pytest.raises(ValueError, match=r"env: expected observations in a flat Box"):
        ContextVectorObservation(gym.make_vec("dilqr_rl/PendulumPixels-v0", 2))


def test_physics_beyond_float32_are_clipped_to_the_space() -> None:
    env = ContextObservation(make("dilqr_rl/Pendulum-v0"))
    observation, _ = env.reset(seed=0, options={"physics": {"mass": 1e300}})
    assert env.observation_space.contains(observation)
