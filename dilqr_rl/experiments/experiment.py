"""What an experiment is made of, and where to find each."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from dilqr_rl.experiments.tables import Row
from dilqr_rl.experiments.trials import Record, Trial

__all__ = ["EXPERIMENTS", "PRESETS", "VERDICTS", "Claim", "Experiment", "find_experiment"]

PRESETS = {"smoke": "seconds; it only shows that all works", "quick": "minutes", "paper": "all sizes, seeds and methods"}
EXPERIMENTS = {
    "e1": "dilqr_rl.experiments.e1",
    "e2": "dilqr_rl.experiments.e2",
    "e3": "dilqr_rl.experiments.e3",
    "e4": "dilqr_rl.experiments.e4",
    "e5": "dilqr_rl.experiments.e5",
    "e6": "dilqr_rl.experiments.e6",
    "r1": "dilqr_rl.experiments.r1",
    "r2": "dilqr_rl.experiments.r2",
}
VERDICTS = ("reproduced", "partly", "not reproduced", "new", "not measured", "reached", "not reached")


@dataclass(frozen=True)
class Claim:
    """A published claim beside what came out.

    Attributes:
        claim: in a sentence.
        published: the published figure, and whose it is; "-" if nobody has published one, "wanted: ..." for an aim.
        ours: the figure that came out.
        verdict: one of VERDICTS; "new" where there is no published figure to compare with, "reached" or not for an aim.

    Raises:
        ValueError: another verdict.
    """

    claim: str
    published: str
    ours: str
    verdict: str

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict: expected one of {VERDICTS}, got {self.verdict!r}.")


class Experiment(Protocol):
    """A module with these names.

    Attributes:
        title: what it is about.
        workers: how many trials may run at a time; None for as many as there are cores. Timings want 1.
    """

    title: str
    workers: int | None

    def trials(self, preset: str) -> list[Trial]:
        """What a preset runs."""

    def run(self, settings: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        """One trial, in a process of its own; the folder is for what it needs to go on after an interruption."""

    def rows(self, records: Sequence[Record]) -> list[dict[str, Any]]:
        """What results.csv holds, from whatever trials are there: all that claims are told from."""

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        """The published claims beside ours, from the rows of results.csv, whatever is there."""

    def draw(self, records: Sequence[Record], folder: Path) -> list[Path]:
        """The figures, laid out as the published ones, as files in the folder."""


def find_experiment(name: str) -> Experiment:
    """The experiment of a name.

    Raises:
        ValueError: there is none.
    """
    if name not in EXPERIMENTS:
        raise ValueError(f"name: expected one of {', '.join(EXPERIMENTS)}, got {name!r}.")
    return cast(Experiment, importlib.import_module(EXPERIMENTS[name]))
