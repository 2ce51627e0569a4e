"""Batches of pictures from a list of shapes that all of them share while places and sizes differ, and stacks of such frames.

Nothing here loops over pictures: shapes are collected as arrays, and compiled loops draw all pictures, some on each thread.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from dilqr_rl.envs import raster_loops
from dilqr_rl.envs.raster_loops import ARC, BOX, CAPSULE, TRIANGLE
from dilqr_rl.native.loops import compile_loops
from dilqr_rl.native.threads import in_groups

__all__ = ["Colour", "Drawing", "Numbers", "Point", "fill_stack", "push_frames"]

Colour = tuple[int, int, int]
Numbers = float | NDArray[np.float64]
Point = tuple[Numbers, Numbers]

_NUMBERS = 8  # per shape
_FARTHEST = 1e4  # sides of the picture; a place beyond is moved there
_PIXELS_PER_STEP = 256  # of a picture: about as long as a step of the problems that `in_groups` counts in
_SIGNATURES = {
    "draw": "uint8[:, :, ::1], int64[::1], float64[:, :, ::1], int64[:, ::1], int64, int64, uint8[:, :, :, ::1]",
    "push": "uint8[:, :, ::1], uint8[:, :, ::1], boolean[::1], int64, int64, uint8[:, :, ::1]",
    "luminance": "uint8[:, :, ::1], int64, int64, uint8[:, :, ::1]",
}


class Drawing:
    """A batch of square pictures that shapes are drawn on, each over those before it, with smooth edges.

    Places and lengths are shares of the picture's side: x to the right and y down from (0, 0), the upper left corner. Each is
    a number, or an array (count,) with one for each picture, or (k, count) for k shapes at once. Where a radius, a width or a
    half size isn't above 0, or any number is NaN, that picture lacks the shape. What is thinner than a pixel is drawn a pixel
    wide and paler instead.

    Args:
        count: of the pictures.
        background: red, green and blue, from 0 to 255. It may be assigned later.
    """

    def __init__(self, count: int, background: Colour = (255, 255, 255)) -> None:
        self.count = count
        self.background = background
        self._kinds: list[int] = []
        self._colours: list[Colour] = []
        self._numbers: list[tuple[Numbers, ...]] = []  # of one or more shapes, as they were given
        self._ends: list[int] = []  # of their rows in the table of all numbers

    def capsule(self, start: Point, end: Point, radius: Numbers, colour: Colour) -> None:
        """Draw a line with round ends, `radius` to each side."""
        self._add(CAPSULE, colour, *start, *end, radius)

    def disc(self, centre: Point, radius: Numbers, colour: Colour) -> None:
        """Draw a disc."""
        self._add(CAPSULE, colour, *centre, *centre, radius)

    def box(self, centre: Point, half_size: Point, corner_radius: Numbers, colour: Colour) -> None:
        """Draw an upright rectangle with round corners; `half_size` is half its width and half its height."""
        self._add(BOX, colour, *centre, *half_size, corner_radius)

    def ring(self, centre: Point, radius: Numbers, half_width: Numbers, colour: Colour) -> None:
        """Draw a circle, `half_width` to each side of `radius`."""
        self._add(ARC, colour, *centre, radius, half_width, 0.0, 1.0, -1.0, 0.0)

    def arc(self, centre: Point, radius: Numbers, half_width: Numbers, angle: Numbers, sweep: Numbers, colour: Colour) -> None:
        """Draw a part of a circle with round ends.

        Args:
            centre: of the circle.
            radius: of the circle.
            half_width: of the line, to each side of the radius.
            angle: of one end, rad, 0 at the top, growing counter-clockwise.
            sweep: how much larger the other end's angle is, rad, in [-2 π, 2 π].
            colour: red, green and blue.
        """
        half = np.multiply(0.5, sweep)
        middle = np.add(angle, half)
        with np.errstate(invalid="ignore"):  # of an infinite angle, which isn't drawn
            direction = (-np.sin(middle), -np.cos(middle))
            self._add(ARC, colour, *centre, radius, half_width, *direction, np.cos(half), np.abs(np.sin(half)))

    def triangle(self, first: Point, second: Point, third: Point, colour: Colour) -> None:
        """Draw a triangle; one without an area isn't seen."""
        self._add(TRIANGLE, colour, *first, *second, *third)

    def pixels(self, size: int) -> NDArray[np.uint8]:
        """The pictures as a new array (count, size, size, 3), red, green and blue. The same bits for any number of threads."""
        draw, frames = _loops().draw, np.empty((self.count, size, size, 3), np.uint8)
        kinds, colours, numbers = (
            np.array(self._kinds, np.int64),
            np.array(self._colours, np.int64).reshape(-1, 3),
            self._table(),
        )
        line = np.empty((size, 3), np.uint8)
        line[:] = self.background
        background = np.broadcast_to(line, (1, size, size, 3)).copy()
        shared = _shared_layers(numbers)
        if shared:  # once for all pictures
            sheet = background.copy()
            draw(sheet[0], kinds[:shared], numbers[:shared, :, :1].copy(), colours[:shared], 0, 1, background)
        layers = (background[0], kinds[shared:], numbers[shared:], colours[shared:])
        in_groups(lambda start, stop: draw(*layers, start, stop, frames), self.count, _steps(size * size))
        return frames

    def _add(self, kind: int, colour: Colour, *numbers: Numbers) -> None:
        """Add as many shapes of a kind as the numbers (), (count,) or (k, count) stand for."""
        shapes = max(len(each) if isinstance(each, np.ndarray) and each.ndim == 2 else 1 for each in numbers)
        self._numbers.append(numbers)
        self._kinds += [kind] * shapes
        self._colours += [colour] * shapes
        self._ends.append(len(self._kinds))

    def _table(self) -> NDArray[np.float64]:
        """The numbers of all shapes, (shapes, 8, count)."""
        table, start = np.zeros((len(self._kinds), _NUMBERS, self.count)), 0
        for stop, numbers in zip(self._ends, self._numbers, strict=True):
            for place, each in enumerate(numbers):
                table[start:stop, place] = each
            start = stop
        return table.clip(-_FARTHEST, _FARTHEST, out=table)


