"""Pictures of the systems: one function per system that puts shapes on a `Drawing`, for a whole batch of states at once.

Arguments that are numbers may be arrays (count,) too, one number per picture. Lengths in pictures are shares of their side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dilqr_rl.envs.drawing import Colour, Drawing, Numbers, Point

__all__ = [
    "FRAME_SIZE",
    "LINE_LENGTH",
    "draw_cartpole",
    "draw_double_cartpole",
    "draw_line",
    "draw_pendulum",
    "draw_quadrotor",
]

FRAME_SIZE = 500
LINE_LENGTH = 0.4  # of a pendulum in the style of `draw_line`
_TICKS = 17  # as many as the picture can hold, 1/16 of its side apart

_PAPER: Colour = (250, 250, 252)
_GRID: Colour = (229, 232, 239)
_STEEL: Colour = (148, 158, 176)
_INK: Colour = (44, 54, 74)
_ROD: Colour = (214, 84, 72)
_ROD_LIGHT: Colour = (238, 140, 122)
_SECOND: Colour = (38, 144, 130)
_SECOND_LIGHT: Colour = (122, 202, 186)
_CART: Colour = (58, 96, 150)
_CART_LIGHT: Colour = (104, 146, 204)
_EFFORT: Colour = (240, 160, 40)
_BLACK: Colour = (0, 0, 0)
_WHITE: Colour = (255, 255, 255)


def draw_pendulum(drawing: Drawing, *, angle: Numbers, length: Numbers, effort: Numbers) -> None:
    """Draw a rod on a hinge, and an arrow around the hinge for the torque.

    Args:
        drawing: where to, all of it.
        angle: rad, 0 upright, growing counter-clockwise.
        length: m; from 1.3 m on the scale shrinks to fit the rod in.
        effort: torque as a share of its bound, in [-1, 1].
    """
    drawing.background = _PAPER
    centre, reach = (0.5, 0.5), 0.5 * length / np.maximum(1.4, 1.08 * length)
    drawing.ring(centre, reach, 0.002, _GRID)
    for quarter in range(4):
        inner, outer = (_polar(centre, reach + shift, quarter * math.pi / 2) for shift in (-0.012, 0.012))
        drawing.capsule(inner, outer, 0.002, _STEEL)
    drawing.capsule(centre, _polar(centre, reach, angle), 0.034, _ROD)
    drawing.capsule(_polar(centre, 0.1 * reach, angle), _polar(centre, 0.9 * reach, angle), 0.008, _ROD_LIGHT)
    _turn_arrow(drawing, centre, 0.105, effort)
    _hinge(drawing, centre, 0.022)


def draw_cartpole(
    drawing: Drawing, *, position: Numbers, angle: Numbers, pole_length: Numbers, track_limit: Numbers, effort: Numbers
) -> None:
    """Draw a cart on its rail with a pole, and an arrow for the force.

    The view moves along with the cart, a little slower: the cart is mid-picture at 0, and its pole fits in at the rail's ends.

    Args:
        drawing: where to, all of it.
        position: of the cart, m, growing to the right.
        angle: of the pole, rad, 0 upright, growing clockwise.
        pole_length: m; from 1.2 m on the scale shrinks to fit the pole in.
        track_limit: m, half the rail.
        effort: force as a share of its bound, in [-1, 1].
    """
    view = _cart_view(position, pole_length, track_limit)
    _cart_on_rail(drawing, view, effort)
    _pole(drawing, view.hinge, _polar(view.hinge, pole_length * view.metre, -angle), (0.02, _ROD, _ROD_LIGHT))


def draw_double_cartpole(
    drawing: Drawing, *, position: Numbers, angles: Point, lengths: Point, track_limit: Numbers, effort: Numbers
) -> None:
    """Draw a cart on its rail with a pole that carries another one, and an arrow for the force; see `draw_cartpole`.

    Args:
        drawing: where to, all of it.
        position: of the cart, m, growing to the right.
        angles: of the lower and the upper pole, rad, each 0 upright, growing clockwise.
        lengths: of the lower and the upper pole, m; from 1.2 m in all on the scale shrinks to fit them in.
        track_limit: m, half the rail.
        effort: force as a share of its bound, in [-1, 1].
    """
    view = _cart_view(position, lengths[0] + lengths[1], track_limit)
    _cart_on_rail(drawing, view, effort)
    joint = _polar(view.hinge, lengths[0] * view.metre, -angles[0])
    _pole(drawing, joint, _polar(joint, lengths[1] * view.metre, -angles[1]), (0.017, _SECOND, _SECOND_LIGHT))
    _pole(drawing, view.hinge, joint, (0.02, _ROD, _ROD_LIGHT))
    _hinge(drawing, joint, 0.014)


def draw_quadrotor(
    drawing: Drawing,
    *,
    position_x: Numbers,
    position_y: Numbers,
    angle: Numbers,
    arm: Numbers,
    throttles: Point,
    place_limit: float,
) -> None:
    """Draw a quadrotor from the side, an arrow for each rotor's thrust, and a cross at the origin.

    Lines are a metre apart; 2, 4, 8 ... where the view is wider than 8 m to a side.

    Args:
        drawing: where to, all of it.
        position_x: m, growing to the right.
        position_y: m, growing upwards.
        angle: rad, 0 upright, growing clockwise.
        arm: m, from the middle to each rotor; all of the body is larger than to scale, so that it can be seen.
        throttles: of the left and the right rotor, in [-1, 1], from no thrust to full thrust.
        place_limit: m, where the view ends, on every side of the origin; who flies on stays at its edge.
    """
    drawing.background = _PAPER
    metre = 0.47 / place_limit
    gap = metre * 2.0 ** max(0.0, math.ceil(math.log2(place_limit / 8.0)))
    lines = 0.5 + gap * np.arange(-8.0, 9.0)[:, None]
    drawing.capsule((lines, -0.1), (lines, 1.1), 0.001, _GRID)
    drawing.capsule((-0.1, lines), (1.1, lines), 0.001, _GRID)
    drawing.capsule((0.46, 0.5), (0.54, 0.5), 0.005, _STEEL)
    drawing.capsule((0.5, 0.46), (0.5, 0.54), 0.005, _STEEL)
    centre = (0.5 + np.clip(position_x * metre, -0.5, 0.5), 0.5 - np.clip(position_y * metre, -0.5, 0.5))
    reach = np.minimum(0.06 + arm * metre, 0.2)
    body = _Body(centre, np.sin(angle), np.cos(angle))
    for side, throttle in zip((-reach, reach), throttles, strict=True):
        _thrust_arrow(drawing, body, side, 0.5 + 0.5 * throttle)
    _airframe(drawing, body, reach)


def draw_line(drawing: Drawing, *, start: Point, angle: Numbers, length: Numbers) -> None:
    """Draw one black line on white, as published experiments with pictures do.

    Args:
        drawing: where to, all of it.
        start: one end of the line; for a pendulum the middle of the picture.
        angle: rad, 0 upright, growing counter-clockwise.
        length: of the line.
    """
    drawing.background = _WHITE
    drawing.capsule(start, _polar(start, length, angle), 0.012, _BLACK)


@dataclass(frozen=True)
class _CartView:
    """Where things on a rail are seen: the hinge, the rail's middle (x), ends (x) and height (y), and the length of a metre."""

    hinge: Point
    middle: Numbers
    left: Numbers
    right: Numbers
    height: float
    metre: Numbers


