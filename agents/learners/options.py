"""Settings of a fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from dilqr_rl.checks import number, whole

__all__ = ["Damping", "FitOptions", "OptimizerName"]

OptimizerName = Literal["lm", "adam", "rmsprop"]


@dataclass(frozen=True)
class Damping:
    """How Levenberg-Marquardt keeps its steps short.

    Attributes:
        start: first weight of the damping, relative to the diagonal of J^T J.
        factor: by which the weight falls after a step that lowers the loss, and rises after one that doesn't.
        attempts: steps tried in a row before the fit ends.
        longest_step: of any parameter as it is optimised; physics and weights are optimised as logarithms, so that 1 is a
            factor of e.

    Raises:
        ValueError: a value is out of its range.
    """

    start: float = 1e-3
    factor: float = 4.0
    attempts: int = 12
    longest_step: float = 1.0

    def __post_init__(self) -> None:
        _above(self, "start", 0.0, "damping.")
        _above(self, "factor", 1.0, "damping.")
        _above(self, "longest_step", 0.0, "damping.")
        _at_least(self, "attempts", 1, "damping.")


@dataclass(frozen=True)
class FitOptions:
    """Settings of a fit, the same for every learner; each learner class has its own as `defaults`.

    Attributes:
        optimizer: "lm" (Levenberg-Marquardt with the exact Jacobian; for learners of a few parameters), "adam" or "rmsprop".
        epochs: at most; passes over the training segments, and steps of "lm".
        batch_size: segments in one gradient step; "lm" takes all of them.
        learning_rate: of "adam" and "rmsprop". Physics and positive weights are learnt relative to their size.
        final_rate: share of the learning rate that is left at the last epoch, along a cosine; 1 keeps it constant.
        smoothing: of "rmsprop", torch's alpha.
        damping: of "lm".
        patience: epochs without better parameters, of which `choice.py` tells, after which the fit ends; None for never.
        validate_every: epochs between two looks at the validation loss.
        restarts: further attempts of "lm", from other starts, where one ends without reproducing the demonstrations (a mean
            square of the residuals below 1e-8 of that of the controls).
        scan_rounds: rounds of the scan that precedes the first step where a planner is learnt; 0 for none. See `scan.py`.
        seed: of the batches, of the scan, and of what is held out where no validation set is given.
        checkpoint_seconds: between two writes to the fit's folder; 0 for one after each epoch. The result is the same whichever
            of them a fit is resumed from, so it may be another one then.

    Raises:
        ValueError: a value is out of its range.
    """

    optimizer: OptimizerName = "adam"
    epochs: int = 200
    batch_size: int = 32
    learning_rate: float = 1e-2
    final_rate: float = 1.0
    smoothing: float = 0.99
    damping: Damping = field(default_factory=Damping)
    patience: int | None = None
    validate_every: int = 1
    restarts: int = 0
    scan_rounds: int = 0
    seed: int = 0
    checkpoint_seconds: float = 5.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("lm", "adam", "rmsprop"):
            raise ValueError(f'optimizer: expected "lm", "adam" or "rmsprop", got {self.optimizer!r}.')
        for name in ("epochs", "batch_size", "validate_every"):
            _at_least(self, name, 1)
        for name in ("restarts", "scan_rounds", "seed"):
            _at_least(self, name, 0)
        if self.patience is not None:
            _at_least(self, "patience", 1)
        _above(self, "learning_rate", 0.0)
        _within(self, "checkpoint_seconds", "a number from 0 on", lambda value: value >= 0)
        _within(self, "final_rate", "a share from 0 to 1", lambda value: 0 <= value <= 1)
        _within(self, "smoothing", "a number from 0 to below 1", lambda value: 0 <= value < 1)


def _at_least(options: object, name: str, least: int, prefix: str = "") -> None:
    value = whole(prefix + name, getattr(options, name), f"a whole number from {least} on", least)
    object.__setattr__(options, name, value)


def _above(options: object, name: str, least: float, prefix: str = "") -> None:
    _within(options, name, f"a number above {least:g}", lambda value: value > least and math.isfinite(value), prefix)


def _within(options: object, name: str, expected: str, fits: Callable[[float], bool], prefix: str = "") -> None:
    object.__setattr__(options, name, number(prefix + name, getattr(options, name), expected, fits))
