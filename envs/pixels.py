"""Frames in the place of states: what turns a state environment into a pixel environment."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from dilqr_rl.envs.base import SystemEnv
from dilqr_rl.envs.camera import Camera
from dilqr_rl.envs.drawing import Drawing
from dilqr_rl.envs.episodes import Floats

__all__ = ["PixelEnv"]


class PixelEnv(SystemEnv):
    """Mixed into the class of a state environment, in front of it: the same system, seen by a camera.

    Args:
        physics: of the state environment.
        size: of a frame, pixels a side, from 16 to 512.
        frame_stack: frames in an observation, oldest first, from 1 to 16; at an episode's start they are all the same.
        grey: one channel (luminance) a frame instead of three.
        style: "picture", as a person sees it but without the arrow of the control; "line", as published: one dark line on
            white.
        **arguments: all others of the state environment.

    Raises:
        ValueError: as the state environment, and for numbers out of range or an unknown style.
    """

    def __init__(
        self,
        physics: Mapping[str, float] | None = None,
        *,
        size: int = 64,
        frame_stack: int = 4,
        grey: bool = False,
        style: str = "picture",
        **arguments: Any,
    ) -> None:
        self.camera: Camera = Camera(size, frame_stack, grey, style)
        super().__init__(physics, **arguments)  # type: ignore[arg-type]  # of the state environment

    @abstractmethod
    def paint_line(self, drawing: Drawing, states: Floats, physics: Mapping[str, Floats]) -> None:
        """Draw states (N, n), with physics (N,) by name, in the style "line"."""

    def paint_seen(self, drawing: Drawing, states: Floats, physics: Mapping[str, Floats]) -> None:
        """Draw what the camera sees, in its style."""
        if self.camera.style == "line":
            self.paint_line(drawing, states, physics)
        else:
            super().paint_seen(drawing, states, physics)
