"""Draw the pictures of the environments' page: an expert's episode in each of them.

Run it: `python docs/draw_environments.py`. It takes some seconds, and a minute more the first time, while the planners are
compiled. A file is named after the id: `Pendulum-v0.png` shows `dilqr_rl/Pendulum-v0`. A pixel environment's picture ends
with what it observes: the last frame of a stack, enlarged, in either style.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image

from dilqr_rl import MPCPolicy
from dilqr_rl.envs import ENVIRONMENTS

SIDE = 256  # of a frame in a picture, pixels; 4 times that of an observation
GAP = 6
STEPS = (0, 12, 24, 48)  # the frames that are shown, counted from an episode's start
STEPS_BESIDE_OBSERVATIONS = (0, 24)
Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class Args:
    """What to draw, and where to.

    Attributes:
        folder: of the pictures.
        seed: of the episodes.
    """

    folder: Path = Path(__file__).parent / "pictures"
    seed: int = 3


def main(args: Args) -> list[Path]:
    """Draw a picture for every id.

    Args:
        args: where to, and of which episodes.

    Returns:
        The files, in the order of `ENVIRONMENTS`.
    """
    torch.set_num_threads(1)  # these problems are small
    args.folder.mkdir(parents=True, exist_ok=True)
    files = []
    for env_id in ENVIRONMENTS:
        name = env_id.partition("/")[2]
        seen = episode(env_id, args.seed, pixels="Pixels" in name)
        files.append(args.folder / f"{name}.png")
        side_by_side(seen).save(files[-1], optimize=True)
    return files


def episode(env_id: str, seed: int, *, pixels: bool) -> list[Frame]:
    """Frames (500, 500, 3) of an episode, and after them the last observations (64, 64, 3) where there are pixels."""
    env: gym.Env[Any, Any] = gym.make(env_id, render_mode="rgb_array")
    expert = MPCPolicy.for_env(gym.make(env_id.replace("Pixels", "")))  # plans from states, which pixel ids have in their info
    observation, info = env.reset(seed=seed)
    frames, plan, shown = [], None, STEPS_BESIDE_OBSERVATIONS if pixels else STEPS
    for step in range(shown[-1] + 1):
        if step in shown:
            frames.append(rendered(env))
        if step < shown[-1]:
            action, plan = expert.predict(info["state"], plan)
            observation, _, _, _, info = env.step(action)
    env.close()
    return frames if not pixels else [*frames, observation[:, :, -3:], line_observation(env_id, info)]


def line_observation(env_id: str, info: dict[str, Any]) -> Frame:
    """The observation (64, 64, 3) of the same state in the style "line"."""
    env: gym.Env[Any, Any] = gym.make(env_id, style="line", frame_stack=1)
    observation, _ = env.reset(options={"state": info["state"]})
    env.close()
    return np.asarray(observation, np.uint8)


def rendered(env: gym.Env[Any, Any]) -> Frame:
    """A frame (500, 500, 3)."""
    return np.asarray(env.render(), np.uint8)


def side_by_side(frames: list[Frame]) -> Image.Image:
    """Frames of any size in a row, the small ones with visible pixels."""
    row = Image.new("RGB", (len(frames) * (SIDE + GAP) - GAP, SIDE), "lightgrey")
    for place, frame in enumerate(frames):
        how = Image.Resampling.LANCZOS if len(frame) > SIDE else Image.Resampling.NEAREST
        row.paste(Image.fromarray(frame).resize((SIDE, SIDE), how), (place * (SIDE + GAP), 0))
    return row


if __name__ == "__main__":
    main(tyro.cli(Args))