def fill_stack(frames: NDArray[np.uint8], depth: int, grey: bool) -> NDArray[np.uint8]:
    """Stacks that hold nothing but a frame, `depth` times; see `push_frames`.

    Args:
        frames: (N, S, S, 3).
        depth: frames per stack.
        grey: whether they become grey.

    Returns:
        (N, S, S, depth) if grey, else (N, S, S, 3 * depth).
    """
    channels = depth if grey else 3 * depth
    stack = np.empty((*frames.shape[:3], channels), np.uint8)
    return push_frames(stack, frames, grey, np.ones(len(frames), np.bool_))


def push_frames(
    stack: NDArray[np.uint8], frames: NDArray[np.uint8], grey: bool, fresh: NDArray[np.bool_] | None = None
) -> NDArray[np.uint8]:
    """New stacks in which a frame has come in and the oldest has gone.

    Args:
        stack: (N, S, S, K), the last frames along the channels, the oldest first.
        frames: (N, S, S, 3), the frames that come in.
        grey: whether they become grey, 0.299 red + 0.587 green + 0.114 blue, so that each takes one channel, not three.
        fresh: (N,), where a stack begins anew, with nothing but its new frame. None: nowhere.

    Returns:
        (N, S, S, K), a new array.

    Raises:
        ValueError: shapes that don't fit.
    """
    step = 1 if grey else 3
    if frames.shape != (*stack.shape[:3], 3) or stack.shape[3] % step:
        raise ValueError(
            f"stack: expected (N, S, S, K) with K divisible by {step}, for frames (N, S, S, 3), got {stack.shape} for "
            f"{frames.shape}. Make the first one with fill_stack(frames, depth, grey={grey})."
        )
    count, pixels = len(stack), stack.shape[1] * stack.shape[2]
    loops, moved = _loops(), np.empty(stack.shape, np.uint8)
    old, new, out = (np.ascontiguousarray(each).reshape(count, pixels, each.shape[3]) for each in (stack, frames, moved))
    begins = np.zeros(count, np.bool_) if fresh is None else np.ascontiguousarray(fresh, np.bool_)
    shades = np.empty((count, pixels, step), np.uint8)

    def push_group(start: int, stop: int) -> None:
        if grey:
            loops.luminance(new, start, stop, shades)
        loops.push(old, shades if grey else new, begins, start, stop, out)

    in_groups(push_group, count, _steps(pixels))
    return moved


def _shared_layers(numbers: NDArray[np.float64]) -> int:
    """How many shapes at the bottom are the same in all pictures; 0 for a single picture, which gains nothing by knowing."""
    if numbers.shape[2] < 2:
        return 0
    differ = (numbers != numbers[:, :, :1]).any(axis=(1, 2))
    return int(differ.argmax()) if differ.any() else len(differ)


def _steps(pixels: int) -> int:
    """How much work a picture is, in steps as `in_groups` counts them."""
    return 1 + pixels // _PIXELS_PER_STEP


@cache
def _loops() -> ModuleType:
    """The loops over pixels, compiled on first use."""
    return compile_loops(raster_loops, _SIGNATURES, "the drawing of pictures")
