"""What a run leaves for the reader."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import trial_experiment

from dilqr_rl.experiments import (
    EXPERIMENTS,
    PRESETS,
    Claim,
    Trial,
    find_experiment,
    read_rows,
    renew_report,
    results_table,
    write_report,
)
from dilqr_rl.experiments.tables import write_rows
from dilqr_rl.experiments.trials import Record, TrialFolder

TRIALS = trial_experiment.trials("paper")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of the first two of three trials."""
    monkeypatch.setitem(EXPERIMENTS, "e0", "trial_experiment")
    for trial in TRIALS[:2]:
        number = trial.settings["number"]
        record = Record(
            trial.key, trial.settings, {"square": number**2}, 30.0 * number, 1, {"torch": f"2.{number}"}, {"cores": 2}
        )
        TrialFolder(tmp_path / "e0").write(trial, record)
    return tmp_path


def test_the_report_holds_rows_claims_and_what_is_missing(folder: Path) -> None:
    report = write_report("e0", TRIALS, folder / "e0", "paper")
    assert report.missing == ["square-3"]
    assert all(file.is_file() for file in report.files)
    with (folder / "e0" / "results.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"number": "1", "square": "1"}, {"number": "2", "square": "4"}]
    summary = json.loads((folder / "e0" / "summary.json").read_text())
    assert summary["claims"] == [{"claim": "The sum of squares |n|", "published": "14", "ours": "5", "verdict": "reproduced"}]
    assert (summary["trials"], summary["missing"], summary["seconds"]) == (2, ["square-3"], 90.0)
    assert summary["versions"] == {"torch": "2.1, 2.2"}
    assert summary["machine"] == {"cores": "2"}


def test_the_table_is_that_of_the_summaries(folder: Path) -> None:
    write_report("e0", TRIALS, folder / "e0", "paper")
    assert results_table(folder) == (
        "## E0. Squares\n\n2 trials, 1.5 minutes of computing. Without results: square-3.\n\n"
        "| claim | published | ours | verdict |\n|---|---|---|---|\n"
        "| The sum of squares \\|n\\| | 14 | 5 | reproduced |\n"
    )


def test_results_of_other_settings_are_not_mixed_in(folder: Path) -> None:
    changed = [*TRIALS[:1], Trial("square-2", {"number": 2, "fails": False, "power": 3})]
    with pytest.raises(ValueError, match=r"square-2\.json: was made with power = 'nothing', not 3\."):
        write_report("e0", changed, folder / "e0", "paper")


def test_claims_are_told_again_from_the_csv_file(folder: Path) -> None:
    write_report("e0", TRIALS, folder / "e0", "paper")
    before = json.loads((folder / "e0" / "summary.json").read_text())
    shutil.rmtree(folder / "e0" / "trials")
    with (folder / "e0" / "results.csv").open("a") as file:
        file.write("3,9\n")
    report = renew_report("e0", folder / "e0")
    assert (report.claims[0].ours, report.missing, list(report.dropped)) == ("14", ["square-3"], [])
    assert json.loads((folder / "e0" / "summary.json").read_text()) == {**before, "claims": [asdict(report.claims[0])]}

    before["claims"][0]["claim"] = "Another"
    (folder / "e0" / "summary.json").write_text(json.dumps(before))
    assert list(renew_report("e0", folder / "e0").dropped) == ["Another"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("number,square\n1\n", r"expected a cell for each column, line 2 has more or fewer\."),
        ("number,square\n1,1,1\n", r"expected a cell for each column, line 2 has more or fewer\."),
        ("number,cube\n1,1\n", r"expected the table of e0, found another \(KeyError\('square'\)\)\."),
        ("number,square\n1,one\n", r"expected the table of e0, found another \(TypeError"),
        (b"\xff\xfe", r"expected a table of `dilqr reproduce`, found none \('utf-8'"),
    ],
)
def test_a_csv_file_that_is_no_table_of_the_experiment_is_refused(folder: Path, text: str | bytes, message: str) -> None:
    write_report("e0", TRIALS, folder / "e0", "paper")
    (folder / "e0" / "results.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"results\.csv: {message}.* Run the experiment\.$"):
        renew_report("e0", folder / "e0")


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    rows = [
        {"number": 1e-300, "count": 3, "good": False, "text": "lm, restarts", "list": [100, 50]},
        {"number": math.inf, "text": "nan-like", "count": None},
        {"number": 0.1 + 0.2, "text": '"quoted" | e1'},
    ]
    write_rows(rows, tmp_path / "rows.csv")
    assert read_rows(tmp_path / "rows.csv") == [{n: v for n, v in row.items() if v is not None} for row in rows]


def test_bad_input_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(str(folder))}/none: no results of e0 there yet\. Run it first\.$"):
        write_report("e0", TRIALS, folder / "none", "paper")
    with pytest.raises(ValueError, match=r"^folder: expected summaries in .*, found none\. Run `dilqr reproduce` first\.$"):
        results_table(folder / "none")
    (folder / "e0" / "summary.json").write_text("[]")
    with pytest.raises(ValueError, match=r"summary\.json: expected a summary of `dilqr reproduce`, found something else"):
        results_table(folder)
    with pytest.raises(ValueError, match=r"^verdict: expected one of \('reproduced', .*, got 'true'\.$"):
        Claim("a", "b", "c", "true")


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_has_trials_with_keys_of_their_own(name: str, preset: str) -> None:
    trials = find_experiment(name).trials(preset)
    assert len({trial.key for trial in trials}) == len(trials) > 0
    assert len({json.dumps(trial.settings, sort_keys=True) for trial in trials}) == len(trials)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_smoke_preset_runs_to_its_report(name: str, smoke: Callable[[str], dict[str, Record]], tmp_path: Path) -> None:
    trials, store = find_experiment(name).trials("smoke"), TrialFolder(tmp_path)
    for trial in trials:
        store.work(trial).mkdir(parents=True)
        store.write(trial, smoke(name)[trial.key])
    report = write_report(name, trials, tmp_path, "smoke")
    assert report.missing == []
    assert report.claims
    assert all(claim.ours for claim in report.claims)
    again = renew_report(name, tmp_path)
    assert (again.claims, list(again.dropped)) == (report.claims, [])
    assert {"results.csv", "summary.json"} < {file.name for file in report.files}  # and a figure at least
    assert len((tmp_path / "results.csv").read_text().splitlines()) > len(trials) / 2


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_without_results_claims_nothing_measured(name: str) -> None:
    """E2 names what it would measure, the others say nothing."""
    assert [claim.verdict for claim in find_experiment(name).claims([])] == ["not measured"] * (5 if name == "e2" else 0)
