"""The checks at the door: numbers, vectors and states."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dilqr_rl.checks import number, shown

__all__ = ["check_integer", "check_number", "check_one_of", "read_limits", "read_state", "read_vector"]

_CIRCLE_TOLERANCE = 1e-3  # what float32 or a few printed digits leave of a unit radius
_LARGEST = float(np.finfo(np.float32).max)
_ROUNDING = 1e-12  # below this a radius is 1, and the bits of its cosine and sine are kept


def check_number(name: str, value: Any, *, above: float | None = None, at_least: float | None = None) -> float:
    """The value as a float, if it is a finite number in the range that is asked for.

    Raises:
        ValueError: it isn't.
    """
    expected = "a finite number"
    if above is not None:
        expected += f" above {above:g}"
    if at_least is not None:
        expected += f" of at least {at_least:g}"

    def fits(found: float) -> bool:
        return math.isfinite(found) and (above is None or found > above) and (at_least is None or found >= at_least)

    try:
        return float(number(name, value, expected, fits))
    except ValueError as error:
        raise ValueError(f"{error} Correct {name}, or leave it out for its default.") from None


def read_vector(name: str, values: Any, size: int) -> NDArray[np.float64]:
    """The values as a vector (size,) of finite numbers, which may share memory with them.

    Raises:
        ValueError: they are none.
    """
    try:
        vector = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        vector = np.empty(0)
    if vector.shape != (size,) or not np.isfinite(vector).all():
        raise ValueError(f"{name}: expected an array of shape ({size},) that holds finite numbers, got {shown(values)}.")
    return vector


def read_limits(name: str, values: Any, size: int) -> NDArray[np.float64]:
    """The values as a new vector (size,) of numbers above 0 that float32 can hold.

    Raises:
        ValueError: they are none.
    """
    limits = read_vector(name, values, size).copy()
    if (limits <= 0.0).any() or (limits > _LARGEST).any():
        raise ValueError(f"{name}: expected numbers above 0 and up to {_LARGEST:g}, got {shown(values)}.")
    return limits


def read_state(name: str, values: Any, limit: NDArray[np.float64], cosines: tuple[int, ...]) -> NDArray[np.float64]:
    """The values as a new state (n,), with its angles moved onto the unit circle.

    Args:
        name: what to call them in an error.
        values: n numbers.
        limit: (n,), the largest absolute values.
        cosines: where the cosine of each angle stands; its sine follows it.

    Raises:
        ValueError: a wrong shape, a number that isn't finite, an angle off the circle, or a value beyond its limit.
    """
    state = read_vector(name, values, limit.size).copy()
    for index in cosines:
        radius = math.hypot(state[index], state[index + 1])
        if abs(radius - 1.0) > _CIRCLE_TOLERANCE:
            raise ValueError(
                f"{name}: expected a cosine and a sine at places {index} and {index + 1}, on the unit circle within "
                f"{_CIRCLE_TOLERANCE:g}, got {state[index]:g} and {state[index + 1]:g}, at radius {radius:g}."
            )
        if abs(radius - 1.0) > _ROUNDING:
            state[index : index + 2] /= radius
    if (np.abs(state) > limit + 2 * _ROUNDING).any():
        raise ValueError(f"{name}: expected absolute values of at most {limit.tolist()}, got {shown(values)}.")
    return state


def check_integer(name: str, value: Any, least: int, most: int) -> int:
    """The value, if it is an integer in the range that is asked for.

    Raises:
        ValueError: it isn't.
    """
    number = int(value) if isinstance(value, Integral) and not isinstance(value, bool) else least - 1
    if not least <= number <= most:
        raise ValueError(f"{name}: expected an integer from {least} to {most}, got {shown(value)}.")
    return number


def check_one_of(name: str, value: Any, accepted: tuple[Any, ...]) -> Any:
    """The value, if it is one of those accepted.

    Raises:
        ValueError: it isn't.
    """
    if value not in accepted:
        raise ValueError(f"{name}: expected one of {accepted}, got {value!r}.")
    return value