@dataclass(frozen=True)
class _Body:
    """A body's place, with the sine and the cosine of its angle, 0 upright, growing clockwise."""

    centre: Point
    sin: Numbers
    cos: Numbers

    def point(self, right: Numbers, up: Numbers) -> Point:
        """Where a point of the body is, from how far it is to the right of its centre and above it while upright."""
        return (
            self.centre[0] + right * self.cos + up * self.sin,
            self.centre[1] + right * self.sin - up * self.cos,
        )


def _cart_view(position: Numbers, pole_length: Numbers, track_limit: Numbers) -> _CartView:
    metre = 0.5 / np.maximum(2.0, 1.7 * pole_length)
    reach = np.minimum(track_limit * metre, 0.47 - pole_length * metre)
    hinge = (0.5 + reach * np.clip(position / track_limit, -1.2, 1.2), 0.55)
    middle, half = hinge[0] - position * metre, track_limit * metre + 0.11
    left, right = np.maximum(-1.0, middle - half), np.minimum(2.0, middle + half)
    return _CartView(hinge, middle, left, right, hinge[1] + 0.082, metre)


def _cart_on_rail(drawing: Drawing, view: _CartView, effort: Numbers) -> None:
    drawing.background = _PAPER
    _rail(drawing, view)
    _cart(drawing, view.hinge)
    _push_arrow(drawing, view.hinge, effort)


def _rail(drawing: Drawing, view: _CartView) -> None:
    """The rail: ticks each half metre (1, 2, 4 ... where they crowd), a mark mid-rail, stops that a cart at its end touches."""
    gap = 0.5 * view.metre * 2.0 ** np.maximum(0.0, np.ceil(-np.log2(0.5 * view.metre * (_TICKS - 1))))
    ticks = np.ceil((np.maximum(view.left, 0.0) - view.middle) / gap) + np.arange(_TICKS)[:, None]
    places, height = view.middle + ticks * gap, view.height
    width = np.where(places <= np.minimum(view.right, 1.0), 0.0022, 0.0)
    drawing.capsule((places, height), (places, height + np.where(ticks % 2, 0.018, 0.035)), width, _STEEL)
    drawing.capsule((view.left, height), (view.right, height), 0.006, _STEEL)
    for end in (view.left, view.right):
        drawing.capsule((end, height), (end, height - 0.07), 0.009, _INK)
    wings = [(view.middle + side * 0.014, height + 0.072) for side in (-1.0, 1.0)]
    drawing.triangle((view.middle, height + 0.048), wings[0], wings[1], _INK)


