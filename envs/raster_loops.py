"""Loops over pixels, in plain Python for `dilqr_rl.native.loops`: shapes with smooth edges, and stacks of frames.

A shape covers a pixel by clamp(1/2 - d), with d the distance of the pixel's middle from the shape's edge, in pixels, negative
inside. What is thinner than a pixel is drawn one pixel wide and paler instead. A shape with a NaN, or whose size isn't above 0,
isn't drawn. Coordinates are in pixels here, x to the right and y down; a row holds the coverage of one line of pixels.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

CAPSULE = 0  # of numbers x, y, x, y of both ends, radius
BOX = 1  # x, y of the middle, half width, half height, radius of the corners
ARC = 2  # x, y of the centre, radius, half width, direction (x, y) to its middle, cosine and sine of half its angle
TRIANGLE = 3  # x, y of each corner

_THINNEST = 0.5  # half of a pixel: the least radius or half width that is drawn in full
_SMALLEST = 1e-9  # of squared lengths and areas, against division by 0


def draw(
    background: NDArray[np.uint8],
    kinds: NDArray[np.int64],
    numbers: NDArray[np.float64],
    colours: NDArray[np.int64],
    start: int,
    stop: int,
    pixels: NDArray[np.uint8],
) -> None:
    """Draw pictures `start` to `stop`, shape over shape.

    Args:
        background: (size, size, 3), what all pictures begin with.
        kinds: (shapes,), constants above.
        numbers: (shapes, 8, count), those of each kind, as shares of the picture's side.
        colours: (shapes, 3).
        start: the first picture.
        stop: the one after the last.
        pixels: (count, size, size, 3), all of which is overwritten.
    """
    below = background.reshape(-1)
    row = np.empty(pixels.shape[1], np.float32)
    shape = np.empty(8, np.float64)
    for index in range(start, stop):
        picture, flat = pixels[index], pixels[index].reshape(-1)
        for place in range(flat.size):
            flat[place] = below[place]
        for layer in range(kinds.shape[0]):
            kind, total = kinds[layer], 0.0
            for place in range(8):
                shape[place] = numbers[layer, place, index]
                total += shape[place]
            if total != total:
                continue
            if kind == CAPSULE:
                paint_capsule(shape, colours[layer], row, picture)
            elif kind == BOX:
                paint_box(shape, colours[layer], row, picture)
            elif kind == ARC:
                paint_arc(shape, colours[layer], row, picture)
            else:
                paint_triangle(shape, colours[layer], row, picture)


def paint_capsule(
    shape: NDArray[np.float64], colour: NDArray[np.int64], row: NDArray[np.float32], picture: NDArray[np.uint8]
) -> None:
    """Draw all points at most a radius away from a line."""
    size = picture.shape[0]
    ax, ay, bx, by = shape[0] * size, shape[1] * size, shape[2] * size, shape[3] * size
    if shape[4] <= 0.0:
        return
    strength, reach = min(1.0, shape[4] * size / _THINNEST), max(shape[4] * size, _THINNEST) + 0.5
    dx, dy = bx - ax, by - ay
    square = max(dx * dx + dy * dy, _SMALLEST)
    inverse = 1.0 / square
    left, right = first_pixel(min(ax, bx) - reach, size), last_pixel(max(ax, bx) + reach, size)
    slanted = abs(dy) > 1.0
    slope, width = (dx / dy, reach * math.sqrt(square) / abs(dy)) if slanted else (0.0, 0.0)
    for line in range(first_pixel(min(ay, by) - reach, size), last_pixel(max(ay, by) + reach, size)):
        qy = line + 0.5 - ay
        first, last = left, right
        if slanted:  # then a line of pixels passes through a short piece of it
            first = max(left, first_pixel(ax + slope * qy - width, size))
            last = min(right, last_pixel(ax + slope * qy + width, size))
        for column in range(first, last):
            qx = column + 0.5 - ax
            share = min(max((qx * dx + qy * dy) * inverse, 0.0), 1.0)
            ex, ey = qx - share * dx, qy - share * dy
            row[column] = reach - math.sqrt(ex * ex + ey * ey)
        blend(picture[line], row, first, last, strength, colour)


def paint_box(
    shape: NDArray[np.float64], colour: NDArray[np.int64], row: NDArray[np.float32], picture: NDArray[np.uint8]
) -> None:
    """Draw an upright rectangle with round corners."""
    size = picture.shape[0]
    cx, cy, half_width, half_height = shape[0] * size, shape[1] * size, shape[2] * size, shape[3] * size
    if half_width <= 0.0 or half_height <= 0.0:
        return
    strength = min(1.0, half_width / _THINNEST) * min(1.0, half_height / _THINNEST)
    half_width, half_height = max(half_width, _THINNEST), max(half_height, _THINNEST)
    corner = min(max(shape[4] * size, 0.0), min(half_width, half_height))
    left, right = first_pixel(cx - half_width - 0.5, size), last_pixel(cx + half_width + 0.5, size)
    for line in range(first_pixel(cy - half_height - 0.5, size), last_pixel(cy + half_height + 0.5, size)):
        qy = abs(line + 0.5 - cy) - half_height + corner
        below = max(qy, 0.0)
        for column in range(left, right):
            qx = abs(column + 0.5 - cx) - half_width + corner
            beside = max(qx, 0.0)
            row[column] = 0.5 + corner - math.sqrt(beside * beside + below * below) - min(max(qx, qy), 0.0)
        blend(picture[line], row, left, right, strength, colour)


def paint_arc(
    shape: NDArray[np.float64], colour: NDArray[np.int64], row: NDArray[np.float32], picture: NDArray[np.uint8]
) -> None:
    """Draw all points at most a half width away from a part of a circle."""
    size = picture.shape[0]
    cx, cy, radius = shape[0] * size, shape[1] * size, shape[2] * size
    if shape[2] <= 0.0 or shape[3] <= 0.0:
        return
    strength, reach = min(1.0, shape[3] * size / _THINNEST), max(shape[3] * size, _THINNEST) + 0.5
    mx, my, cos, sin = shape[4], shape[5], shape[6], shape[7]
    outer, inner = radius + reach, max(radius - reach, 0.0)
    for line in range(first_pixel(cy - outer, size), last_pixel(cy + outer, size)):
        qy = line + 0.5 - cy
        chord, hollow = half_chord(outer, qy), half_chord(inner, qy)
        for side in range(2):  # a line of pixels passes on both sides of the middle
            first = first_pixel(cx - chord, size) if side == 0 else max(first_pixel(cx + hollow, size), last_pixel(cx, size))
            last = min(last_pixel(cx - hollow, size), last_pixel(cx, size)) if side == 0 else last_pixel(cx + chord, size)
            for column in range(first, last):
                qx = column + 0.5 - cx
                along, across = qx * mx + qy * my, abs(qx * my - qy * mx)
                to_circle = abs(math.sqrt(qx * qx + qy * qy) - radius)
                ex, ey = across - radius * sin, along - radius * cos
                to_end = math.sqrt(ex * ex + ey * ey)
                row[column] = reach - (to_circle if across * cos <= along * sin else to_end)
            blend(picture[line], row, first, last, strength, colour)


def paint_triangle(
    shape: NDArray[np.float64], colour: NDArray[np.int64], row: NDArray[np.float32], picture: NDArray[np.uint8]
) -> None:
    """Draw a triangle: the points inside of all three edges."""
    size = picture.shape[0]
    ax, ay, bx, by, cx, cy = (
        shape[0] * size,
        shape[1] * size,
        shape[2] * size,
        shape[3] * size,
        shape[4] * size,
        shape[5] * size,
    )
    area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
    if abs(area) <= _SMALLEST:
        return
    side = 1.0 if area > 0.0 else -1.0
    a = side / math.sqrt(max((bx - ax) ** 2 + (by - ay) ** 2, _SMALLEST))
    b = side / math.sqrt(max((cx - bx) ** 2 + (cy - by) ** 2, _SMALLEST))
    c = side / math.sqrt(max((ax - cx) ** 2 + (ay - cy) ** 2, _SMALLEST))
    left, right = first_pixel(min(ax, bx, cx) - 0.5, size), last_pixel(max(ax, bx, cx) + 0.5, size)
    for line in range(first_pixel(min(ay, by, cy) - 0.5, size), last_pixel(max(ay, by, cy) + 0.5, size)):
        y = line + 0.5
        for column in range(left, right):
            x = column + 0.5
            ab = a * ((bx - ax) * (y - ay) - (by - ay) * (x - ax))
            bc = b * ((cx - bx) * (y - by) - (cy - by) * (x - bx))
            ca = c * ((ax - cx) * (y - cy) - (ay - cy) * (x - cx))
            row[column] = 0.5 + min(min(ab, bc), ca)
        blend(picture[line], row, left, right, 1.0, colour)


def half_chord(radius: float, distance: float) -> float:
    """Half the chord of a circle at a distance from its centre; 0 where there is none."""
    return math.sqrt(max(radius * radius - distance * distance, 0.0))


def first_pixel(place: float, size: int) -> int:
    """The pixel at a place, or the nearest one in the picture or behind its end."""
    return math.floor(min(max(place, 0.0), float(size)))


def last_pixel(place: float, size: int) -> int:
    """The pixel behind a place; see `first_pixel`."""
    return math.ceil(min(max(place, 0.0), float(size)))


def blend(
    line: NDArray[np.uint8], row: NDArray[np.float32], first: int, last: int, strength: float, colour: NDArray[np.int64]
) -> None:
    """Lay a colour over pixels `first` to `last`, as far as they are covered."""
    red, green, blue = colour[0], colour[1], colour[2]
    for column in range(first, last):
        cover = min(row[column], 1.0) * strength
        if cover >= 1.0:
            line[column, 0], line[column, 1], line[column, 2] = red, green, blue
        elif cover > 0.0:
            weight = int(256.0 * cover + 0.5)
            line[column, 0] += ((red - line[column, 0]) * weight + 128) >> 8
            line[column, 1] += ((green - line[column, 1]) * weight + 128) >> 8
            line[column, 2] += ((blue - line[column, 2]) * weight + 128) >> 8


def push(
    stack: NDArray[np.uint8],
    frames: NDArray[np.uint8],
    fresh: NDArray[np.bool_],
    start: int,
    stop: int,
    moved: NDArray[np.uint8],
) -> None:
    """Move stacks `start` to `stop` on by a frame.

    Args:
        stack: (count, pixels, channels), the oldest frame first.
        frames: (count, pixels, 1 or 3).
        fresh: (count,), where the frame takes all places of the stack.
        start: the first stack.
        stop: the one after the last.
        moved: (count, pixels, channels), to write to.
    """
    channels, step = moved.shape[2], frames.shape[2]
    for index in range(start, stop):
        if fresh[index]:
            for pixel in range(frames.shape[1]):
                for channel in range(channels):
                    moved[index, pixel, channel] = frames[index, pixel, channel % step]
            continue
        old, flat = stack[index].reshape(-1)[step:], moved[index].reshape(-1)
        for place in range(old.size):
            flat[place] = old[place]
        new, last = frames[index], moved[index, :, channels - step :]
        if step == 1:
            for pixel in range(new.shape[0]):
                last[pixel, 0] = new[pixel, 0]
        else:
            for pixel in range(new.shape[0]):
                last[pixel, 0], last[pixel, 1], last[pixel, 2] = new[pixel, 0], new[pixel, 1], new[pixel, 2]


def luminance(frames: NDArray[np.uint8], start: int, stop: int, grey: NDArray[np.uint8]) -> None:
    """The grey values (count, pixels, 1) of frames (count, pixels, 3), by the weights of ITU-R BT.601."""
    for index in range(start, stop):
        for pixel in range(frames.shape[1]):
            red, green, blue = int(frames[index, pixel, 0]), int(frames[index, pixel, 1]), int(frames[index, pixel, 2])
            grey[index, pixel, 0] = (299 * red + 587 * green + 114 * blue + 500) // 1000
