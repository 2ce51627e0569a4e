"""Runs trials side by side, keeps what they find as soon as it is there, and goes on where a run was cut off."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from dilqr_rl.experiments.trials import Record, Trial, TrialFolder, read_records, remove_others
from dilqr_rl.experiments.worker import Function, name_of

__all__ = ["ENGINES", "Answer", "Engine", "EngineOptions", "Run", "run_trials"]

ENGINES = ("processes", "ray")


@dataclass(frozen=True)
class EngineOptions:
    """How trials are run.

    Attributes:
        engine: "processes", on this machine, or "ray": on the cluster that the environment variable RAY_ADDRESS names, else
            on this machine. Both run each trial in a process of its own with one thread, so that the numbers are the same.
        workers: how many trials at a time; as many as there are cores, or room in the cluster, unless given.
        retries: how often a trial is started again whose process died.
        redo: do trials again that are there with other settings, instead of refusing them.

    Raises:
        ValueError: a value is out of its range.
    """

    engine: Literal["processes", "ray"] = "processes"
    workers: int | None = None
    retries: int = 2
    redo: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ValueError(f"engine: expected one of {ENGINES}, got {self.engine!r}.")
        if self.workers is not None and (isinstance(self.workers, bool) or self.workers < 1):
            raise ValueError(f"workers: expected a positive integer, got {self.workers!r}.")
        if self.retries < 0:
            raise ValueError(f"retries: expected 0 or more, got {self.retries!r}.")


@dataclass(frozen=True)
class Answer:
    """What became of a request.

    Attributes:
        number: of the request.
        content: as worker.answer says, or {"error"} for a process that died too often.
        attempts: how often it was started.
    """

    number: int
    content: Mapping[str, Any]
    attempts: int


class Engine(Protocol):
    """Answers requests, in whatever order; closing the iterator ends what is under way."""

    def __call__(
        self, requests: Sequence[Mapping[str, Any]], workers: int | None, retries: int
    ) -> Generator[Answer, None, None]:
        """One answer for each request."""


@dataclass(frozen=True)
class Run:
    """How a run ended.

    Attributes:
        records: of all trials that are done, by key, in the order of the trials.
        failures: why the others failed, by key.
    """

    records: dict[str, Record]
    failures: dict[str, str] = field(default_factory=dict)


def run_trials(
    function: Function,
    trials: Sequence[Trial],
    folder: Path,
    options: EngineOptions | None = None,
    on_result: Callable[[Trial, Record | None], None] | None = None,
) -> Run:
    """Run the trials that aren't there yet, the longest first.

    A record is written as soon as its trial has ended, so that a run that is cut off, however, loses only what was under way.

    Args:
        function: (settings, folder) -> result, at the top level of a module. The folder is the trial's own: what it writes
            there survives until the trial has ended well. The result is a dict that JSON can hold, without NaN.
        trials: what to run; each key once.
        folder: where the results are and go to.
        options: settings.
        on_result: called with each trial that ends, and its record, or None if it failed.

    Returns:
        All records, those found included, and why trials failed; folder/trials/KEY.error.txt says so, too.

    Raises:
        ValueError: the function can't be imported elsewhere, a key stands twice, a record is there with other settings (see
            EngineOptions.redo), or Ray is asked for and isn't installed.
    """
    options, store = options or EngineOptions(), TrialFolder(folder)
    if options.redo:
        remove_others(trials, folder)
    found = read_records(trials, folder)
    waiting = sorted((trial for trial in trials if trial.key not in found), key=lambda trial: -trial.estimate)
    requests = [_request(function, trial, store) for trial in waiting]
    failures: dict[str, str] = {}
    with closing(_engine(options.engine)(requests, options.workers, options.retries)) as answers:
        for one in answers:
            trial = waiting[one.number]
            record = _keep(trial, one, store)
            if record is None:
                failures[trial.key] = str(one.content["error"])
            else:
                found[trial.key] = record
            if on_result is not None:
                on_result(trial, record)
    return Run({trial.key: found[trial.key] for trial in trials if trial.key in found}, failures)


def _request(function: Function, trial: Trial, store: TrialFolder) -> dict[str, Any]:
    return {"function": name_of(function), "settings": trial.settings, "folder": str(store.work(trial))}


def _keep(trial: Trial, answer: Answer, store: TrialFolder) -> Record | None:
    if "error" in answer.content:
        store.write_error(trial, f"{trial.key}, attempts: {answer.attempts}\n{answer.content['error']}")
        return None
    record = Record(trial.key, trial.settings, attempts=answer.attempts, **answer.content)
    store.write(trial, record)
    return record


def _engine(name: str) -> Engine:
    if name == "ray":
        from dilqr_rl.experiments.ray_engine import run_on_ray

        return run_on_ray
    from dilqr_rl.experiments.processes import run_in_processes

    return run_in_processes
