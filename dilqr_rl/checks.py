"""Numbers at the door: Python's own, and those of NumPy and others that are as good."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["LARGEST", "MOST", "number", "plain", "real_tensor", "shown", "whole"]

MOST = 10**9  # of what takes time or memory: iterations, steps of a plan, widths of layers
LARGEST = 2**63 - 1  # what torch and NumPy count with, and seed with
_LONGEST = 200  # characters of a value that is told


def whole(name: str, value: Any, expected: str = "a positive integer", least: int = 1, most: int = LARGEST) -> int:
    """The value as Python's integer.

    Args:
        name: of the argument, for the error.
        value: an integer of Python, of NumPy or in a tensor without dimensions; a bool is none.
        expected: what to say where it isn't one from `least` on.
        least: the smallest that is accepted.
        most: the largest.

    Raises:
        ValueError: it is none, or out of its range.
    """
    if type(value) is int and least <= value <= most:  # at once so of nearly all
        return value
    held = _item(value)
    found = int(held) if isinstance(held, Integral) and not isinstance(held, bool) else least - 1
    if found < least:
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}.")
    if found > most:
        raise ValueError(f"{name}: expected at most {most}, got {shown(value)}.")
    return found


def number(name: str, value: Any, expected: str, fits: Callable[[float], bool] = math.isfinite) -> float:
    """The value as Python's number: a float, or the integer of up to 64 bits that it was.

    Args:
        name: of the argument, for the error.
        value: a real number of Python, of NumPy or in a tensor without dimensions; a bool is none.
        expected: what to say where it isn't one that fits.
        fits: whether it is in its range, where NaN must not be.

    Raises:
        ValueError: it is none, or out of its range, or beyond all floats.
    """
    if type(value) is float and fits(value):  # at once so of nearly all; NaN fits nowhere
        return value
    held, real = _item(value), math.nan
    with suppress(OverflowError):
        real = float(held) if isinstance(held, Real) and not isinstance(held, bool) else math.nan
    if not fits(real):
        raise ValueError(f"{name}: expected {expected}, got {shown(value)}.")
    return held if type(held) is int and abs(held) <= LARGEST else real


def real_tensor(name: str, values: Any, expected: str) -> Tensor:
    """The values as a floating-point tensor: one that is given as it is, all else in float64, as a copy.

    Raises:
        ValueError: bools, complex numbers, numbers beyond all floats, or no numbers at all.
    """
    if isinstance(values, Tensor):
        if values.is_floating_point():
            return values
        if not values.is_complex() and values.dtype != torch.bool:
            return values.to(torch.float64)
    else:
        with suppress(TypeError, ValueError, OverflowError, RuntimeError):
            array = np.asarray(values)
            if array.dtype.kind in "iufO":  # O: integers beyond 64 bits, fractions
                return torch.from_numpy(array.astype(np.float64))  # on the CPU, whatever the default device is
    raise ValueError(f"{name}: expected {expected}, got {shown(values)}.")


def plain(value: Any) -> Any:
    """The value as a file can hold it: its numbers as Python's, wherever they stand in lists, tuples and dictionaries."""
    if isinstance(value, Mapping):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    value = _item(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, int | float) else value


def shown(value: Any) -> str:
    """A value as an error tells it."""
    if isinstance(value, int) and value.bit_length() > _LONGEST:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of thousands of digits, wherever it stands
        text = f"a {type(value).__name__} of huge numbers"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _item(value: Any) -> Any:
    """What NumPy's and torch's numbers hold, unless a gradient would be lost; anything else as it is."""
    if isinstance(value, np.generic | np.ndarray | Tensor) and value.ndim == 0 and not getattr(value, "requires_grad", False):
        return value.item()
    return value
