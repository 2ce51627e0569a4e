"""What a run leaves for the reader: results.csv, summary.json, the figures, and tables in Markdown."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dilqr_rl.agents.files import write_whole
from dilqr_rl.experiments.experiment import EXPERIMENTS, Claim, find_experiment
from dilqr_rl.experiments.trials import Trial, read_records, write_text

__all__ = ["Report", "results_table", "write_report"]

_LISTED = 5  # trials named at most


@dataclass(frozen=True)
class Report:
    """What has been written.

    Attributes:
        claims: the published claims beside ours.
        files: written.
        missing: keys of trials that have no result.
    """

    claims: list[Claim]
    files: list[Path]
    missing: list[str]


def write_report(name: str, trials: Sequence[Trial], folder: Path, preset: str) -> Report:
    """Write results.csv, summary.json and the figures from the trials that are there.

    Args:
        name: of the experiment.
        trials: all of the preset's; those without a result are named in the summary.
        folder: where the results are and the report goes.
        preset: of the trials, for the summary.

    Raises:
        ValueError: an unknown experiment, no results at all, or results of other settings.
    """
    experiment, found = find_experiment(name), read_records(trials, folder)
    if not found:
        raise ValueError(f"{folder}: no results of {name} there yet. Run it first.")
    records, missing = list(found.values()), [trial.key for trial in trials if trial.key not in found]
    claims = experiment.claims(records)
    figures = experiment.draw(records, folder)
    table, summary = folder / "results.csv", folder / "summary.json"
    _write_rows(experiment.rows(records), table)
    content = {
        "experiment": name,
        "title": experiment.title,
        "preset": preset,
        "trials": len(records),
        "missing": missing,
        "seconds": round(sum(record.seconds for record in records), 1),
        "versions": _all_of([dict(record.versions) for record in records]),
        "machine": _all_of([dict(record.machine) for record in records]),
        "claims": [asdict(claim) for claim in claims],
        "figures": [figure.name for figure in figures],
    }
    write_text(summary, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return Report(claims, [table, summary, *figures], missing)


def results_table(folder: Path) -> str:
    """The claims of all experiments whose summaries are in folder/NAME/, as Markdown.

    Raises:
        ValueError: there is no summary, or a file isn't one.
    """
    files = [file for name in EXPERIMENTS if (file := folder / name / "summary.json").is_file()]
    if not files:
        raise ValueError(f"folder: expected summaries in {folder}/NAME/summary.json, found none. Run `dilqr reproduce` first.")
    return "\n".join(_section(file) for file in files)


def _section(file: Path) -> str:
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        head = f"## {summary['experiment'].upper()}. {summary['title']}"
        parts = ("claim", "published", "ours", "verdict")
        rows = [[str(claim[part]).replace("|", "\\|") for part in parts] for claim in summary["claims"]]
        missing, count, seconds = summary["missing"], summary["trials"], summary["seconds"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: expected a summary of `dilqr reproduce`, found something else ({error!r}).") from error
    told = f"{count} trials, {seconds / 60:.1f} minutes of computing."
    if missing:
        told += f" Without results: {_some(missing)}."
    lines = ["| claim | published | ours | verdict |", "|---|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join((head, "", told, "", *lines, ""))


def _some(keys: Sequence[str]) -> str:
    rest = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + rest


def _all_of(descriptions: list[dict[str, Any]]) -> dict[str, str]:
    """Each entry with all the values that it has in one of the descriptions."""
    names = dict.fromkeys(name for description in descriptions for name in description)
    return {name: ", ".join(sorted({str(d[name]) for d in descriptions if name in d})) for name in names}


def _write_rows(rows: list[dict[str, Any]], path: Path) -> None:
    def write(file: Path) -> None:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write, overwrite=True)
