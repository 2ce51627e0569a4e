"""Physics as arguments: at make, at reset, by ranges and by presets."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from systems import STATE_IDS, actions, changed_physics, each_id, each_state_id, full, make, roll, still

from dilqr_rl import find_task
from dilqr_rl.envs import ENVIRONMENTS, PendulumDynamics

PRESETS = [(env_id, preset) for env_id in STATE_IDS for preset in ENVIRONMENTS[env_id].presets]


@each_id
def test_e9_every_physics_argument_acts_and_acts_alike_from_everywhere(env_id: str) -> None:
    default = make(env_id)
    for name, value in changed_physics(env_id).items():
        physics = {name: value}
        at_make = roll(make(env_id, physics=physics))
        at_reset = roll(default, options={"physics": physics})
        np.testing.assert_array_equal(at_make, at_reset)
        assert default.unwrapped.step(still(default))[4]["physics"][name] == value
        plain = roll(default)
        assert np.abs(plain - at_make).max() > 1e-4
        np.testing.assert_array_equal(plain, roll(make(env_id)))


@each_id
def test_e9_physics_of_a_reset_come_on_top_of_those_at_make_and_last_one_episode(env_id: str) -> None:
    (first, one), (second, two), *_ = changed_physics(env_id).items()
    env = make(env_id, physics={first: one})
    assert env.reset(options={"physics": {second: two}})[1]["physics"].items() >= {first: one, second: two}.items()
    both = roll(make(env_id, physics={first: one, second: two}))
    np.testing.assert_array_equal(roll(env, options={"physics": {second: two}}), both)
    np.testing.assert_array_equal(roll(env), roll(make(env_id, physics={first: one})))


@each_id
def test_e9_ranges_are_drawn_from_the_own_generator_reported_and_acted_upon(env_id: str) -> None:
    ranges = {name: (0.9 * value, 1.1 * value) for name, value in changed_physics(env_id).items()}
    env, twin = (make(env_id, randomize=dict(reversed(ranges.items()))) for _ in range(2))
    drawn = []
    for seed in range(20):
        np.random.seed(seed)  # that the global generator doesn't matter is what is tested
        torch.manual_seed(seed)
        _, info = env.reset(seed=7 if seed == 0 else None)
        _, other = twin.reset(seed=7 if seed == 0 else None)
        assert info["physics"] == other["physics"] == env.unwrapped.physics
        assert list(info["physics"]) == list(ranges)
        drawn.append([*info["physics"].values()])
        after = env.step(full(env))[4]
        assert after["physics"] == info["physics"]
        told = make(env_id, physics=info["physics"])
        told.reset(options={"state": info["state"]})
        np.testing.assert_array_equal(told.step(full(env))[4]["state"], after["state"])
    low, high = np.array([*ranges.values()]).T
    shares = (np.array(drawn) - low) / (high - low)
    assert ((shares >= 0.0) & (shares <= 1.0)).all()
    assert (shares.min(axis=0) < 0.3).all()  # 20 uniform draws miss a side with a chance of 1e-3
    assert (shares.max(axis=0) > 0.7).all()
    assert np.abs(np.corrcoef(shares.T) - np.eye(len(ranges))).max() < 0.85  # each number has a draw of its own


@each_id
def test_e9_what_is_given_at_reset_leaves_other_draws_as_they_were(env_id: str) -> None:
    names = list(changed_physics(env_id))
    ranges = {name: (0.9 * value, 1.1 * value) for name, value in changed_physics(env_id).items() if name in names[:2]}
    env, twin = make(env_id, randomize=ranges), make(env_id, randomize=ranges)
    fixed = changed_physics(env_id)[names[0]]
    _, info = env.reset(seed=3, options={"physics": {names[0]: fixed}})
    _, other = twin.reset(seed=3)
    assert info["physics"] == {**other["physics"], names[0]: fixed}
    np.testing.assert_array_equal(info["state"], other["state"])
    _, plain = make(env_id).reset(seed=3)
    np.testing.assert_array_equal(info["state"], plain["state"])
    state = plain["state"]
    _, info = env.reset(seed=3, options={"state": state})
    assert info["physics"] == other["physics"]
    _, info = env.reset()
    assert info["physics"] == twin.reset()[1]["physics"]
    assert info["physics"][names[0]] != fixed


@pytest.mark.parametrize(("env_id", "preset"), PRESETS)
def test_every_preset_runs_and_its_own_model_predicts_it(env_id: str, preset: str) -> None:
    for seed in range(3):
        env = make(env_id, preset=preset)
        _, info = env.reset(seed=seed)
        task: Any = find_task(env)
        for action in actions(env, 20, seed):
            state, control = torch.from_numpy(info["state"]), task.control_per_action * torch.from_numpy(action).double()
            _, _, terminated, _, info = env.step(action)
            with torch.no_grad():
                expected = task.dynamics(state, control)
            if terminated or (np.abs(expected.numpy()) > env.observation_space.high).any():  # a model knows no speed limit
                break
            np.testing.assert_allclose(expected, info["state"], rtol=0.0, atol=1e-12)


def test_the_first_preset_is_the_default() -> None:
    for env_id in STATE_IDS:
        first = next(iter(ENVIRONMENTS[env_id].presets))
        np.testing.assert_array_equal(roll(make(env_id)), roll(make(env_id, preset=first)))


def test_presets_of_the_pendulum_are_what_they_say() -> None:
    windy = make("dilqr_rl/Pendulum-v0", preset="windy")
    assert windy.unwrapped.physics.items() >= {"damping": 0.1, "wind": 0.5, "mass": 1.0}.items()
    by_hand = make("dilqr_rl/Pendulum-v0", physics={"damping": 0.1, "wind": 0.5})
    np.testing.assert_array_equal(roll(windy), roll(by_hand))
    changed = make("dilqr_rl/Pendulum-v0", preset="windy", physics={"wind": 1.0}, max_torque=3.0).unwrapped
    assert changed.physics.items() >= {"damping": 0.1, "wind": 1.0}.items()
    assert changed.control_limit == 3.0
    published = make("dilqr_rl/Pendulum-v0", preset="diffmpc")
    angles = [math.atan2(*published.reset(seed=seed)[1]["state"][1::-1]) for seed in range(50)]
    assert max(map(abs, angles)) <= math.pi / 2
    assert max(map(abs, angles)) > 1.0
    published.reset(options={"state": [0.0, 1.0, 8.0]})
    assert published.step(np.ones(1))[4]["state"][2] == pytest.approx(8.0 + 0.05 * (15.0 + 3.0 * 2.0))  # no limit at 8


@pytest.mark.parametrize("angle", [0.3, -2.0, 3.1])
def test_the_published_complex_pendulum_is_as_printed(angle: float) -> None:
    env = make("dilqr_rl/Pendulum-v0", preset="diffmpc-complex")
    env.reset(options={"state": [math.cos(angle), math.sin(angle), 0.5]})
    state = env.step(np.array([0.25]))[4]["state"]
    rate = 0.5 + 0.05 * (15.0 * math.sin(angle + 0.1) + 3.0 * 0.5 - 1.0 * angle)
    after = angle + 0.05 * rate
    np.testing.assert_allclose(state, [math.cos(after), math.sin(after), rate], rtol=0.0, atol=1e-12)


@each_state_id
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stat": [1.0]}, r"options: expected a dict with keys among \('physics', 'state'\), got \{'stat'"),
        ([1.0], r"options: expected a dict with keys among \('physics', 'state'\), got \[1\.0\]"),
        ({"physics": {"bogus": 1.0}}, r"physics: expected names among \[.*'gravity'.*\], got \['bogus'\]"),
        ({"physics": {"gravity": math.nan}}, r"gravity: expected a finite number, got nan"),
        ({"physics": {"gravity": 10**400}}, r"gravity: expected a finite number, got an integer of 1329 bits"),
        ({"physics": {"gravity": "strong"}}, r"gravity: expected a finite number, got 'strong'"),
        ({"physics": "moon"}, r"physics: expected a dict such as .*, got 'moon'"),
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
    for _ in range(3):
        np.testing.assert_array_equal(env.step(full(env))[4]["state"], twin.step(full(env))[4]["state"])
    np.testing.assert_array_equal(env.reset()[0], twin.reset()[0])


@each_id
def test_masses_and_lengths_below_zero_are_refused(env_id: str) -> None:
    env = make(env_id)
    positive = env.unwrapped.dynamics_class.positive
    assert positive
    for name in positive:
        for wrong in (0.0, -1.0, math.inf):
            with pytest.raises(ValueError, match=rf"{name}: expected a finite number above 0, got {wrong}"):
                make(env_id, physics={name: wrong})
            with pytest.raises(ValueError, match=rf"{name}: expected a finite number above 0, got {wrong}"):
                env.reset(options={"physics": {name: wrong}})
        with pytest.raises(ValueError, match=rf"{name}: expected a finite number above 0, got -1\.0"):
            make(env_id, randomize={name: (-1.0, 1.0)})


@each_state_id
@pytest.mark.parametrize(
    ("randomize", "message"),
    [
        (
            {"gravity": (3.0, 3.0)},
            r"randomize\['gravity'\]: expected a range \(lowest, highest\), got \(3\.0, 3\.0\)\. A single",
        ),
        ({"gravity": (4.0, 3.0)}, r"randomize\['gravity'\]: expected a range \(lowest, highest\), got \(4\.0, 3\.0\)"),
        ({"gravity": (3.0,)}, r"randomize\['gravity'\]: expected a range \(lowest, highest\), got \(3\.0,\)"),
        ({"gravity": (3.0, math.inf)}, r"randomize\['gravity'\]: expected a range \(lowest, highest\), got \(3\.0, inf\)"),
        ({"gravity": 3.0}, r"randomize\['gravity'\]: expected a range \(lowest, highest\), got 3\.0\. A single number"),
        ({"bogus": (1.0, 2.0)}, r"randomize: expected names among \[.*'gravity'.*\], got \['bogus'\]"),
        (
            {"gravity": (-1e308, 1e308)},
            r"randomize\['gravity'\]: expected a range \(lowest, highest\), got \(-1e\+308, 1e\+308\)",
        ),
        ("all", r"randomize: expected a dict such as .*\(0\.5, 1\.5\)\}, got 'all'"),
    ],
)
def test_bad_ranges_are_refused(env_id: str, randomize: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(env_id, randomize=randomize)


def test_a_name_with_a_number_and_a_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"randomize: \['mass'\] have a number in physics, too\. Keep one of the two\."):
        make("dilqr_rl/Pendulum-v0", physics={"mass": 1.0}, randomize={"mass": (0.5, 1.5)})
    env = make("dilqr_rl/Pendulum-v0", preset="windy", randomize={"wind": (0.0, 1.0)})  # of a preset it is replaced
    assert env.reset(seed=0)[1]["physics"]["damping"] == 0.1


def test_lengths_whose_squares_overflow_bear_any_damping() -> None:
    env = make("dilqr_rl/Pendulum-v0", physics={"length": 1e200, "damping": 1e3})
    assert env.reset(seed=0)[1]["physics"]["length"] == 1e200


def test_ranges_whose_corners_are_impossible_together_are_refused() -> None:
    most = 2 * 0.5**2 / (3 * 0.05)
    with pytest.raises(ValueError, match=rf"damping: expected at most .* = {most:g} N m s, got 4\.0"):
        make("dilqr_rl/Pendulum-v0", randomize={"length": (0.5, 1.5), "damping": (0.0, 4.0)})
    env = make("dilqr_rl/Pendulum-v0", randomize={"length": (0.5, 1.5)})
    with pytest.raises(ValueError, match=r"damping: expected at most"):
        env.reset(options={"physics": {"damping": 4.0}})
    assert env.reset(options={"physics": {"damping": 4.0, "length": 1.0}})[1]["physics"]["length"] == 1.0


@each_state_id
def test_unknown_presets_render_modes_and_limits_are_refused(env_id: str) -> None:
    env_class = ENVIRONMENTS[env_id]
    with pytest.raises(ValueError, match=rf"preset: expected one of \['{next(iter(env_class.presets))}'.*\], got 'moon'"):
        make(env_id, preset="moon")
    with pytest.raises(ValueError, match=r"render_mode: expected one of \(None, 'human', 'rgb_array'\), got 'ansi'"):
        env_class(render_mode="ansi")  # type: ignore[call-arg]
    with pytest.raises(ValueError, match=r"physics: expected names among .*, got \['bogus'\]"):
        make(env_id, physics={"bogus": 1.0})


@pytest.mark.parametrize(("env_id", "limit"), [("dilqr_rl/Pendulum-v0", "max_torque"), ("dilqr_rl/CartPole-v0", "max_force")])
@pytest.mark.parametrize("wrong", [0.0, -1.0, math.nan, math.inf, "strong"])
def test_impossible_limits_of_the_control_are_refused(env_id: str, limit: str, wrong: Any) -> None:
    with pytest.raises(ValueError, match=rf"{limit}: expected a finite number above 0, got"):
        make(env_id, **{limit: wrong})


def test_the_model_of_an_episode_has_its_physics() -> None:
    env = make("dilqr_rl/Pendulum-v0", randomize={"length": (0.5, 1.5)})
    assert find_task(env).dynamics.physics["length"] == PendulumDynamics().physics["length"]
    _, info = env.reset(seed=1)
    assert find_task(env).dynamics.physics == info["physics"]
