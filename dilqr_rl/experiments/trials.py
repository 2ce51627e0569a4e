"""Trials, and the folder that keeps what they found: one JSON file each, written whole."""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dilqr_rl.agents.files import write_whole

__all__ = ["Record", "Trial", "TrialFolder", "TrialsError", "read_records", "remove_others", "versions", "write_text"]

_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,150}")
_ENDINGS = (".json", ".error.txt")


class TrialsError(ValueError):
    """Trials can't be told apart, or a folder holds others than those asked for."""


@dataclass(frozen=True)
class Trial:
    """One unit of an experiment: what a function is to be called with.

    Attributes:
        key: unique in its experiment, readable, and the name of its file: lower-case letters, digits, dots, dashes.
        settings: everything that its numbers depend on, the seed included; a mapping that JSON can hold.
        estimate: seconds that it may take, or any number in proportion to them; the longest are run first.

    Raises:
        TrialsError: the key can't be a file's name, or the settings aren't JSON.
    """

    key: str
    settings: Mapping[str, Any]
    estimate: float = 1.0

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key) or self.key.endswith(_ENDINGS):
            raise TrialsError(f"key: expected lower-case letters, digits, dots and dashes, got {self.key!r}. Choose another.")
        try:
            object.__setattr__(self, "settings", json.loads(json.dumps(self.settings, allow_nan=False)))
        except (TypeError, ValueError) as error:
            raise TrialsError(f"settings of {self.key}: expected numbers, texts, lists and dicts ({error}).") from error


@dataclass(frozen=True)
class Record:
    """What a trial found.

    Attributes:
        key: of the trial.
        settings: of the trial.
        result: what its function returned.
        seconds: that the function took.
        attempts: how often it was started: more than once if its process died.
        versions: of Python and of the libraries that numbers depend on.
        machine: what it ran on.
    """

    key: str
    settings: Mapping[str, Any]
    result: Mapping[str, Any]
    seconds: float
    attempts: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)


class TrialFolder:
    """The folder of a run: trials/KEY.json, trials/KEY.error.txt for one that failed, and work/KEY/ while one is under way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def file(self, trial: Trial) -> Path:
        """Where the trial's record is, or will be."""
        return self.folder / "trials" / f"{trial.key}.json"

    def error_file(self, trial: Trial) -> Path:
        """Where it says why the trial failed."""
        return self.folder / "trials" / f"{trial.key}.error.txt"

    def work(self, trial: Trial) -> Path:
        """A folder for what a trial keeps for itself, such as checkpoints to go on from; gone when it has ended well."""
        return self.folder / "work" / trial.key

    def read(self, trial: Trial) -> Record | None:
        """The trial's record, whatever its settings were; None if there is none.

        Raises:
            TrialsError: the file isn't the record of a trial of this key.
        """
        file = self.file(trial)
        if not file.is_file():
            return None
        try:
            record = Record(**json.loads(file.read_text(encoding="utf-8")))
        except (ValueError, TypeError, RecursionError) as error:
            raise TrialsError(f"{file}: expected the record of a trial, found something else ({error}). Remove it.") from error
        if record.key != trial.key:
            raise TrialsError(f"{file}: expected the record of {trial.key}, found that of {record.key}. Remove it.")
        return record

    def write(self, trial: Trial, record: Record) -> None:
        """Keep a record, and forget what the trial left for itself or why it failed before."""
        text = json.dumps(vars(record), allow_nan=False) + "\n"
        self._write(self.file(trial), text)
        self.error_file(trial).unlink(missing_ok=True)
        shutil.rmtree(self.work(trial), ignore_errors=True)
        if self.work(trial).parent.is_dir() and not any(self.work(trial).parent.iterdir()):
            self.work(trial).parent.rmdir()

    def write_error(self, trial: Trial, text: str) -> None:
        """Keep why a trial failed."""
        self._write(self.error_file(trial), text)

    def remove(self, trial: Trial) -> None:
        """Forget all about a trial."""
        for file in (self.file(trial), self.error_file(trial)):
            file.unlink(missing_ok=True)
        shutil.rmtree(self.work(trial), ignore_errors=True)

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)


def read_records(trials: Sequence[Trial], folder: Path) -> dict[str, Record]:
    """The records of those trials that have one, by key, in the trials' order.

    Raises:
        TrialsError: two trials share a key, or a record was made with other settings than its trial has now: a table must
            not mix the two.
    """
    keys = [trial.key for trial in trials]
    for key in keys:
        if keys.count(key) > 1:
            raise TrialsError(f"trials: expected each key once, got {key!r} {keys.count(key)} times.")
    store, records = TrialFolder(folder), {}
    for trial in trials:
        record = store.read(trial)
        if record is not None and record.settings != trial.settings:
            raise TrialsError(
                f"{store.file(trial)}: was made with {_difference(record.settings, trial.settings)}. Choose another folder, or "
                "do such trials again (--redo, redo=True)."
            )
        if record is not None:
            records[trial.key] = record
    return records


def remove_others(trials: Sequence[Trial], folder: Path) -> None:
    """Remove the records of those trials that were made with other settings."""
    store = TrialFolder(folder)
    for trial in trials:
        record = store.read(trial)
        if record is not None and record.settings != trial.settings:
            store.remove(trial)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, over what is there."""

    def write(file: Path) -> None:
        file.write_text(text, encoding="utf-8")

    write_whole(path, write, overwrite=True)


def versions() -> dict[str, str]:
    """Versions of Python and of what numbers depend on."""
    names = ("dilqr_rl", "torch", "numpy", "numba")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    names = [name for name in {**then, **now} if then.get(name) != now.get(name) or (name in then) != (name in now)]
    return ", ".join(f"{name} = {then.get(name, 'nothing')!r}, not {now.get(name, 'nothing')!r}" for name in names)
