"""Draw the moving picture of the README: the demo's expert, its clone before it has learnt, and its clone afterwards.

Run `make demo` first, then `python docs/draw_swing_up.py`: it takes the learnt clone from the demo's folder, has all three
control the same pendulum from the same start, and draws them side by side. The palette is small, as the file is.
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
from PIL import Image, ImageDraw, ImageFont

from dilqr_rl.agents import Learner, PhysicsLearner, load_learner, roll_out
from dilqr_rl.cli.demo import ENV, WRONG

SIDE, GAP, CAPTION = 200, 6, 24  # pixels
FRAMES_PER_SECOND = 10
COLOURS = 24


@dataclass(frozen=True)
class Args:
    """What to draw, and where to.

    Attributes:
        demo: folder that the demo has left, with clone.safetensors in it.
        file: the GIF.
        seed: of the episode, which starts near where the pendulum hangs.
        seconds: of it that are drawn.
    """

    demo: Path = Path("demo")
    file: Path = Path(__file__).parent / "pictures" / "swing_up.gif"
    seed: int = 34
    seconds: float = 10.0


def main(args: Args) -> Path:
    """Draw the picture.

    Args:
        args: the demo's folder, the file, and the episode.

    Returns:
        The file.

    Raises:
        FileNotFoundError: the folder has no clone; run the demo.
    """
    torch.set_num_threads(1)  # these problems are small
    clone = load_learner(args.demo / "clone.safetensors")
    horizon = clone.settings["horizon"]
    learners: dict[str, Learner] = {
        "expert": PhysicsLearner(ENV, horizon=horizon),
        "clone before learning": PhysicsLearner(ENV, horizon=horizon, physics=WRONG),
        "clone after learning": clone,
    }
    frames = {caption: episode(learner, args.seed, args.seconds) for caption, learner in learners.items()}
    rows = [row(dict(zip(frames, shown, strict=True))) for shown in zip(*frames.values(), strict=True)]
    palette = stacked(rows[:: max(1, len(rows) // 8)]).quantize(COLOURS)
    pictures = [one.quantize(palette=palette, dither=Image.Dither.NONE) for one in rows]
    args.file.parent.mkdir(parents=True, exist_ok=True)
    duration = 1000 // FRAMES_PER_SECOND  # ms
    pictures[0].save(args.file, save_all=True, append_images=pictures[1:], duration=duration, loop=0, optimize=True)
    return args.file


def episode(learner: Learner, seed: int, seconds: float) -> list[Image.Image]:
    """Frames of the first seconds of an episode of a learner's."""
    (found,) = roll_out(learner, ENV, episodes=1, seed=seed).demonstrations.episodes
    env: gym.Env[Any, Any] = gym.make(ENV, render_mode="rgb_array")
    every = env.metadata["render_fps"] // FRAMES_PER_SECOND  # steps from one frame to the next
    shown = found.state_observations[::every][: 1 + round(seconds * FRAMES_PER_SECOND)]
    frames = [drawn(env, observation) for observation in shown]
    env.close()
    return frames


def drawn(env: gym.Env[Any, Any], observation: NDArray[Any]) -> Image.Image:
    """The picture (SIDE, SIDE) of a state."""
    env.reset(options={"state": observation})
    return Image.fromarray(np.asarray(env.render(), np.uint8)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def row(frames: dict[str, Image.Image]) -> Image.Image:
    """Frames side by side, each with its caption above it."""
    whole = Image.new("RGB", (len(frames) * (SIDE + GAP) - GAP, SIDE + CAPTION), "white")
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(size=15)
    for place, (caption, frame) in enumerate(frames.items()):
        left = place * (SIDE + GAP)
        whole.paste(frame, (left, CAPTION))
        pen.text((left + SIDE // 2, CAPTION // 2), caption, fill="black", font=font, anchor="mm")
    return whole


def stacked(rows: list[Image.Image]) -> Image.Image:
    """Pictures below each other, of which one palette is made."""
    whole = Image.new("RGB", (rows[0].width, rows[0].height * len(rows)))
    for place, one in enumerate(rows):
        whole.paste(one, (0, place * one.height))
    return whole


if __name__ == "__main__":
    main(tyro.cli(Args))
