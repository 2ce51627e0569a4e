"""Shapes against areas and inequalities from geometry, batches against their members, stacks against NumPy, and the painters."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dilqr_rl.envs import drawing as drawing_module
from dilqr_rl.envs import raster_loops, rendering
from dilqr_rl.envs.drawing import Drawing, fill_stack, push_frames

BLACK = (0, 0, 0)
Inside = Callable[[Any, Any], Any]


def segment_distance(x: Any, y: Any, start: tuple[float, float], end: tuple[float, float]) -> Any:
    dx, dy = end[0] - start[0], end[1] - start[1]
    share = (((x - start[0]) * dx + (y - start[1]) * dy) / (dx * dx + dy * dy)).clip(0.0, 1.0)
    return np.hypot(x - start[0] - share * dx, y - start[1] - share * dy)


def round_box(x: Any, y: Any) -> Any:
    beside, below = (abs(x - 0.52) - 0.25).clip(0.0), (abs(y - 0.47) - 0.1).clip(0.0)
    return np.hypot(beside, below) <= 0.05


def part_of_circle(x: Any, y: Any) -> Any:
    """From 0.7 rad by 1.9 rad, with round ends."""
    angle = np.arctan2(0.5 - x, 0.5 - y)  # 0 at the top, counter-clockwise
    ends = [(0.5 - 0.3 * math.sin(each), 0.5 - 0.3 * math.cos(each)) for each in (0.7, 2.6)]
    caps = [np.hypot(x - end[0], y - end[1]) <= 0.04 for end in ends]
    return ((abs(np.hypot(x - 0.5, y - 0.5) - 0.3) <= 0.04) & (angle >= 0.7) & (angle <= 2.6)) | caps[0] | caps[1]


def below_both_lines(x: Any, y: Any) -> Any:
    """The triangle (0.2, 0.2), (0.8, 0.3), (0.4, 0.9)."""
    return (y >= 0.2 + (x - 0.2) / 6.0) & (x >= 0.2 + (y - 0.2) * 2.0 / 7.0) & (x <= 0.8 - (y - 0.3) * 2.0 / 3.0)


# how it is drawn, which points are inside, its area
SHAPES: dict[str, tuple[str, tuple[Any, ...], Inside, float]] = {
    "disc": ("disc", ((0.47, 0.52), 0.31), lambda x, y: np.hypot(x - 0.47, y - 0.52) <= 0.31, math.pi * 0.31**2),
    "capsule": (
        "capsule",
        ((0.2, 0.3), (0.7, 0.8), 0.06),
        lambda x, y: segment_distance(x, y, (0.2, 0.3), (0.7, 0.8)) <= 0.06,
        0.12 * math.hypot(0.5, 0.5) + math.pi * 0.06**2,
    ),
    "steep capsule": (
        "capsule",
        ((0.5, 0.9), (0.47, 0.1), 0.05),
        lambda x, y: segment_distance(x, y, (0.5, 0.9), (0.47, 0.1)) <= 0.05,
        0.1 * math.hypot(0.03, 0.8) + math.pi * 0.05**2,
    ),
    "box": ("box", ((0.52, 0.47), (0.3, 0.15), 0.05), round_box, 0.6 * 0.3 - (4.0 - math.pi) * 0.05**2),
    "ring": (
        "ring",
        ((0.5, 0.5), 0.3, 0.04),
        lambda x, y: abs(np.hypot(x - 0.5, y - 0.5) - 0.3) <= 0.04,
        4.0 * math.pi * 0.3 * 0.04,
    ),
    "arc": ("arc", ((0.5, 0.5), 0.3, 0.04, 0.7, 1.9), part_of_circle, 2.0 * 0.04 * 0.3 * 1.9 + math.pi * 0.04**2),
    "backward arc": ("arc", ((0.5, 0.5), 0.3, 0.04, 2.6, -1.9), part_of_circle, 2.0 * 0.04 * 0.3 * 1.9 + math.pi * 0.04**2),
    "triangle": ("triangle", ((0.2, 0.2), (0.8, 0.3), (0.4, 0.9)), below_both_lines, 0.5 * (0.6 * 0.7 - 0.1 * 0.2)),
    "turned triangle": ("triangle", ((0.2, 0.2), (0.4, 0.9), (0.8, 0.3)), below_both_lines, 0.5 * (0.6 * 0.7 - 0.1 * 0.2)),
}
each_shape = pytest.mark.parametrize(("method", "numbers", "inside", "area"), SHAPES.values(), ids=SHAPES)
each_painter = pytest.mark.parametrize("name", ["pendulum", "cartpole", "double_cartpole", "quadrotor", "line"])


def coverage(drawing: Drawing, size: int) -> NDArray[np.float64]:
    """(count, size, size) of black shapes on white."""
    return 1.0 - drawing.pixels(size)[..., 0] / 255.0


def wild(count: int, seed: int) -> Drawing:
    """Every shape, many times, in all places and beyond, some in colour over others."""
    draw = np.random.default_rng(seed)

    def number(low: float, high: float) -> Any:
        return draw.uniform(low, high, count)

    def point() -> tuple[Any, Any]:
        return number(-0.3, 1.3), number(-0.3, 1.3)

    drawing = Drawing(count, (250, 240, 230))
    drawing.box((0.5, 0.5), (0.2, 0.4), 0.1, (10, 200, 30))  # the same in all pictures
    for _ in range(4):
        colour = tuple(int(channel) for channel in draw.integers(0, 256, 3))
        drawing.disc(point(), number(-0.05, 0.2), colour)
        drawing.capsule(point(), point(), number(-0.01, 0.05), colour)
        drawing.box(point(), (number(-0.1, 0.3), number(0.0, 0.3)), number(-0.1, 0.3), colour)
        drawing.ring(point(), number(0.0, 0.4), number(0.0, 0.02), colour)
        drawing.arc(point(), number(0.0, 0.4), number(0.0, 0.05), number(-7.0, 7.0), number(-6.0, 6.0), colour)
        drawing.triangle(point(), point(), point(), colour)
    return drawing


def arguments(name: str, count: int) -> dict[str, Any]:
    """For a painter, drawn at random."""
    draw = np.random.default_rng(5)

    def number(low: float, high: float) -> Any:
        return draw.uniform(low, high, count)

    effort = np.where(np.arange(count) % 3, number(-1.0, 1.0), 0.0)
    cart = {"position": number(-4.0, 4.0), "track_limit": number(1.0, 5.0), "effort": effort}
    return {
        "pendulum": lambda: {"angle": number(-4.0, 4.0), "length": number(0.2, 3.0), "effort": effort},
        "cartpole": lambda: {**cart, "angle": number(-4.0, 4.0), "pole_length": number(0.2, 3.0)},
        "double_cartpole": lambda: {
            **cart,
            "angles": (number(-4.0, 4.0), number(-4.0, 4.0)),
            "lengths": (number(0.2, 2.0), number(0.2, 2.0)),
        },
        "quadrotor": lambda: {
            "place_limit": 6.0,
            "position_x": number(-4.0, 4.0),
            "position_y": number(-4.0, 4.0),
            "angle": number(-4.0, 4.0),
            "arm": number(0.1, 1.0),
            "throttles": (number(-1.0, 1.0), effort),
        },
        "line": lambda: {"start": (number(0.2, 0.8), 0.5), "angle": number(-4.0, 4.0), "length": 0.4},
    }[name]()


def member(value: Any, index: int) -> Any:
    """One picture's part of an argument, as plain numbers."""
    if isinstance(value, tuple):
        return tuple(member(each, index) for each in value)
    return float(value[index]) if isinstance(value, np.ndarray) else value


