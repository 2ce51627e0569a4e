"""Pictures: one drawing function per system, onto a square pygame surface of any size, and a window that shows them.

Everything is drawn twice as large as it is shown and averaged down, which smooths every edge. pygame is imported on first use.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from types import ModuleType

    from pygame import Surface

    Point = tuple[float, float]
    Colour = tuple[int, int, int]

__all__ = ["Window", "draw_cartpole", "draw_pendulum", "frame_pixels", "new_frame"]

FRAME_SIZE = 500
_OVERSAMPLING = 2

_PAPER: Colour = (250, 250, 252)
_GRID: Colour = (229, 232, 239)
_STEEL: Colour = (148, 158, 176)
_INK: Colour = (44, 54, 74)
_ROD: Colour = (214, 84, 72)
_ROD_LIGHT: Colour = (238, 140, 122)
_CART: Colour = (58, 96, 150)
_CART_LIGHT: Colour = (104, 146, 204)
_EFFORT: Colour = (240, 160, 40)


def new_frame(paint: Callable[[Surface], None], size: int = FRAME_SIZE) -> Surface:
    """A surface (size, size) with smooth edges that `paint` has drawn on.

    Raises:
        gymnasium.error.DependencyNotInstalled: pygame is missing.
    """
    pygame = _pygame()
    large = pygame.Surface((size * _OVERSAMPLING, size * _OVERSAMPLING), depth=32)
    paint(large)
    small: Surface = pygame.transform.smoothscale(large, (size, size))
    return small


def frame_pixels(surface: Surface) -> NDArray[np.uint8]:
    """The pixels of a surface as an array of its own, (height, width, 3)."""
    pixels = _pygame().surfarray.array3d(surface)
    return np.ascontiguousarray(pixels.swapaxes(0, 1), dtype=np.uint8)


class Window:
    """A window on the screen, opened by the first frame. A copy or a pickle of it is closed."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._screen: Surface | None = None

    def show(self, frame: Surface, fps: int) -> None:
        """Show a frame, and wait so that no more than `fps` of them pass per second."""
        pygame = _pygame()
        if self._screen is None or pygame.display.get_surface() is not self._screen:
            pygame.display.init()
            pygame.display.set_caption(self.title)
            self._screen = pygame.display.set_mode(frame.get_size())
            self._clock = pygame.time.Clock()
        self._screen.blit(frame, (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(fps)

    def close(self) -> None:
        """Close the window, if it is open."""
        if self._screen is not None:
            _pygame().display.quit()
            self._screen = None

    def __reduce__(self) -> tuple[type[Window], tuple[str]]:
        return Window, (self.title,)


def draw_pendulum(surface: Surface, *, angle: float, length: float, effort: float) -> None:
    """Draw a rod on a hinge, and an arrow around the hinge for the torque.

    Args:
        surface: where to, all of it.
        angle: rad, 0 upright, growing counter-clockwise.
        length: m; from 1.3 m on the scale shrinks to fit the rod in.
        effort: torque as a share of its bound, in [-1, 1].
    """
    pygame = _pygame()
    size = surface.get_width()
    centre = (size / 2, size / 2)
    metre = size / (2.0 * max(1.4, 1.08 * length))
    surface.fill(_PAPER)
    pygame.draw.circle(surface, _GRID, centre, length * metre, max(1, round(0.004 * size)))
    for quarter in range(4):
        inner, outer = (_polar(centre, length * metre + shift * size, quarter * math.pi / 2) for shift in (-0.012, 0.012))
        _capsule(surface, inner, outer, 0.002 * size, _STEEL)
    tip = _polar(centre, length * metre, angle)
    _capsule(surface, centre, tip, 0.034 * size, _ROD)
    shine = [_polar(centre, share * length * metre, angle) for share in (0.1, 0.9)]
    _capsule(surface, shine[0], shine[1], 0.008 * size, _ROD_LIGHT)
    if effort:
        _turn_arrow(surface, centre, 0.105 * size, effort)
    _disc(surface, centre, 0.022 * size, _INK)
    _disc(surface, centre, 0.009 * size, _PAPER)


def draw_cartpole(
    surface: Surface, *, position: float, angle: float, pole_length: float, track_limit: float, effort: float
) -> None:
    """Draw a cart on its rail with a pole, and an arrow for the force.

    The view moves along with the cart, a little slower: the cart is mid-picture at 0, and its pole fits in at the rail's ends.

    Args:
        surface: where to, all of it.
        position: of the cart, m, growing to the right.
        angle: of the pole, rad, 0 upright, growing clockwise.
        pole_length: m; from 1.2 m on the scale shrinks to fit the pole in.
        track_limit: m, half the rail.
        effort: force as a share of its bound, in [-1, 1].
    """
    size = surface.get_width()
    metre = 0.5 * size / max(2.0, 1.7 * pole_length)
    reach = min(track_limit * metre, 0.47 * size - pole_length * metre)
    hinge = (size / 2 + reach * max(-1.2, min(1.2, position / track_limit)), 0.55 * size)
    surface.fill(_PAPER)
    _rail(surface, hinge, position, track_limit, metre)
    _cart(surface, hinge)
    if effort:
        _push_arrow(surface, hinge, effort)
    tip = _polar(hinge, pole_length * metre, -angle)
    _capsule(surface, hinge, tip, 0.02 * size, _ROD)
    _capsule(surface, hinge, _polar(hinge, 0.94 * pole_length * metre, -angle), 0.005 * size, _ROD_LIGHT)
    _disc(surface, hinge, 0.017 * size, _INK)
    _disc(surface, hinge, 0.007 * size, _PAPER)


def _rail(surface: Surface, hinge: Point, position: float, track_limit: float, metre: float) -> None:
    """The rail: a tick every half metre (unless they crowd), a mark in the middle, stops that a cart at its limit touches."""
    size = surface.get_width()
    height = hinge[1] + 0.082 * size
    middle = hinge[0] - position * metre
    left = max(-size, middle - track_limit * metre - 0.11 * size)
    right = min(2.0 * size, middle + track_limit * metre + 0.11 * size)
    gap = 0.5 * metre
    if gap > 0.01 * size:
        for tick in range(math.ceil((max(left, 0.0) - middle) / gap), math.floor((min(right, size) - middle) / gap) + 1):
            place, depth = middle + tick * gap, (0.018 if tick % 2 else 0.035) * size
            _capsule(surface, (place, height), (place, height + depth), 0.0022 * size, _STEEL)
    _capsule(surface, (left, height), (right, height), 0.006 * size, _STEEL)
    for end in (left, right):
        _capsule(surface, (end, height), (end, height - 0.07 * size), 0.009 * size, _INK)
    mark = height + 0.048 * size
    wing, foot = 0.014 * size, mark + 0.024 * size
    if 0.0 <= middle <= size:
        _polygon(surface, [(middle, mark), (middle - wing, foot), (middle + wing, foot)], _INK)


def _cart(surface: Surface, hinge: Point) -> None:
    pygame = _pygame()
    size = surface.get_width()
    body = pygame.Rect(0, 0, round(0.2 * size), round(0.1 * size))
    body.center = (round(hinge[0]), round(hinge[1]))
    pygame.draw.rect(surface, _CART, body, border_radius=round(0.022 * size))
    shine = pygame.Rect(body.left + 0.02 * size, body.top + 0.014 * size, body.width - 0.04 * size, 0.012 * size)
    pygame.draw.rect(surface, _CART_LIGHT, shine, border_radius=round(0.006 * size))
    for side in (-0.06, 0.06):
        wheel = (hinge[0] + side * size, hinge[1] + 0.053 * size)
        _disc(surface, wheel, 0.025 * size, _INK)
        _disc(surface, wheel, 0.01 * size, _STEEL)


def _push_arrow(surface: Surface, hinge: Point, effort: float) -> None:
    """An arrow in front of the cart, towards the side it is pushed to, the longer the stronger."""
    size, side = surface.get_width(), math.copysign(1.0, effort)
    start = hinge[0] + side * 0.115 * size
    end = start + effort * 0.12 * size
    head = (0.012 + 0.02 * abs(effort)) * size
    above, below = hinge[1] - head / 3.0, hinge[1] + head / 3.0
    _polygon(surface, [(start, above), (end, above), (end, below), (start, below)], _EFFORT)
    _polygon(surface, [(end, hinge[1] - head), (end + side * 1.4 * head, hinge[1]), (end, hinge[1] + head)], _EFFORT)


def _turn_arrow(surface: Surface, centre: Point, radius: float, effort: float) -> None:
    """An arrow around the centre, from the top towards the side it turns to, the longer the stronger."""
    sweep, tip = 2.4 * effort, 2.4 * effort + math.copysign(0.12 + 0.33 * abs(effort), effort)
    width = (0.05 + 0.07 * abs(effort)) * radius
    angles = [sweep * part / 40 for part in range(41)]
    outside = [_polar(centre, radius + width, angle) for angle in angles]
    inside = [_polar(centre, radius - width, angle) for angle in reversed(angles)]
    _polygon(surface, outside + inside, _EFFORT)
    _disc(surface, _polar(centre, radius, 0.0), width, _EFFORT)
    wings = [_polar(centre, radius + shift * width, sweep) for shift in (-2.8, 2.8)]
    _polygon(surface, [*wings, _polar(centre, radius, tip)], _EFFORT)


def _polar(centre: Point, radius: float, angle: float) -> Point:
    """The point at a distance from the centre, angle 0 at the top, growing counter-clockwise."""
    return centre[0] - radius * math.sin(angle), centre[1] - radius * math.cos(angle)


def _capsule(surface: Surface, start: Point, end: Point, radius: float, colour: Colour) -> None:
    """A line with round ends."""
    angle = math.atan2(end[1] - start[1], end[0] - start[0])
    right, down = -radius * math.sin(angle), radius * math.cos(angle)
    ends = ((start, 1), (end, 1), (end, -1), (start, -1))
    _polygon(surface, [(point[0] + side * right, point[1] + side * down) for point, side in ends], colour)
    _disc(surface, start, radius, colour)
    _disc(surface, end, radius, colour)


def _polygon(surface: Surface, points: list[Point], colour: Colour) -> None:
    _pygame().draw.polygon(surface, colour, [(round(x), round(y)) for x, y in points])


def _disc(surface: Surface, centre: Point, radius: float, colour: Colour) -> None:
    _pygame().draw.circle(surface, colour, (round(centre[0]), round(centre[1])), radius)


def _pygame() -> ModuleType:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError as error:
        raise gym.error.DependencyNotInstalled('Rendering needs pygame: pip install "pygame-ce".') from error
    return pygame
