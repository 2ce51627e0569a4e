"""Settings of a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

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
        _above("damping.start", self.start, 0.0)
        _above("damping.factor", self.factor, 1.0)
        _above("damping.longest_step", self.longest_step, 0.0)
        _at_least("damping.attempts", self.attempts, 1)


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
            _at_least(name, getattr(self, name), 1)
        _at_least("restarts", self.restarts, 0)
        _at_least("scan_rounds", self.scan_rounds, 0)
        _at_least("seed", self.seed, 0)
        if self.patience is not None:
            _at_least("patience", self.patience, 1)
        _above("learning_rate", self.learning_rate, 0.0)
        if not self.checkpoint_seconds >= 0:
            raise ValueError(f"checkpoint_seconds: expected a number from 0 on, got {self.checkpoint_seconds!r}.")
        if not 0 <= self.final_rate <= 1:
            raise ValueError(f"final_rate: expected a share from 0 to 1, got {self.final_rate}.")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"smoothing: expected a number from 0 to below 1, got {self.smoothing}.")


def _at_least(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}: expected a whole number from {least} on, got {value!r}.")


def _above(name: str, value: float, least: float) -> None:
    if not (value > least and math.isfinite(value)):
        raise ValueError(f"{name}: expected a number above {least:g}, got {value!r}.")
