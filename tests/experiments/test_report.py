"""What a run leaves for the reader."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import trial_experiment

from dilqr_rl.experiments import EXPERIMENTS, PRESETS, Claim, Trial, find_experiment, results_table, write_report
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
def test_the_smoke_preset_runs_to_its_report(name: str, tmp_path: Path) -> None:
    experiment = find_experiment(name)
    trials, store = experiment.trials("smoke"), TrialFolder(tmp_path)
    for trial in trials:
        store.work(trial).mkdir(parents=True)
        store.write(trial, Record(trial.key, trial.settings, experiment.run(trial.settings, store.work(trial)), 1.0))
    report = write_report(name, trials, tmp_path, "smoke")
    assert report.missing == []
    assert all(claim.ours for claim in report.claims)
    assert {"results.csv", "summary.json"} < {file.name for file in report.files}  # and a figure at least
    assert len((tmp_path / "results.csv").read_text().splitlines()) > len(trials) / 2


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_without_results_claims_nothing_measured(name: str) -> None:
    assert all(claim.verdict == "not measured" for claim in find_experiment(name).claims([]))
