"""A batch is what a `SyncVectorEnv` of the same environments is, step by step, whatever follows an episode's end."""

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from numpy.typing import NDArray
from systems import changed_physics, each_id, each_state_id

from dilqr_rl.envs import PendulumEnv, SystemVectorEnv

MODES = ("next_step", "same_step", "disabled")
each_mode = pytest.mark.parametrize("mode", MODES)


def batch(env_id: str, count: int = 3, mode: str = "next_step", **arguments: Any) -> Any:
    return gym.make_vec(env_id, count, "vector_entry_point", autoreset_mode=mode, **arguments)


def sync(env_id: str, count: int = 3, mode: str = "next_step", **arguments: Any) -> Any:
    vector_kwargs = {"autoreset_mode": AutoresetMode[mode.upper()]}
    return gym.make_vec(env_id, count, "sync", vector_kwargs=vector_kwargs, **arguments)


def actions(env: Any, count: int, seed: int = 0) -> Iterator[NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    for _ in range(count):
        yield generator.uniform(-1.0, 1.0, env.action_space.shape).astype(np.float32)


def same(one: Any, other: Any) -> bool:
    return all(data_equivalence(left, right, exact=True) for left, right in zip(one, other, strict=True))


@each_id
@each_mode
def test_e7_a_batch_equals_sync_step_by_step_across_autoreset(env_id: str, mode: str) -> None:
    ranges = {name: (0.9 * value, 1.1 * value) for name, value in changed_physics(env_id).items()}
    ours, theirs = (make(env_id, mode=mode, randomize=ranges, max_episode_steps=20) for make in (batch, sync))
    assert same(ours.reset(seed=3), theirs.reset(seed=3))
    ended = 0
    for action in actions(ours, 50):
        one, other = ours.step(action), theirs.step(action)
        assert same(one, other)
        over = one[2] | one[3]
        ended += over.sum()
        if mode == "disabled" and over.any():
            assert same(*(each.reset(options={"reset_mask": over}) for each in (ours, theirs)))
    assert ended >= 6
    assert ours.np_random_seed == theirs.np_random_seed
    assert same(*([each.random(3) for each in env.np_random] for env in (ours, theirs)))


@each_state_id
def test_e7_all_modes_of_make_vec_agree(env_id: str) -> None:
    vectors = [gym.make_vec(env_id, 2, vectorization_mode=mode) for mode in (None, "sync", "async", "vector_entry_point")]
    assert {type(env).__name__ for env in vectors[:1]} == {type(vectors[3]).__name__}  # the batch is the default
    try:
        first, *others = [env.reset(seed=3) for env in vectors]
        assert all(same(first, other) for other in others)
        for action in actions(vectors[0], 210):
            first, *others = [env.step(action) for env in vectors]
            assert all(same(first, other) for other in others)
    finally:
        for env in vectors:
            env.close()


def test_e7_an_episode_that_ends_at_the_rail_begins_anew() -> None:
    ours, theirs = (make("dilqr_rl/CartPole-v0", track_limit=0.6) for make in (batch, sync))
    ours.reset(seed=0), theirs.reset(seed=0)
    ended = 0
    for _ in range(60):
        one, other = (env.step(np.ones((3, 1), np.float32)) for env in (ours, theirs))
        assert same(one, other)
        ended += one[2].sum()
    assert ended >= 3


@each_mode
def test_e7_options_and_seeds_of_resets_are_those_of_sync(mode: str) -> None:
    pair = [make("dilqr_rl/Pendulum-v0", mode=mode) for make in (batch, sync)]

    def both(**reset: Any) -> None:
        copies = [copy.deepcopy(reset) for _ in pair]  # a SyncVectorEnv takes the mask out of the options
        assert same(*(env.reset(**arguments) for env, arguments in zip(pair, copies, strict=True)))

    both(seed=5)
    both()
    both(seed=[1, None, 3], options={"physics": {"length": 0.7}})
    both(options={"state": [0.6, 0.8, 0.1]})
    both(seed=9, options={"reset_mask": np.array([False, True, False]), "physics": {"mass": 2.0}})
    for action in actions(pair[0], 3):
        assert same(*(env.step(action) for env in pair))
    both()


def test_e2_changing_what_was_returned_changes_nothing() -> None:
    for env_id in ("dilqr_rl/CartPole-v0", "dilqr_rl/CartPolePixels-v0"):
        env, twin = batch(env_id, mode="same_step", max_episode_steps=4), batch(env_id, mode="same_step", max_episode_steps=4)
        returned, expected = [*env.reset(seed=1)], [*twin.reset(seed=1)]
        for action in actions(env, 10):
            assert same(returned, expected)
            spoil(returned)
            returned, expected = [*env.step(action)], [*twin.step(action)]


def spoil(value: Any) -> None:
    if isinstance(value, np.ndarray) and value.dtype != object:
        value.fill(1)
    elif isinstance(value, dict):
        for part in value.values():
            spoil(part)
    elif isinstance(value, (list, tuple, np.ndarray)):
        for part in value:
            spoil(part)


@each_id
def test_e10_a_copy_and_a_pickle_go_on_alike(env_id: str) -> None:
    env = batch(env_id, randomize={"gravity": (8.0, 11.0)}, max_episode_steps=5)
    env.reset(seed=1)
    env.step(env.action_space.sample())
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    for action in actions(env, 10):
        expected = env.step(action)
        for twin in twins:
            assert same(twin.step(action), expected)


def test_e11_frames_of_all_environments() -> None:
    env = batch("dilqr_rl/CartPole-v0", render_mode="rgb_array")
    env.reset(seed=0)
    env.step(np.ones((3, 1)))
    single = gym.make("dilqr_rl/CartPole-v0", render_mode="rgb_array")
    for row, frame in enumerate(env.render()):
        single.reset(seed=row)
        single.step(np.ones(1))
        np.testing.assert_array_equal(frame, single.render())
    env.close()
    env.close()


def test_the_spec_names_the_batch_and_no_warning_is_given() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make_vec("dilqr_rl/Pendulum-v0", num_envs=2)
        again = gym.make_vec(env.spec)
    assert again.num_envs == 2
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    assert same(env.reset(seed=1), again.reset(seed=1))


def test_gymnasium_s_vector_wrappers_work() -> None:
    env = RecordEpisodeStatistics(batch("dilqr_rl/Pendulum-v0", max_episode_steps=5))
    env.reset(seed=0)
    infos = [env.step(action)[4] for action in actions(env, 5)]
    assert infos[-1]["episode"]["l"].tolist() == [5, 5, 5]


def test_no_two_environments_begin_alike_without_a_seed() -> None:
    states = batch("dilqr_rl/Pendulum-v0", 50).reset()[1]["state"]
    assert len(np.unique(states, axis=0)) == 50


@each_mode
def test_bad_actions_are_refused_and_change_nothing(mode: str) -> None:
    env, twin = (batch("dilqr_rl/Pendulum-v0", mode=mode) for _ in range(2))
    env.reset(seed=0), twin.reset(seed=0)
    wrong = np.zeros((3, 1))
    wrong[1] = np.nan
    for action in (wrong, np.zeros((2, 1)), np.zeros(3), "left", None):
        with pytest.raises(ValueError, match=r"action: expected an array of shape \(3, 1\) that holds finite numbers, got"):
            env.step(action)
    assert same(env.step(np.ones((3, 1))), twin.step(np.ones((3, 1))))


@pytest.mark.parametrize("kind", ["columns", "fortran", "broadcast", "reversed", "list", "float32", "read-only"])
def test_actions_may_lie_in_memory_in_any_way(kind: str) -> None:
    plain = np.random.default_rng(0).uniform(-1.0, 1.0, (4, 2))
    if kind == "broadcast":
        plain[:] = plain[0]
    elif kind == "float32":
        plain = plain.astype(np.float32).astype(np.float64)
    frozen = plain.copy()
    frozen.flags.writeable = False
    given: dict[str, Any] = {
        "columns": np.stack((plain[:, 0], plain[:, 1])).T,
        "fortran": np.asfortranarray(plain),
        "broadcast": np.broadcast_to(plain[0], (4, 2)),
        "reversed": plain[::-1].copy()[::-1],
        "list": plain.tolist(),
        "float32": plain.astype(np.float32),
        "read-only": frozen,
    }
    results = []
    for actions in (plain, given[kind]):
        env = batch("dilqr_rl/Quadrotor-v0", 4)
        env.reset(seed=0)
        results.append(env.step(actions))
    assert same(*results)


def test_a_state_that_overflows_is_an_error_that_names_it() -> None:
    env = batch("dilqr_rl/CartPole-v0")
    env.reset(seed=0, options={"physics": {"cart_mass": 1e-310, "pole_mass": 1e-310}})
    with pytest.raises(FloatingPointError, match=r"The state after \[.*\] is not finite; the physics \{.*1e-310.*\} are too"):
        env.step(np.ones((3, 1)))


def test_what_is_due_is_asked_for() -> None:
    env = batch("dilqr_rl/Pendulum-v0", mode="disabled", max_episode_steps=1, render_mode="rgb_array")
    for call in (lambda: env.step(np.zeros((3, 1))), env.render):
        with pytest.raises(gym.error.ResetNeeded, match=r"Call reset\(\) before"):
            call()
    with pytest.raises(gym.error.ResetNeeded, match=r"Call reset\(\) without a mask first"):
        env.reset(options={"reset_mask": np.array([True, False, False])})
    env.reset(seed=0)
    env.step(np.zeros((3, 1)))
    with pytest.raises(
        gym.error.ResetNeeded, match=r'The episodes of \[0, 1, 2\] are over: call reset\(options=\{"reset_mask"'
    ):
        env.step(np.zeros((3, 1)))
    env.reset()
    env.step(np.zeros((3, 1)))
    silent = batch("dilqr_rl/Pendulum-v0")
    with pytest.warns(UserWarning, match='has no render mode; pass render_mode="rgb_array"'):
        assert silent.render() is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, r"num_envs: expected an integer from 1 to 1000000, got 0"),
        ({"max_episode_steps": 0}, r"max_episode_steps: expected an integer from 1 to 1000000, got 0"),
        ({"autoreset_mode": "never"}, r"autoreset_mode: expected one of \['next_step', 'same_step', 'disabled'\], got 'never'"),
        ({"render_mode": "human"}, r'render_mode: expected None or "rgb_array", got \'human\'. A window'),
        ({"physics": {"bogus": 1.0}}, r"physics: expected names among"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym.make_vec("dilqr_rl/Pendulum-v0", vectorization_mode="vector_entry_point", **arguments)


@pytest.mark.parametrize(
    ("reset", "message"),
    [
        ({"seed": [1, 2]}, r"seed: expected an integer, or one for each of 3 environments, got \[1, 2\]"),
        ({"seed": 1.5}, r"seed: expected an integer, or one for each of 3 environments, got 1\.5"),
        (
            {"options": {"reset_mask": [True] * 3}},
            r'options\["reset_mask"\]: expected a bool array \(3,\) that is True somewhere',
        ),
        ({"options": {"reset_mask": np.zeros(3, bool)}}, r'options\["reset_mask"\]: expected a bool array \(3,\)'),
        ({"options": {"physics": {"mass": -1.0}}}, r"mass: expected a finite number above 0"),
        ({"options": [1]}, r"options: expected a dict with keys among"),
    ],
)
def test_bad_resets_are_refused_and_change_nothing(reset: dict[str, Any], message: str) -> None:
    env, twin = (batch("dilqr_rl/Pendulum-v0") for _ in range(2))
    env.reset(seed=0), twin.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.reset(**{"seed": 4, **reset})
    assert same(env.step(np.ones((3, 1))), twin.step(np.ones((3, 1))))
    assert same(env.reset(), twin.reset())


def test_a_class_that_steps_in_its_own_way_has_no_batch() -> None:
    class Shaped(PendulumEnv):
        def step(self, action: Any) -> Any:
            return super().step(action)

    with pytest.raises(ValueError, match=r"env_class: expected SystemEnv's own .*, got Shaped with other \['step'\]"):
        type("ShapedVectorEnv", (SystemVectorEnv,), {"env_class": Shaped})
