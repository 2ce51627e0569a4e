"""A monotonic clock that machine code can read: a C function that takes what POSIX's clock_gettime takes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["Clock", "clock"]


@dataclass(frozen=True)
class Clock:
    """The clock.

    Attributes:
        address: of int function(int which, int64 *seconds_and_nanoseconds).
        which: its first argument.
        read: the same time in Python, in seconds.
        function: what the address belongs to, kept alive.
    """

    address: int
    which: int
    read: Callable[[], float]
    function: Any


@lru_cache(maxsize=1)
def clock() -> Clock:
    """The C library's where there is one; else Python's, for which machine code waits until no other thread holds Python."""
    try:
        return _clock(ctypes.CDLL(None).clock_gettime, time.CLOCK_MONOTONIC, lambda: time.clock_gettime(time.CLOCK_MONOTONIC))
    except (AttributeError, OSError, TypeError):  # Windows
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int64))
        return _clock(kind(_write), 0, time.monotonic)


def _clock(function: Any, which: int, read: Callable[[], float]) -> Clock:
    return Clock(ctypes.cast(function, ctypes.c_void_p).value or 0, which, read, function)


def _write(which: int, reading: Any) -> int:
    reading[0], reading[1] = divmod(time.monotonic_ns(), 1_000_000_000)
    return 0
