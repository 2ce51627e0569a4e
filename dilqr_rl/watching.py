"""What watches a solve from outside: a record of its iterations, and the time."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from dilqr_rl.solution import History

__all__ = ["Deadline", "Recorder"]


class Recorder:
    """Keeps what happened in each iteration to B problems, if it is to."""

    def __init__(self, batch_size: int, recording: bool) -> None:
        self._size, self._recording = batch_size, recording
        self._columns: list[list[Tensor]] = []

    def add(self, index: Tensor, reached: tuple[Tensor, Tensor], step: tuple[Tensor, Tensor, Tensor] | None) -> None:
        """Note K problems, (K,) each.

        Args:
            index: their places in the batch.
            reached: cost and residual.
            step: length, damping and share of the curvature of the step that led there; None at the start.
        """
        if not self._recording:
            return
        nothing = torch.full_like(reached[0], torch.nan)
        column = nothing.new_full((5, self._size), torch.nan)
        column[:, index] = torch.stack([*reached, *(step or (nothing, nothing, nothing))])
        self._columns.append(list(column))

    def history(self) -> History | None:
        """All of it."""
        if not self._recording:
            return None
        return History(*(torch.stack(parts, dim=1) for parts in zip(*self._columns, strict=True)))


class Deadline:
    """Tells when a time budget (seconds, None for none) is about to be over."""

    def __init__(self, seconds: float | None) -> None:
        self._last = time.monotonic()
        self._end = None if seconds is None else self._last + seconds

    def is_near(self) -> bool:
        """Whether another iteration, as long as the last one, and the end would take too long; to be asked after each."""
        if self._end is None:
            return False
        now = time.monotonic()
        last, self._last = now - self._last, now
        return now + 1.5 * last > self._end
