"""`dilqr reproduce`: the field's experiments, repeated."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from dilqr_rl.cli.console import console
from dilqr_rl.cli.modules import WithModules

if TYPE_CHECKING:
    from dilqr_rl.experiments import Experiment, Record, Report, Run, Trial


@dataclass(frozen=True)
class Reproduce(WithModules):
    """Repeat an experiment of the field: csv, JSON and figures laid out like the published ones, and a table beside the claims.

    e1: accuracy of the gradients. e2: their time and memory. e3: imitation of an LQR controller. e4: of a nonlinear one, by
    every learner. e5: model loss with two gradients. e6: an expert outside the model class. r1: PPO from wrong physics, and in
    changed worlds. r2: a learnt terminal value. Interrupt it at any time: started again, it goes on with the trials that are
    missing. The paper preset's results go to OUT/NAME, those of the others to OUT/PRESET/NAME.
    """

    name: tyro.conf.Positional[str]
    """Of the experiment: e1, e2, ..."""
    preset: Literal["smoke", "quick", "paper"] = "quick"
    """smoke: seconds, only to see that all works. quick: minutes. paper: all sizes, seeds and methods."""
    out: Path | None = None
    """Folder of the results: "results" for the paper preset, "build/results" for the others, unless given."""
    engine: Literal["processes", "ray"] = "processes"
    """processes: side by side on this machine. ray: on the Ray cluster that RAY_ADDRESS names, else on this machine."""
    workers: int | None = None
    """Trials at a time; as many as there are cores unless given. Timings take one at a time whatever is given."""
    only: str = ""
    """Run only trials with this in their names."""
    report: bool = False
    """Run nothing: the table and the figures from the trials that are there; without any, the table from results.csv."""
    redo: bool = False
    """Do trials again that are there with other settings."""

    def run(self) -> None:
        """Run what is missing, write the report and tell."""
        from dilqr_rl.experiments import find_experiment, renew_report, write_report

        experiment = find_experiment(self.name)
        trials, folder = experiment.trials(self.preset), self._folder()
        if self.report and not any(folder.glob("trials/*.json")) and (folder / "results.csv").is_file():
            _tell(experiment, renew_report(self.name, folder))
            console.print(f"there are no trials in {folder}: told from its results.csv; the figures stay", soft_wrap=True)
            return
        failures = {} if self.report else self._run(experiment, trials, folder).failures
        if not failures or any(folder.glob("trials/*.json")):
            _tell(experiment, write_report(self.name, trials, folder, self.preset))
        if failures:
            names = ", ".join(failures)
            raise ValueError(
                f"{len(failures)} of {len(trials)} trials failed: {names}. {folder}/trials/NAME.error.txt says why. Run it "
                "again to go on; what is done is kept."
            )

    def _folder(self) -> Path:
        if self.preset == "paper":
            return (self.out or Path("results")) / self.name
        return (self.out or Path("build/results")) / self.preset / self.name

    def _run(self, experiment: Experiment, trials: list[Trial], folder: Path) -> Run:
        from dilqr_rl.experiments import EngineOptions, read_records, remove_others, run_trials

        chosen = [trial for trial in trials if self.only in trial.key]
        if not chosen:
            raise ValueError(
                f"--only: expected a part of one of the names {', '.join(t.key for t in trials)}, got {self.only!r}."
            )
        options = EngineOptions(self.engine, experiment.workers or self.workers)
        if experiment.workers is not None:
            console.print(f"{experiment.workers} trial at a time, for the timings' sake: leave the machine alone meanwhile.")
        if self.redo:
            remove_others(chosen, folder)
        there = read_records(chosen, folder)
        if there:
            console.print(f"{len(there)} of {len(chosen)} trials are there already, in {folder}", soft_wrap=True)
        left = [trial for trial in chosen if trial.key not in there]
        with _progress(f"{self.name}, {self.preset}", left, options.workers or os.cpu_count() or 1) as show:
            return run_trials(experiment.run, chosen, folder, options, show)


class _Pace:
    """How fast trials end, against their estimates."""

    def __init__(self, trials: Sequence[Trial], workers: int) -> None:
        self.estimates = {trial.key: trial.estimate for trial in trials}
        self.workers, self.last = workers, time.monotonic()
        self.expected = self.taken = 0.0

    def add(self, trial: Trial, record: Record | None) -> None:
        """A trial has ended."""
        self.last, expected = time.monotonic(), self.estimates.pop(trial.key, 0.0)
        if record is not None:
            self.expected, self.taken = self.expected + expected, self.taken + record.seconds

    def seconds_left(self) -> float | None:
        """None before the first trial has ended."""
        if self.expected == 0.0:
            return None
        work = sum(self.estimates.values()) * self.taken / self.expected
        return max(0.0, work / self.workers - (time.monotonic() - self.last))


class _TimeLeft(ProgressColumn):
    def __init__(self, pace: _Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        left = self._pace.seconds_left()
        told = "?" if left is None else f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
        return Text(f"about {told} left", style="progress.remaining")


@contextmanager
def _progress(title: str, trials: Sequence[Trial], workers: int) -> Iterator[Callable[[Trial, Record | None], None]]:
    """A bar; what it gives is to be called with each trial that ends."""
    pace = _Pace(trials, workers)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), _TimeLeft(pace))
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as lines:
        task = lines.add_task(title, total=len(trials), note="")

        def show(trial: Trial, record: Record | None) -> None:
            pace.add(trial, record)
            lines.advance(task)
            lines.update(task, note=f"{trial.key} failed" if record is None else trial.key)

        yield show


def _tell(experiment: Experiment, report: Report) -> None:
    table = Table(title=experiment.title, title_justify="left", show_lines=True)
    for column in ("claim", "published", "ours", "verdict"):
        table.add_column(column)
    for claim in report.claims:
        table.add_row(claim.claim, claim.published, claim.ours, claim.verdict)
    console.print(table)
    if report.missing:
        console.print(f"without results: {', '.join(report.missing)}", soft_wrap=True)
    if report.dropped:
        console.print(f"not in results.csv, and told no longer: {'; '.join(report.dropped)}", soft_wrap=True)
    console.print(f"written: {', '.join(str(file) for file in report.files)}", soft_wrap=True)
