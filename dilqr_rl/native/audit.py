"""Native code, held against the functions it was made from, while it is in use: a tracer of Python can't be complete.

A look is one batched call of the functions on what native code has found. There are some at the beginning, and then as many as
fit into a share of the time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

__all__ = ["ONCE", "SHARE", "Audit"]

SHARE = 0.02  # of the time that native code takes
_FIRST = frozenset((*range(1, 9), 16))  # uses that are looked at whatever it costs
ONCE = frozenset((1,))  # the same where a look takes long

Found = TypeVar("Found")


class Audit:
    """Says when to look, and keeps account of what that costs.

    Args:
        first: the uses that are looked at whatever it costs.
        share: what looks may take of the time from then on.
    """

    def __init__(self, first: frozenset[int] = _FIRST, share: float = SHARE) -> None:
        self._first, self._last_of_first, self._share = first, max(first), share
        self._uses, self._used, self._looked, self._last, self._owed = 0, 0.0, 0.0, 0.0, False

    def due(self, seconds: float, room: float = math.inf) -> bool:
        """Whether to look at what a use that took so long has found; put off where there is no room (s) for it."""
        self._uses += 1
        self._used += seconds
        self._owed |= self._uses in self._first or self._looked + self._last <= self._share * self._used
        return self._owed and self._last <= room

    def owe(self) -> None:
        """Have the next use looked at, too."""
        self._owed = True

    def look(self, check: Callable[[], Found]) -> Found:
        """What a check finds, whose time counts."""
        began = time.perf_counter()
        found = check()
        self._last, self._owed = time.perf_counter() - began, False
        if self._uses > self._last_of_first:
            self._looked += self._last
        return found