def painted(name: str, count: int, arguments: dict[str, Any]) -> Drawing:
    drawing = Drawing(count)
    getattr(rendering, f"draw_{name}")(drawing, **arguments)
    return drawing


@each_shape
def test_a_shape_covers_its_area(method: str, numbers: tuple[Any, ...], inside: Inside, area: float) -> None:
    drawing = Drawing(1)
    getattr(drawing, method)(*numbers, BLACK)
    for size in (64, 300):
        assert coverage(drawing, size).sum() / size**2 == pytest.approx(area, rel=0.01)


@each_shape
def test_a_shape_covers_each_pixel_as_many_samples_say(
    method: str, numbers: tuple[Any, ...], inside: Inside, area: float
) -> None:
    size, samples = 60, 16
    drawing = Drawing(1)
    getattr(drawing, method)(*numbers, BLACK)
    y, x = (np.mgrid[: size * samples, : size * samples] + 0.5) / (size * samples)
    truth = inside(x, y).reshape(size, samples, size, samples).mean((1, 3))
    error = abs(coverage(drawing, size)[0] - truth)
    assert error.max() < 0.3  # at a corner; an edge's distance gives its coverage to 0.1
    assert error.mean() < 0.004
    assert (error[(truth == 0.0) | (truth == 1.0)] < 0.1).all()