def _cart(drawing: Drawing, hinge: Point) -> None:
    x, y = hinge
    drawing.box(hinge, (0.1, 0.05), 0.022, _CART)
    drawing.box((x, y - 0.03), (0.08, 0.006), 0.006, _CART_LIGHT)
    for side in (-0.06, 0.06):
        drawing.disc((x + side, y + 0.053), 0.025, _INK)
        drawing.disc((x + side, y + 0.053), 0.01, _STEEL)


def _pole(drawing: Drawing, foot: Point, tip: Point, look: tuple[float, Colour, Colour]) -> None:
    """A pole with a hinge at its foot; its look is its radius, its colour and that of its shine."""
    radius, colour, light = look
    shine = (foot[0] + 0.94 * (tip[0] - foot[0]), foot[1] + 0.94 * (tip[1] - foot[1]))
    drawing.capsule(foot, tip, radius, colour)
    drawing.capsule(foot, shine, 0.25 * radius, light)
    _hinge(drawing, foot, 0.85 * radius)


def _hinge(drawing: Drawing, centre: Point, radius: float) -> None:
    drawing.disc(centre, radius, _INK)
    drawing.disc(centre, 0.41 * radius, _PAPER)


def _airframe(drawing: Drawing, body: _Body, reach: Numbers) -> None:
    """A body on two feet, two arms, and rotors above their ends."""
    drawing.capsule(body.point(-reach, 0.0), body.point(reach, 0.0), 0.011, _INK)
    for side in (-1.0, 1.0):
        drawing.capsule(body.point(side * 0.02, -0.01), body.point(side * 0.036, -0.047), 0.006, _STEEL)
        drawing.capsule(body.point(side * reach, 0.0), body.point(side * reach, 0.028), 0.009, _INK)
        blades = [body.point(side * reach + end, 0.03) for end in (-0.04, 0.04)]
        drawing.capsule(blades[0], blades[1], 0.0085, _ROD)
    drawing.capsule(body.point(-0.022, 0.0), body.point(0.022, 0.0), 0.03, _CART)
    drawing.capsule(body.point(-0.02, 0.014), body.point(0.02, 0.014), 0.006, _CART_LIGHT)


def _thrust_arrow(drawing: Drawing, body: _Body, side: Numbers, share: Numbers) -> None:
    """An arrow above a rotor, the longer the stronger it pushes."""
    shown = np.greater(share, 0.0)
    end = 0.055 + 0.1 * share
    wing = np.where(shown, 0.012 + 0.012 * share, 0.0)
    drawing.capsule(body.point(side, 0.045), body.point(side, end), np.where(shown, 0.009, 0.0), _EFFORT)
    drawing.triangle(body.point(side - wing, end), body.point(side, end + 1.5 * wing), body.point(side + wing, end), _EFFORT)


def _push_arrow(drawing: Drawing, hinge: Point, effort: Numbers) -> None:
    """An arrow in front of the cart, towards the side it is pushed to, the longer the stronger."""
    side, strength = np.sign(effort), np.abs(effort)
    start = hinge[0] + side * 0.115
    end = start + effort * 0.12
    head = np.where(strength > 0.0, 0.012 + 0.02 * strength, 0.0)
    drawing.box((0.5 * (start + end), hinge[1]), (0.06 * strength, head / 3.0), 0.0, _EFFORT)
    drawing.triangle((end, hinge[1] - head), (end + side * 1.4 * head, hinge[1]), (end, hinge[1] + head), _EFFORT)


def _turn_arrow(drawing: Drawing, centre: Point, radius: float, effort: Numbers) -> None:
    """An arrow around the centre, from the top towards the side it turns to, the longer the stronger."""
    strength, sweep = np.abs(effort), np.multiply(2.4, effort)
    width = np.where(strength > 0.0, (0.05 + 0.07 * strength) * radius, 0.0)
    drawing.arc(centre, radius, width, 0.0, sweep, _EFFORT)
    inner, outer = (_polar(centre, radius + shift * width, sweep) for shift in (-2.8, 2.8))
    drawing.triangle(inner, outer, _polar(centre, radius, sweep + np.sign(effort) * (0.12 + 0.33 * strength)), _EFFORT)


def _polar(centre: Point, radius: Numbers, angle: Numbers) -> Point:
    """The point at a distance from the centre, angle 0 at the top, growing counter-clockwise."""
    return centre[0] - radius * np.sin(angle), centre[1] - radius * np.cos(angle)
