"""What a fit leaves in its folder: a snapshot to resume from, written whole each time, and its log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from stable_baselines3.common.logger import Logger, configure
from torch import Tensor

from dilqr_rl.agents.files import write_whole

__all__ = ["RunFolder", "Snapshot"]

_FORMAT = "dilqr_rl fit, version 2"
_EVENTS = "events.out.tfevents.*"
_PARTS = ("learner", "best", "optimiser", "choice")


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


class RunFolder:
    """The folder of one fit: "fit.safetensors", and the log "progress.csv", with TensorBoard's events where it is installed.

    Args:
        path: made if it doesn't exist.
        identity: what a resumed fit must have in common with the one that was cut off.
        resume: go on from what is there.

    Raises:
        FileExistsError: there is a fit already, and `resume` is false; or the log of something else.
        ValueError: it is another fit than this one, or the file is damaged.
    """

    def __init__(self, path: str | Path, identity: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self._identity = Path(path), json.loads(json.dumps(identity, default=float))
        self.path.mkdir(parents=True, exist_ok=True)
        self._file = self.path / "fit.safetensors"
        for unfinished in self.path.glob(f".{self._file.name}.*"):  # of a process that was killed while it wrote
            unfinished.unlink()
        if self._file.exists() and not resume:
            raise FileExistsError(f"{self._file} exists already. Go on (--resume, resume=True), or choose another folder.")
        logs = [file.name for pattern in ("progress.csv", _EVENTS) for file in self.path.glob(pattern)]
        if logs and not self._file.exists():
            raise FileExistsError(f"{self.path}: expected a folder of its own for the fit, found {logs}. Choose another.")
        self._snapshot = _read(self._file, self._identity) if self._file.exists() else None
        self._log: Logger | None = None
        self._logged = 0

    def last(self) -> Snapshot | None:
        """What was kept last."""
        return self._snapshot

    def keep(self, snapshot: Snapshot) -> None:
        """Replace the snapshot, and add to the log what has come since."""
        tensors = {
            f"{part}.{name}": tensor.detach().cpu().contiguous().clone()
            for part in _PARTS
            for name, tensor in getattr(snapshot, part).items()
        }
        progress = {name: getattr(snapshot, name) for name in ("epoch", "best_epoch", "history")}
        metadata = {"format": _FORMAT, "identity": json.dumps(self._identity), "progress": json.dumps(progress)}
        write_whole(self._file, lambda file: save_file(tensors, file, metadata), overwrite=True)
        self._log_rows(snapshot.history)

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()

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
        with safe_open(file, framework="pt") as stream:
            metadata = stream.metadata() or {}
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118 - no mapping
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"expected the format {_FORMAT!r}, got {metadata.get('format')!r}")
        kept, progress = json.loads(metadata["identity"]), json.loads(metadata["progress"])
        learner, best, optimiser, choice = (_under(tensors, f"{part}.") for part in _PARTS)
        snapshot = Snapshot(**progress, learner=learner, best=best, optimiser=optimiser, choice=choice)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: expected what a fit keeps to be resumed, got something else or a damaged file: {error}."
        ) from error
    different = _differences(kept, identity)
    if different:
        raise ValueError(f"{file}: keeps another fit; {'; '.join(different)}. Resume with the same, or choose another folder.")
    return snapshot


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
