"""What a pixel environment sees: small frames, the last few of them stacked."""

from __future__ import annotations

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dilqr_rl.envs.checks import check_integer, check_one_of
from dilqr_rl.envs.drawing import fill_stack, push_frames

__all__ = ["Camera"]

Frames = NDArray[np.uint8]
_STYLES = ("picture", "line")


class Camera:
    """Takes frames of states, and stacks the last ones along the channels, oldest first.

    Args:
        size: of a frame, pixels a side, from 16 to 512.
        frame_stack: how many frames an observation holds, from 1 to 16. The first one of an episode fills the whole stack.
        grey: one channel (luminance) instead of three.
        style: "picture", as a person sees it but without the arrow of the control, or "line", as published (DiLQR, 5.3): one
            dark line on white.

    Attributes:
        size, style: as given.
        space: of the observations, (size, size, channels) uint8.

    Raises:
        ValueError: a number out of range, or an unknown style.
    """

    def __init__(self, size: int, frame_stack: int, grey: bool, style: str) -> None:
        self.size = check_integer("size", size, 16, 512)
        self._depth = check_integer("frame_stack", frame_stack, 1, 16)
        self._grey = check_one_of("grey", grey, (False, True))
        self.style = check_one_of("style", style, _STYLES)
        channels = self._depth * (1 if grey else 3)
        self.space = spaces.Box(0, 255, (self.size, self.size, channels), np.uint8)

    def first(self, frames: Frames) -> Frames:
        """Observations (N, size, size, channels) at the start of episodes."""
        return fill_stack(frames, self._depth, self._grey)

    def next(self, observations: Frames, frames: Frames) -> Frames:
        """New observations: those before, and one frame more."""
        return push_frames(observations, frames, self._grey)