def test_shapes_lie_over_those_before_and_several_come_at_once() -> None:
    drawing = Drawing(2, (1, 2, 3))
    drawing.box((np.array([[0.25], [0.75]]), np.array([0.25, 0.75])), (0.2, 0.2), 0.0, (200, 0, 0))
    drawing.disc((0.25, 0.25), np.array([0.1, 0.0]), (0, 0, 200))
    upper, lower = drawing.pixels(20)
    assert upper[5, 5].tolist() == [0, 0, 200]
    assert upper[5, 15].tolist() == lower[15, 5].tolist() == lower[15, 15].tolist() == [200, 0, 0]
    assert lower[5, 5].tolist() == upper[15, 15].tolist() == [1, 2, 3]


@pytest.mark.parametrize("width", [0.01, 0.1, 0.4])
@pytest.mark.parametrize("place", [0.5, 0.513, 0.55])
def test_what_is_thinner_than_a_pixel_gets_paler_and_stays(width: float, place: float) -> None:
    size, half = 20, width / 40.0
    drawings = [Drawing(1) for _ in range(3)]
    drawings[0].capsule((place, -0.5), (place, 1.5), half, BLACK)
    drawings[1].box((place, 0.5), (half, 2.0), 0.0, BLACK)
    drawings[2].arc((place - 9.0, 0.5), 9.0, half, -2.0, 0.9, BLACK)  # nearly straight, to the right of its centre
    for drawing in drawings:
        per_line = coverage(drawing, size)[0].sum(1)
        np.testing.assert_allclose(per_line, width, atol=2.0 / 255.0)  # up to 2 pixels are rounded


@each_painter
def test_a_batch_equals_its_members_bit_by_bit(name: str) -> None:
    count = 40  # more than a group
    together = arguments(name, count)
    frames = painted(name, count, together).pixels(64)
    for index in range(0, count, 7):
        alone = painted(name, 1, {key: member(value, index) for key, value in together.items()})
        np.testing.assert_array_equal(frames[index], alone.pixels(64)[0])


def test_wild_pictures_equal_their_members_and_ignore_the_number_of_threads() -> None:
    drawing = wild(100, seed=1)
    once = drawing.pixels(64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        many = drawing.pixels(64)
        stacks = push_frames(fill_stack(once, 2, False), many, False)
    finally:
        torch.set_num_threads(before)
    np.testing.assert_array_equal(once, many)
    np.testing.assert_array_equal(stacks, np.concatenate((once, many), axis=3))
    assert not np.shares_memory(once, many)


def test_interpreted_loops_draw_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing = wild(2, seed=2)
    fast = drawing.pixels(32)
    stacks = [push_frames(fill_stack(fast, 2, grey), fast[::-1], grey) for grey in (False, True)]
    monkeypatch.setattr(drawing_module, "_loops", lambda: raster_loops)
    slow = drawing.pixels(32)
    assert abs(fast.astype(int) - slow).max() <= 1  # the compiler may join a product and a sum
    assert (fast != slow).mean() < 0.01
    for grey, stack in enumerate(stacks):
        np.testing.assert_array_equal(push_frames(fill_stack(fast, 2, bool(grey)), fast[::-1], bool(grey)), stack)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300, -1e300, 1e5])
