"""What a fit leaves in its folder: a snapshot to resume from, written whole each time, and its log."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger, configure
from torch import Tensor

from dilqr_rl.agents.learners.lock import FolderLock
from dilqr_rl.agents.tensor_files import parse_json, read_tensors, write_tensors

__all__ = ["RunFolder", "Snapshot", "damaged"]

_FORMAT = "dilqr_rl fit, version 2"
_EVENTS = "events.out.tfevents.*"
_PARTS = ("learner", "best", "optimiser", "choice")

_log = logging.getLogger("dilqr_rl")


@dataclass(frozen=True)
class Snapshot:
    """A fit between two epochs.

    Attributes:
        epoch: how many have been run.
        best_epoch: the one whose parameters are to be handed back.
        history: see `FitResult`.
        learner: the parameters as they stand.
        best: the parameters of the best epoch.
        optimiser: what the optimiser needs to go on.
        choice: what the choice of the best needs to go on.
    """

    epoch: int
    best_epoch: int
    history: list[dict[str, float]]
    learner: dict[str, Tensor]
    best: dict[str, Tensor]
    optimiser: dict[str, Tensor]
    choice: dict[str, Tensor]

    def check(self) -> None:
        """Raise a ValueError for what no fit leaves."""
        counts = (self.epoch, self.best_epoch)
        if any(type(count) is not int for count in counts) or not 0 <= self.best_epoch <= self.epoch:
            raise ValueError(f"expected epochs, the best one no later than the last, got {counts}")
        rows = self.history if isinstance(self.history, list) else []
        if not all(isinstance(row, dict) and all(type(n) in (int, float) for n in row.values()) for row in rows):
            raise ValueError("expected a history of rows of numbers")
        if not rows or "validation_loss" not in rows[0] or rows[-1].get("epoch") != self.epoch:
            raise ValueError(f"expected a history from a first look to epoch {self.epoch}")
        if self.best.keys() != self.learner.keys():
            raise ValueError("expected the parameters of the best epoch to be those of the learner")
        for name, tensor in self.best.items():
            if self.learner[name].shape != tensor.shape or tensor.isnan().any():
                raise ValueError(f"expected numbers of the shape {tuple(self.learner[name].shape)} for {name!r}")


class RunFolder:
    """The folder of one fit: "fit.safetensors", and the log "progress.csv", with TensorBoard's events where it is installed.

    A disk that is full, or gone, ends no fit: what can't be written is told in a line of the log, and tried again next time.

    Args:
        path: made if it doesn't exist. Nobody else can write there until `close`.
        identity: what a resumed fit must have in common with the one that was cut off.
        resume: go on from what is there.

    Raises:
        FileExistsError: there is a fit already, and `resume` is false; or the log of something else.
        BlockingIOError: another fit writes there at this moment.
        ValueError: it is another fit than this one, or the file is damaged.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self._identity = Path(path), json.loads(json.dumps(identity, default=float))
        self.path.mkdir(parents=True, exist_ok=True)
        self.file = self.path / "fit.safetensors"
        self._log: Logger | None = None
        self._logged = 0
        self._lock = FolderLock(self.path)
        try:
            self._snapshot = self._found(resume)
        except BaseException:
            self._lock.release()
            raise

    def _found(self, resume: bool) -> Snapshot | None:
        for unfinished in self.path.glob(f".{self.file.name}.*"):  # of a process that was killed while it wrote
            unfinished.unlink()
        if self.file.exists() and not resume:
            raise FileExistsError(f"{self.file} exists already. Go on (--resume, resume=True), or choose another folder.")
        logs = [file.name for pattern in ("progress.csv", _EVENTS) for file in self.path.glob(pattern)]
        if logs and not self.file.exists():
            raise FileExistsError(f"{self.path}: expected a folder of its own for the fit, found {logs}. Choose another.")
        return _read(self.file, self._identity) if self.file.exists() else None

    def last(self) -> Snapshot | None:
        """What was kept last."""
        return self._snapshot

    def keep(self, snapshot: Snapshot, *, last: bool = False) -> None:
        """Replace the snapshot, and add to the log what has come since; `last`: the fit has come to its end."""
        tensors = {f"{part}.{name}": tensor for part in _PARTS for name, tensor in getattr(snapshot, part).items()}
        progress = {name: getattr(snapshot, name) for name in ("epoch", "best_epoch", "history")}
        metadata = {"format": _FORMAT, "identity": json.dumps(self._identity), "progress": json.dumps(progress)}
        try:
            write_tensors(self.file, tensors, metadata, overwrite=True)
            self._log_rows(snapshot.history)
        except Exception as error:  # also what TensorBoard's own thread has met
            self._close_log()
            end = "The learner has the best parameters: save it elsewhere" if last else "The fit goes on, and tries again"
            _log.warning("epoch %d could not be kept in %s: %s. %s.", snapshot.epoch, self.path, error, end)

    def close(self) -> None:
        """Close the log, and let others have the folder."""
        self._close_log()
        self._lock.release()

    def _close_log(self) -> None:
        """What comes later is written with all that came before."""
        if self._log is not None:
            with suppress(Exception):  # it can only be the same again
                self._log.close()
        self._log, self._logged = None, 0

    def _log_rows(self, history: list[dict[str, float]]) -> None:
        """A resumed fit writes the whole log anew, without what its predecessor did after the snapshot."""
        if self._log is None:
            for old in self.path.glob(_EVENTS):
                old.unlink()
            self._log = configure(str(self.path), ["csv", "tensorboard"] if find_spec("tensorboard") else ["csv"])
        for row in history[self._logged :]:
            for name, value in row.items():
                self._log.record(f"fit/{name}", value)
            self._log.dump(int(row["epoch"]))
        self._logged = len(history)


def _read(file: Path, identity: Mapping[str, Any]) -> Snapshot:
    try:
        metadata, tensors = read_tensors(file)
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"expected the format {_FORMAT!r}, got {metadata.get('format')!r}")
        kept, progress = parse_json(metadata["identity"]), parse_json(metadata["progress"])
        learner, best, optimiser, choice = (_under(tensors, f"{part}.") for part in _PARTS)
        snapshot = Snapshot(**progress, learner=learner, best=best, optimiser=optimiser, choice=choice)
        snapshot.check()
        different = _differences(dict(kept), identity)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise damaged(file, error) from error
    if different:
        raise ValueError(f"{file}: keeps another fit; {'; '.join(different)}. Resume with the same, or choose another folder.")
    return snapshot


def damaged(file: Path, why: object) -> ValueError:
    """What to raise for a file that holds no fit to go on with."""
    return ValueError(f"{file}: expected what a fit keeps to be resumed, got something else or a damaged file: {why}.")


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _differences(kept: Mapping[str, Any], given: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted({*kept, *given}):
        before, now = kept.get(name), given.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            found += _differences(before, now, f"{prefix}{name}.")
        elif before != now:
            told = {"data": "the demonstrations are others", "what isn't learnt": "numbers that aren't learnt are others"}
            found.append(told.get(name, f"{prefix}{name} was {before!r} and is {now!r}"))
    return found
