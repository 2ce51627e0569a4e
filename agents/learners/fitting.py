"""The one fit of all learners: epochs, validation, early stopping, what is kept on disk."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from dilqr_rl.agents.demonstrations import Demonstrations, DemonstrationsError, check_disjoint
from dilqr_rl.agents.learners.choice import Choice
from dilqr_rl.agents.learners.optimisers import Optimiser, make_optimiser
from dilqr_rl.agents.learners.options import FitOptions
from dilqr_rl.agents.learners.run_folder import RunFolder, Snapshot, damaged
from dilqr_rl.agents.learners.segments import Segments, cut
from dilqr_rl.agents.soundness import told, unsound_values
from dilqr_rl.agents.tensor_files import load_exactly
from dilqr_rl.signals import like_ctrl_c

if TYPE_CHECKING:
    from dilqr_rl.agents.learners.base import Learner

__all__ = ["FitResult", "Surroundings", "fit"]

_log = logging.getLogger("dilqr_rl")

_PARTS = 5  # of the demonstrations, one of which validates unless others do


@dataclass
class FitResult:
    """How a fit went.

    Attributes:
        history: a row for each epoch: "epoch", "train_loss", "validation_loss" (at each look), and what `measure` found. Before
            them one for the start, and one more where a scan moved it, both of epoch 0.
        best_epoch: the one whose parameters the learner now has; `choice.py` says which these are.
        best_validation_loss: of these parameters; infinite before the first look.
        stopped: why it ended: "epochs", "patience", "interrupted", "diverged" (amid an epoch that isn't in the history), by
            "lm" "no step lowers the loss", "reproduced" (what is handed back reproduces training and held-out demonstrations,
            nearly to rounding), or in which of the two it doesn't; "" at first.
        note: what else is to be known: a sentence where no parameters moved the validation loss, else "".
        seconds: of this call.
    """

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_validation_loss: float = math.inf
    stopped: str = ""
    note: str = ""
    seconds: float = 0.0

    @property
    def start_loss(self) -> float:
        """The validation loss before anything was learnt; infinite before the first look."""
        return next(iter(self.column("validation_loss")[1]), math.inf)

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """The epochs at which a figure was taken, and the figure."""
        rows = [row for row in self.history if name in row]
        return [int(row["epoch"]) for row in rows], [row[name] for row in rows]


@dataclass(frozen=True)
class Surroundings:
    """What a fit writes, tells and measures beside learning; see `Learner.fit`."""

    folder: str | Path | None
    resume: bool
    on_epoch: Callable[[FitResult], None]
    measure: Callable[[Any], Mapping[str, float]]


def fit(
    learner: Learner, data: Demonstrations, validation: Demonstrations | None, options: FitOptions, around: Surroundings
) -> FitResult:
    """See `Learner.fit`."""
    learner.check_options(options)
    train, held_out = (data, validation) if validation is not None else _hold_out(learner, data, options.seed)
    check_disjoint(train=train, validation=held_out)
    length = _common_length(learner, train, held_out)
    segments, watched = (cut(learner.task, part, length, learner.device) for part in (train, held_out))
    windows = [len(episode) // length for episode in held_out.episodes]
    run = _Run(learner, segments, watched, Choice(windows), options, around.measure)
    if around.folder is None:
        return run.to_the_end(None, around.on_epoch)
    kept = RunFolder(around.folder, _identity(learner, options, segments, watched), resume=around.resume)
    try:
        run.go_on(kept)
        return run.to_the_end(kept, around.on_epoch)
    finally:
        kept.close()


def _hold_out(learner: Learner, data: Demonstrations, seed: int) -> tuple[Demonstrations, Demonstrations]:
    """A fifth of the episodes, or of a single one its last fifth."""
    count = len(data)
    if count < 2:
        if data.open_loop or len(data.episodes[0]) < _PARTS * learner.segment_length(data):
            raise DemonstrationsError(
                "demonstrations: expected at least 2 episodes, to learn from one and validate on another, or a long one, whose "
                f"last fifth validates, got 1 of {data.num_steps} actions. Record more, or pass validation=."
            )
        _log.info("one episode: the last fifth of its %d actions is held out for validation", data.num_steps)
        before, after = data.in_time([0.0, 1 - 1 / _PARTS, 1.0])
        return before, after
    held_out = max(1, count // _PARTS)
    order = np.random.default_rng(seed).permutation(count)
    return data.select(order[held_out:]), data.select(order[:held_out])


def _common_length(learner: Learner, train: Demonstrations, validation: Demonstrations) -> int:
    if train.open_loop != validation.open_loop:
        names = {True: "plans that were carried out as made (open_loop)", False: "actions that answer observations"}
        raise DemonstrationsError(
            f"validation: expected {names[train.open_loop]}, as the training demonstrations are, got "
            f"{names[validation.open_loop]}."
        )
    return min(learner.segment_length(part) for part in (train, validation))


def _identity(learner: Learner, options: FitOptions, *segments: Segments) -> dict[str, Any]:
    """What a resumed fit must have in common with the one that was cut off."""
    shared = {name: value for name, value in asdict(options).items() if name != "checkpoint_seconds"}
    trained = learner.trained_parameters().keys()
    fixed = [tensor for name, tensor in learner.state_dict().items() if name not in trained]
    return {
        "learner": learner.name,
        "task": learner.task.name,
        "settings": learner.settings,
        "options": shared,
        "data": _digest(tensor for part in segments for tensor in (part.states, part.controls)),
        "what isn't learnt": _digest(fixed),
    }


def _digest(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


class _Run:
    """A fit under way."""

    def __init__(
        self,
        learner: Learner,
        segments: Segments,
        watched: Segments,
        choice: Choice,
        options: FitOptions,
        measure: Callable[[Any], Mapping[str, float]],
    ) -> None:
        self.measure = measure
        self.learner, self.segments, self.watched, self.options = learner, segments, watched, options
        learner.set_attempt(0)
        self.optimiser: Optimiser = make_optimiser(learner, segments, options)
        self.result = FitResult()
        self.choice = choice
        self.best: dict[str, Tensor] = {}
        self.epoch = 0

    def to_the_end(self, folder: RunFolder | None, on_epoch: Callable[[FitResult], None]) -> FitResult:
        began = time.perf_counter()
        try:
            with like_ctrl_c():
                if not self.result.history:
                    self._begin()
                self._epochs(folder, on_epoch)
        except KeyboardInterrupt:  # perhaps amid an epoch: what was last written stays
            self.result.stopped = "interrupted"
        finally:
            if self.best:
                self.learner.load_state_dict(self.best)
            for parameter in self.learner.trained_parameters().values():  # also those whose turn it wasn't
                parameter.requires_grad_(True)
            self.learner.eval()
            self.result.note = self.choice.note
            self.result.seconds = time.perf_counter() - began
        if self.result.note:
            _log.warning("fit of %r: %s", self.learner.name, self.result.note)
        return self.result

    def _epochs(self, folder: RunFolder | None, on_epoch: Callable[[FitResult], None]) -> None:
        written = -math.inf
        while True:
            ended = self._ended()
            if folder is not None and (ended or time.monotonic() - written >= self.options.checkpoint_seconds):
                folder.keep(self._snapshot(), last=ended)
                written = time.monotonic()
            if ended:
                return
            if self._one_epoch():
                on_epoch(self.result)

    def _one_epoch(self) -> bool:
        """Whether it came to its end."""
        self.learner.train()
        self.learner.before_epoch(self.epoch)
        loss = self.optimiser.run_epoch(self.epoch)
        if self.optimiser.stopped == "diverged":
            wrong = unsound_values(self.learner)
            why = told(wrong) if wrong else "the loss or a parameter isn't finite"
            best = self.result.best_epoch
            _log.warning("the fit ends in epoch %d: %s. The best so far stays, of epoch %d.", self.epoch + 1, why, best)
            return False
        self.epoch += 1
        self.result.history.append({"epoch": self.epoch, "train_loss": loss})
        if self.epoch % self.options.validate_every == 0 or self.epoch == self.options.epochs or self.optimiser.stopped:
            self._look()
        return True

    def _ended(self) -> bool:
        patience, result = self.options.patience, self.result
        if self.optimiser.stopped:
            result.stopped = self.optimiser.why(self.choice.training_loss, self.choice.validation_loss)
        elif self.epoch >= self.options.epochs:
            result.stopped = "epochs"
        elif patience is not None and self.epoch - result.best_epoch >= patience:
            result.stopped = "patience"
        return bool(result.stopped)

    def _begin(self) -> None:
        """The first look, before and after the scan."""
        self.result.history.append({"epoch": 0})
        self._look()
        if self.options.scan_rounds > 0 and self.learner.scan(self.segments, self.options):
            self.result.history.append({"epoch": 0})
            self._look()

    def _look(self) -> None:
        """The validation loss of the parameters as they stand, which are kept if they are the better choice."""
        row, held_out = self.result.history[-1], self.learner.losses_over(self.watched)
        loss = float(held_out.mean())
        row["validation_loss"] = loss if math.isfinite(loss) else math.inf
        row.update({name: float(value) for name, value in self.measure(self.learner).items()})
        if self.choice.look(held_out, lambda: self.learner.mean_over(self.segments)):
            self.result.best_epoch, self.result.best_validation_loss = self.epoch, self.choice.validation_loss
            self.best = copy.deepcopy(self.learner.state_dict())

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            epoch=self.epoch,
            best_epoch=self.result.best_epoch,
            history=self.result.history,
            learner=self.learner.state_dict(),
            best=self.best,
            optimiser=self.optimiser.state(),
            choice=self.choice.state(),
        )

    def go_on(self, folder: RunFolder) -> None:
        """Take over what the folder keeps, if it keeps anything.

        Raises:
            ValueError: it is no state of this fit; the learner is as it was.
        """
        snapshot = folder.last()
        if snapshot is None:
            return
        before = copy.deepcopy(self.learner.state_dict())
        try:
            load_exactly(self.learner, snapshot.best)
            wrong = unsound_values(self.learner)
            if wrong:
                raise ValueError(told(wrong))
            load_exactly(self.learner, snapshot.learner)
            self.optimiser.restore(snapshot.optimiser)
            self.choice.restore(snapshot.choice)
        except Exception as error:  # an optimiser takes over whatever it's given
            self.learner.load_state_dict(before)
            raise damaged(folder.file, error) from error
        self.epoch, self.best = snapshot.epoch, snapshot.best
        self.result.history, self.result.best_epoch = snapshot.history, snapshot.best_epoch
        self.result.best_validation_loss = self.choice.validation_loss