@each_shape
def test_odd_numbers_do_no_harm(method: str, numbers: tuple[Any, ...], inside: Inside, area: float, bad: float) -> None:
    flat = [part for each in numbers for part in (each if isinstance(each, tuple) else (each,))]
    for place in range(len(flat)):
        values = iter([*flat[:place], np.array([flat[place], bad, flat[place]]), *flat[place + 1 :]])
        drawing = Drawing(3)
        given = [(next(values), next(values)) if isinstance(each, tuple) else next(values) for each in numbers]
        getattr(drawing, method)(*given, BLACK)
        first, odd, last = drawing.pixels(24)
        np.testing.assert_array_equal(first, last)  # nothing was written into the neighbours
        if math.isnan(bad):
            assert (odd == 255).all()


def test_loops_write_into_their_own_pictures_only() -> None:
    drawing = wild(5, seed=3)
    numbers = 3.0 * (drawing._table() - 0.5)
    kinds, colours = np.array(drawing._kinds), np.array(drawing._colours)
    for loops in (drawing_module._loops(), raster_loops):
        frames = np.full((5, 16, 16, 3), 77, np.uint8)
        loops.draw(np.zeros((16, 16, 3), np.uint8), kinds, numbers, colours, 1, 4, frames)
        assert (frames[[0, 4]] == 77).all()
        assert (frames[1:4] != 77).any()


def test_a_drawing_may_be_empty() -> None:
    assert (Drawing(2, (9, 8, 7)).pixels(3) == (9, 8, 7)).all()
    assert wild(0, seed=0).pixels(3).shape == (0, 3, 3, 3)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("depth", [1, 2, 4])
def test_stacks_hold_the_last_frames_the_oldest_first(grey: bool, depth: int) -> None:
    films = np.random.default_rng(0).integers(0, 256, (depth + 2, 3, 5, 5, 3), dtype=np.uint8)
    shades = films
    if grey:
        shades = np.rint(films @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)[..., None]
    stack = fill_stack(films[0], depth, grey)
    np.testing.assert_array_equal(stack, np.concatenate([shades[0]] * depth, axis=3))
    for film in films[1:]:
        before, kept = stack, stack.copy()
        stack = push_frames(stack, film, grey)
        assert not np.shares_memory(stack, before)
        np.testing.assert_array_equal(before, kept)
    np.testing.assert_array_equal(stack, np.concatenate(list(shades[-depth:]), axis=3))
    mixed = push_frames(stack, films[0], grey, np.array([False, True, False]))
    np.testing.assert_array_equal(mixed[[0, 2]], push_frames(stack, films[0], grey)[[0, 2]])
    np.testing.assert_array_equal(mixed[1], fill_stack(films[0], depth, grey)[1])


def test_stacks_that_do_not_fit_are_refused() -> None:
    frames = np.zeros((2, 5, 5, 3), np.uint8)
    for stack in (np.zeros((2, 5, 5, 4), np.uint8), np.zeros((3, 5, 5, 6), np.uint8), np.zeros((2, 5, 6, 6), np.uint8)):
        with pytest.raises(ValueError, match=r"stack: expected \(N, S, S, K\) with K divisible by 3, .* got \(., 5, ., .\)"):
            push_frames(stack, frames, grey=False)


