"""Frames, recordings and windows, without a screen."""

import copy
import math
import pickle
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import systems
from gymnasium.wrappers import HumanRendering, RecordVideo
from numpy.typing import NDArray

import dilqr_rl.envs  # noqa: F401

IDS = ["dilqr_rl/Pendulum-v0", "dilqr_rl/CartPole-v0"]
each_id = pytest.mark.parametrize("env_id", IDS)


def make(env_id: str, **arguments: Any) -> Any:
    return gym.make(env_id, **arguments)


def start(env_id: str, angle: float, position: float = 0.0) -> list[float]:
    circle = [math.cos(angle), math.sin(angle)]
    return [*circle, 0.0] if "Pendulum" in env_id else [position, 0.0, *circle, 0.0]


def red(frame: Any) -> NDArray[np.bool_]:
    """Where the rod or the pole is drawn."""
    red, green, blue = (frame[..., channel].astype(int) for channel in range(3))
    return (red > 180) & (green < 110) & (blue < 110)


@each_id
@pytest.mark.parametrize(("angle", "side", "up"), [(0.0, 0, 1), (math.pi, 0, -1), (math.pi / 2, 1, 0), (-math.pi / 2, -1, 0)])
def test_the_rod_points_where_the_angle_says(env_id: str, angle: float, side: int, up: int) -> None:
    env = make(env_id, render_mode="rgb_array")
    env.reset(options={"state": start(env_id, angle)})
    frame = env.render()
    assert (frame.shape, frame.dtype) == ((500, 500, 3), np.uint8)
    rows, columns = np.nonzero(red(frame))
    hinge_row = 250 if "Pendulum" in env_id else 275
    right = side if "CartPole" in env_id else -side  # as Gymnasium draws its pendulum: counter-clockwise
    assert columns.mean() - 250 == pytest.approx(60 * right, abs=40)
    assert hinge_row - rows.mean() == pytest.approx(60 * up, abs=40)


@each_id
def test_frames_are_repeatable_independent_and_change_with_the_state(env_id: str) -> None:
    env = make(env_id, render_mode="rgb_array")
    env.reset(seed=0)
    first, second = env.render(), env.render()
    np.testing.assert_array_equal(first, second)
    assert not np.shares_memory(first, second)
    env.step(np.ones(1))
    assert (env.render() != first).any()


@each_id
def test_the_effort_is_drawn_towards_its_side(env_id: str) -> None:
    frames = []
    for action in (-1.0, 1.0):
        env = make(env_id, render_mode="rgb_array", physics={"gravity": 0.0})
        env.reset(options={"state": start(env_id, math.pi)})
        env.step(np.array([action]))
        frames.append(env.render())
    orange = [(frame[..., 0] > 220) & (frame[..., 1] > 140) & (frame[..., 2] < 80) for frame in frames]
    left, right = (np.nonzero(each)[1].mean() - 250 for each in orange)
    assert left * right < 0
    assert (left < right) == ("CartPole" in env_id)


@each_id
@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_extreme_sizes_are_drawn(env_id: str, factor: float) -> None:
    env = make(env_id, render_mode="rgb_array", physics={"length": factor})
    env.reset(options={"state": start(env_id, 1.0)})
    assert env.render().shape == (500, 500, 3)


def test_the_cart_stays_in_the_picture_up_to_the_ends_of_a_long_rail() -> None:
    for track_limit in (0.6, 5.0, 1e6):
        for side in (-1.0, 1.0):
            env = make("dilqr_rl/CartPole-v0", render_mode="rgb_array", track_limit=track_limit)
            env.reset(options={"state": start("CartPole", side * math.pi / 2, position=side * track_limit)})
            pole = red(env.render())
            assert pole.any()
            assert not pole[:, [0, -1]].any()


@systems.each_id
def test_e11_recordings_and_windows_work_and_close_twice(env_id: str) -> None:
    env = make(env_id, render_mode="rgb_array_list")
    env.reset(seed=0)
    for _ in range(3):
        env.step(systems.still(env))
    assert len(env.render()) == 4
    window = HumanRendering(make(env_id, render_mode="rgb_array"))
    direct = make(env_id, render_mode="human")
    for each in (window, direct):
        each.reset(seed=0)
        each.step(systems.still(each))
        assert each.render() is None
    for each in (env, window, direct):
        each.close()
        each.close()


@systems.each_id
def test_e11_a_video_is_recorded(env_id: str, tmp_path: Path) -> None:
    env = RecordVideo(make(env_id, render_mode="rgb_array", max_episode_steps=3), str(tmp_path / "videos"), disable_logger=True)
    env.reset(seed=0)
    while not any(env.step(systems.still(env))[2:4]):
        pass
    env.close()
    (video,) = tmp_path.glob("videos/*.mp4")
    assert video.stat().st_size > 1000


@each_id
def test_a_window_opens_again_after_it_was_closed_and_is_left_behind_by_copies(env_id: str) -> None:
    env = make(env_id, render_mode="human").unwrapped
    env.reset(seed=0)
    twins = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    env.close()
    for each in (env, *twins):
        each.step(np.zeros(1))
        each.close()


def test_two_windows_in_turn_outlive_each_other() -> None:
    first, second = (make(env_id, render_mode="human") for env_id in IDS)
    for env in (first, second, first):
        env.reset(seed=0)
    first.close()
    second.step(np.zeros(1))
    second.close()


def test_drawing_without_a_mode_warns() -> None:
    env = make("dilqr_rl/Pendulum-v0").unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match='has no render mode; pass render_mode="rgb_array"'):
        assert env.render() is None


def test_missing_pygame_is_named_by_a_window_and_not_missed_by_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = make("dilqr_rl/Pendulum-v0", render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (500, 500, 3)
    with pytest.raises(gym.error.DependencyNotInstalled, match="A window needs pygame"):
        make("dilqr_rl/Pendulum-v0", render_mode="human").reset(seed=0)
