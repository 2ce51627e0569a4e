"""What the cameras of the pixel environments see."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import AddRenderObservation, FrameStackObservation, ResizeObservation
from stable_baselines3 import PPO
from systems import PIXEL_IDS, each_pixel_id, each_state_id, full, make, still

from dilqr_rl import MPCPolicy, find_task


def state_id(pixel_id: str) -> str:
    return pixel_id.replace("Pixels", "")


@each_pixel_id
def test_the_system_behind_the_frames_is_that_of_the_state_id(env_id: str) -> None:
    pixels, states = make(env_id), make(state_id(env_id))
    np.testing.assert_array_equal(pixels.reset(seed=3)[1]["state"], states.reset(seed=3)[1]["state"])
    for _ in range(30):
        one, other = pixels.step(0.4 * full(pixels)), states.step(0.4 * full(states))
        assert one[1:4] == other[1:4]
        np.testing.assert_array_equal(one[4]["state"], other[4]["state"])


@each_pixel_id
@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("style", ["picture", "line"])
def test_observations_have_the_size_the_stack_and_the_channels_asked_for(env_id: str, grey: bool, style: str) -> None:
    env = make(env_id, size=84, frame_stack=3, grey=grey, style=style)
    channels = 1 if grey else 3
    first, _ = env.reset(seed=0)
    assert env.observation_space == gym.spaces.Box(0, 255, (84, 84, 3 * channels), np.uint8)
    assert env.observation_space.contains(first)
    frames = [first[..., :channels]]
    np.testing.assert_array_equal(first, np.concatenate(3 * frames, axis=-1))  # the first frame fills the stack
    for _ in range(5):
        observation = env.step(full(env))[0]
        np.testing.assert_array_equal(
            observation, np.concatenate([*frames, *frames, observation[..., -channels:]][-3:], axis=-1)
        )
        frames = [*frames, observation[..., -channels:]][-2:]
        assert (frames[-1] != frames[0]).any()


@each_pixel_id
def test_an_observation_depends_on_states_alone(env_id: str) -> None:
    """Not on the last control: the picture for people shows it, the camera doesn't."""
    one, other = make(env_id, frame_stack=1), make(env_id, frame_stack=1)
    one.reset(seed=0)
    observation, _, _, _, info = one.step(full(one))
    np.testing.assert_array_equal(observation, other.reset(options={"state": info["state"]})[0])


@each_pixel_id
def test_grey_is_the_luminance_of_the_colours(env_id: str) -> None:
    colour, grey = make(env_id, frame_stack=1), make(env_id, frame_stack=1, grey=True)
    expected = colour.reset(seed=1)[0].astype(float) @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(grey.reset(seed=1)[0][..., 0], expected, rtol=0.0, atol=1.0)


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("angle", [0.0, 1.0, -2.0])
def test_the_published_rendering_is_a_dark_line_from_the_centre(size: int, angle: float) -> None:
    env = make("dilqr_rl/PendulumPixels-v0", size=size, frame_stack=4, style="line")
    observation, _ = env.reset(options={"state": [np.cos(angle), np.sin(angle), 0.0]})
    assert observation.shape == (size, size, 12)
    darkness = 255.0 - observation[..., :3].mean(axis=-1)
    rows, columns = (np.indices((size, size)) + 0.5) / size
    assert darkness[0, 0] == 0.0
    centre = np.array([(darkness * columns).sum(), (darkness * rows).sum()]) / darkness.sum() - 0.5
    direction = np.array([-np.sin(angle), -np.cos(angle)])  # counter-clockwise from the top, rows downwards
    np.testing.assert_allclose(centre / np.linalg.norm(centre), direction, rtol=0.0, atol=0.05)
    far = np.hypot(columns - 0.5, rows - 0.5)[darkness > 128].max()
    assert far == pytest.approx(2.0 * np.linalg.norm(centre), rel=0.1)  # one end is the centre of the image


@each_pixel_id
def test_the_state_can_be_told_from_two_frames(env_id: str) -> None:
    """Different angles and speeds give different stacks: nothing that matters hides."""
    env = make(env_id, frame_stack=2)
    seen = set()
    for seed in range(20):
        env.reset(seed=seed)
        seen.add(env.step(still(env))[0].tobytes())
    assert len(seen) == 20


@each_state_id
def test_e4_pixel_wrappers_stack_on_the_state_ids(env_id: str) -> None:
    env: Any = make(env_id, render_mode="rgb_array")
    env = FrameStackObservation(ResizeObservation(AddRenderObservation(env, render_only=True), (64, 64)), 4)
    assert env.reset(seed=0)[0].shape == (4, 64, 64, 3)
    assert env.step(env.action_space.sample())[0].dtype == np.uint8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 8}, r"size: expected an integer from 16 to 512, got 8"),
        ({"size": 64.0}, r"size: expected an integer from 16 to 512, got 64\.0"),
        ({"frame_stack": 0}, r"frame_stack: expected an integer from 1 to 16, got 0"),
        ({"grey": "yes"}, r"grey: expected one of \(False, True\), got 'yes'"),
        ({"style": "cubist"}, r"style: expected one of \('picture', 'line'\), got 'cubist'"),
        ({"preset": "moon"}, r"preset: expected one of"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    for env_id in PIXEL_IDS:
        with pytest.raises(ValueError, match=message):
            make(env_id, **arguments)


@each_pixel_id
def test_planning_from_frames_is_refused_with_what_to_do(env_id: str) -> None:
    with pytest.raises(ValueError, match=r"observation_space: expected a flat Box"):
        MPCPolicy.for_env(make(env_id))
    task = find_task(make(env_id))
    with pytest.raises(ValueError, match=r"expected a state to plan from, got frames of shape .* Plan from info\['state'\]"):
        task.observation_to_state(np.zeros((64, 64, 12)))  # type: ignore[arg-type]


def test_stable_baselines3_learns_from_frames() -> None:
    env = make("dilqr_rl/PendulumPixels-v0", grey=True)
    model = PPO("CnnPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(8)
    assert env.action_space.contains(model.predict(env.reset(seed=0)[0])[0])
