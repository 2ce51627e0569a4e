"""Native code, held against the functions it was made from, while it is in use: a tracer of Python can't be complete.

A look is one batched call of the functions on what native code has found. There are some at the beginning, and then as many as
fit into a share of the time.
"""

from __future__ import annotations

import math
import time

__all__ = ["Audit"]

_SHARE = 0.02  # of the time that native code takes
_FIRST = frozenset((*range(1, 9), 16))  # uses that are looked at whatever it costs


class Audit:
    """Says when to look, and keeps account of what that costs."""

    def __init__(self) -> None:
        self._uses, self._used, self._looked, self._last, self._owed = 0, 0.0, 0.0, 0.0, False

    def due(self, seconds: float, room: float = math.inf) -> bool:
        """Whether to look at what a use that took so long has found; put off where there is no room (s) for it."""
        self._uses += 1
        self._used += seconds
        self._owed |= self._uses in _FIRST or self._looked + self._last <= _SHARE * self._used
        return self._owed and self._last <= room

    def spent(self, began: float) -> None:
        """Count a look that began at `time.perf_counter()`."""
        self._last, self._owed = time.perf_counter() - began, False
        if self._uses > max(_FIRST):
            self._looked += self._last
