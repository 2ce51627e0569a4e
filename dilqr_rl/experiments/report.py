"""What a run leaves for the reader: results.csv, summary.json, the figures, and tables in Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dilqr_rl.experiments.experiment import EXPERIMENTS, Claim, find_experiment
from dilqr_rl.experiments.tables import read_rows, write_rows
from dilqr_rl.experiments.trials import Trial, read_records, write_text

__all__ = ["Report", "claims_of", "renew_report", "results_table", "write_report"]

_LISTED = 5  # trials named at most
_PARTS = ("claim", "published", "ours", "verdict")


@dataclass(frozen=True)
class Report:
    """What has been written.

    Attributes:
        claims: the published claims beside ours.
        files: written.
        missing: keys of trials that have no result.
        dropped: claims of the summary before, which results.csv doesn't give.
    """

    claims: list[Claim]
    files: list[Path]
    missing: list[str]
    dropped: Sequence[str] = ()


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
    figures = experiment.draw(records, folder)
    table, summary = folder / "results.csv", folder / "summary.json"
    write_rows(experiment.rows(records), table)
    claims = claims_of(name, table)
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
    _write_summary(content, summary)
    return Report(claims, [table, summary, *figures], missing)


def renew_report(name: str, folder: Path) -> Report:
    """Tell the claims anew from results.csv where the trials aren't kept, as in a checkout. All else stays as it is.

    Raises:
        ValueError: an unknown experiment, or no results.csv with its summary.json.
    """
    table, summary = folder / "results.csv", folder / "summary.json"
    claims, content = claims_of(name, table), _read_summary(summary)
    told = {claim.claim for claim in claims}
    dropped = [claim["claim"] for claim in content["claims"] if claim["claim"] not in told]
    _write_summary({**content, "claims": [asdict(claim) for claim in claims]}, summary)
    return Report(claims, [summary], content["missing"], dropped)


def claims_of(name: str, table: Path) -> list[Claim]:
    """The claims that an experiment's results.csv gives.

    Raises:
        ValueError: an unknown experiment, or the file isn't its table.
    """
    experiment, rows = find_experiment(name), read_rows(table)
    try:
        return experiment.claims(rows)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{table}: expected the table of {name}, found another ({error!r}). Run the experiment.") from error


def results_table(folder: Path) -> str:
    """The claims of all experiments whose summaries are in folder/NAME/, as Markdown.

    Raises:
        ValueError: there is no summary, or a file isn't one.
    """
    files = [file for name in EXPERIMENTS if (file := folder / name / "summary.json").is_file()]
    if not files:
        raise ValueError(f"folder: expected summaries in {folder}/NAME/summary.json, found none. Run `dilqr reproduce` first.")
    return "\n".join(_section(_read_summary(file)) for file in files)


def _section(summary: Mapping[str, Any]) -> str:
    head = f"## {summary['experiment'].upper()}. {summary['title']}"
    rows = [[str(claim[part]).replace("|", "\\|") for part in _PARTS] for claim in summary["claims"]]
    told = f"{summary['trials']} trials, {summary['seconds'] / 60:.1f} minutes of computing."
    if summary["missing"]:
        told += f" Without results: {_some(summary['missing'])}."
    lines = ["| claim | published | ours | verdict |", "|---|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)]
    return "\n".join((head, "", told, "", *lines, ""))


def _some(keys: Sequence[str]) -> str:
    rest = f" and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return ", ".join(keys[:_LISTED]) + rest


def _all_of(descriptions: list[dict[str, Any]]) -> dict[str, str]:
    """Each entry with all the values that it has in one of the descriptions."""
    names = dict.fromkeys(name for description in descriptions for name in description)
    return {name: ", ".join(sorted({str(d[name]) for d in descriptions if name in d})) for name in names}


def _write_summary(content: Mapping[str, Any], file: Path) -> None:
    write_text(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _read_summary(file: Path) -> dict[str, Any]:
    try:
        summary: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        _section(summary)  # it has all that a section needs
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: expected a summary of `dilqr reproduce`, found something else ({error!r}).") from error
    return summary
