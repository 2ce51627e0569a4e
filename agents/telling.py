"""What a person must know of plans that are acted by, in the log: aloud the first time, at level INFO from then on."""

from __future__ import annotations

import logging

from dilqr_rl.solution import Solution, Status

__all__ = ["Teller"]

_IN_A_ROW = 3  # calls without an iteration that are no accident: the first one of a process loads or compiles native code
_log = logging.getLogger("dilqr_rl")


class Teller:
    """Of the plans of one policy or learner."""

    def __init__(self) -> None:
        self._said: set[str] = set()
        self._idle_calls = 0

    def not_finite(self, solution: Solution) -> None:
        """Plans (B, ...) that aren't finite, for which the middle of the bounds stands in."""
        count = int((solution.status == Status.NONFINITE).sum())
        text = "%d of %d plans aren't finite: the middle of the bounds is in their place"
        self._say(text, count, len(solution.status))

    def without_time(self, solution: Solution, max_seconds: float | None) -> None:
        """Plans (B, ...), if a time budget has ended all of them before their first iteration, and again and again."""
        idle = max_seconds is not None and not solution.num_iterations.any()
        idle = idle and bool((solution.status == Status.TIME_LIMIT).all())
        self._idle_calls = self._idle_calls + 1 if idle else 0
        if self._idle_calls == _IN_A_ROW:
            text = (
                "max_seconds=%g is too short for a single iteration with %d problems (%d calls in a row): nothing is planned, "
                "actions are those of the cheapest start. Give more time, a smaller batch, fewer starts or a shorter horizon"
            )
            self._say(text, max_seconds, len(solution.status), _IN_A_ROW)

    def _say(self, text: str, *numbers: object) -> None:
        _log.log(logging.INFO if text in self._said else logging.WARNING, text, *numbers)
        self._said.add(text)