def where(frames: NDArray[np.uint8], colour: tuple[int, int, int], within: int = 40) -> list[tuple[float, float]]:
    """The middle (x, y) of a colour in each frame, as shares of its side."""
    middles = []
    for frame in frames:
        rows, columns = np.nonzero((abs(frame.astype(int) - colour) < within).all(-1))
        middles.append(((columns.mean() + 0.5) / len(frame), (rows.mean() + 0.5) / len(frame)))
    return middles


def test_the_arrow_of_the_effort_is_left_out_at_rest() -> None:
    effort = np.array([0.0, 1e-6, -0.5])
    cart = {"position": 0.0, "track_limit": 5.0, "effort": effort}
    for name, given in {
        "pendulum": {"angle": 1.0, "length": 1.0, "effort": effort},
        "cartpole": {**cart, "angle": 1.0, "pole_length": 1.0},
        "double_cartpole": {**cart, "angles": (1.0, 0.0), "lengths": (0.5, 0.5)},
        "quadrotor": {
            "place_limit": 6.0,
            "position_x": 0.0,
            "position_y": 0.0,
            "angle": 0.0,
            "arm": 0.3,
            "throttles": (2.0 * abs(effort) - 1.0, -1.0),
        },
    }.items():
        frames = painted(name, 3, given).pixels(500).astype(int)
        orange = (frames[..., 0] > 200) & (frames[..., 1] - frames[..., 2] > 60)
        assert not orange[0].any()
        assert 0 < orange[1].sum() < orange[2].sum()


def test_poles_and_quadrotors_are_where_their_states_say() -> None:
    turned = np.array([0.0, math.pi / 2.0, 2.5])
    frames = painted(
        "double_cartpole",
        3,
        {"position": 0.0, "angles": (turned, 0.0 * turned), "lengths": (0.6, 0.6), "track_limit": 5.0, "effort": 0.0},
    ).pixels(500)
    pole = 0.6 * 0.5 / (1.7 * 1.2)  # with the scale of poles 1.2 m long in all
    for angle, frame in zip(turned, frames, strict=True):  # the upper pole stands upright on the lower one's tip
        rows, columns = np.nonzero((abs(frame.astype(int) - (38, 144, 130)) < 40).all(-1))
        assert columns.mean() / 500 == pytest.approx(0.5 + pole * math.sin(angle), abs=0.006)
        assert rows.min() / 500 == pytest.approx(0.55 - pole * math.cos(angle) - pole - 0.017, abs=0.006)  # 3 pixels
    x, y = np.array([-2.0, 0.0, 2.5]), np.array([1.0, -2.0, 0.0])
    flight = {"position_x": x, "position_y": y, "arm": 0.3, "throttles": (-1.0, -1.0), "place_limit": 6.0}
    frames = painted("quadrotor", 3, {**flight, "angle": turned}).pixels(500)
    for index, (blue, red) in enumerate(zip(where(frames, (58, 96, 150)), where(frames, (214, 84, 72)), strict=True)):
        assert blue == pytest.approx((0.5 + x[index] * 0.47 / 6.0, 0.5 - y[index] * 0.47 / 6.0), abs=0.01)
        up = (math.sin(turned[index]), -math.cos(turned[index]))  # rotors are above the body
        assert np.subtract(red, blue) == pytest.approx(np.multiply(0.03, up), abs=0.015)


def test_a_line_is_black_on_white_from_its_start() -> None:
    frame = painted("line", 1, {"start": (0.5, 0.5), "angle": math.pi / 2.0, "length": 0.4}).pixels(224)[0]
    assert (frame[..., 0] == frame[..., 2]).all()
    assert frame[0, 0].tolist() == [255, 255, 255]
    rows, columns = np.nonzero(frame[..., 0] < 128)
    assert columns.min() == pytest.approx(22, abs=4)  # angles grow counter-clockwise, to the left
    assert columns.max() == pytest.approx(112, abs=4)
    assert abs(rows - 111.5).max() < 4
