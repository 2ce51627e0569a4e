"""`dilqr reproduce` from the shell's side."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from dilqr_rl.cli import main
from dilqr_rl.experiments import EXPERIMENTS


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for results; the experiment e0 has three trials, one of which fails in the preset "quick"."""
    monkeypatch.setitem(EXPERIMENTS, "e0", "trial_experiment")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "results"


def reproduce(*arguments: str | Path) -> None:
    main(["reproduce", *(str(argument) for argument in arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        reproduce(*arguments)
    assert exit_.value.code == 2
    return capsys.readouterr().err.removeprefix("error: ").rstrip("\n")


def test_a_run_goes_on_where_it_stopped_and_tells_the_claims(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce("e0", "--preset", "paper", "--out", out, "--only", "square-1", "--workers", "1")
    said = capsys.readouterr().out
    assert "without results: square-2, square-3" in said
    first = (out / "e0" / "trials" / "square-1.json").stat().st_mtime_ns

    reproduce("e0", "--preset", "paper", "--out", out)
    said = capsys.readouterr().out
    assert f"1 of 3 trials are there already, in {out}/e0" in said.replace("\n", "")
    assert re.search(r"The sum of squares \|n\|.*14.*14.*reproduced", said)
    assert (out / "e0" / "trials" / "square-1.json").stat().st_mtime_ns == first
    assert sorted(path.name for path in (out / "e0").iterdir()) == ["results.csv", "squares.png", "summary.json", "trials"]
    assert json.loads((out / "e0" / "summary.json").read_text())["preset"] == "paper"

    (out / "e0" / "summary.json").unlink()
    reproduce("e0", "--preset", "paper", "--out", out, "--report")
    assert (out / "e0" / "summary.json").is_file()


def test_a_trial_that_fails_is_named_and_the_others_are_kept(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = refused(capsys, "e0", "--out", out)
    assert text == (
        f"1 of 3 trials failed: square-2. {out}/quick/e0/trials/NAME.error.txt says why. Run it again to go on; what is done is kept."
    )
    folder = out / "quick" / "e0"
    assert "RuntimeError: the second can't be squared" in (folder / "trials" / "square-2.error.txt").read_text()
    assert json.loads((folder / "summary.json").read_text())["missing"] == ["square-2"]


def test_claims_are_told_from_the_committed_csv_where_no_trials_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = Path(__file__).parents[2] / "results" / "e5"
    if not kept.exists():
        pytest.skip("not in a checkout")
    shutil.copytree(kept, tmp_path / "e5", ignore=shutil.ignore_patterns("trials", "work"))
    (tmp_path / "e5" / "summary.json").write_text((kept / "summary.json").read_text().replace("seeds", "places"))
    reproduce("e5", "--preset", "paper", "--report", "--out", tmp_path)
    said = capsys.readouterr().out
    assert f"there are no trials in {tmp_path}/e5: told from its results.csv; the figures stay" in said
    assert "seeds" in said
    for file in kept.iterdir():
        assert file.is_dir() or (tmp_path / "e5" / file.name).read_bytes() == file.read_bytes()


def test_bad_input_is_refused(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "e9", "--out", out) == f"name: expected one of {', '.join(EXPERIMENTS)}, got 'e9'."
    names = "square-1, square-2, square-3"
    assert (
        refused(capsys, "e0", "--out", out, "--only", "cube")
        == f"--only: expected a part of one of the names {names}, got 'cube'."
    )
    assert refused(capsys, "e0", "--out", out, "--workers", "0") == "workers: expected a positive integer, got 0."
    assert refused(capsys, "e0", "--out", out, "--report") == f"{out}/quick/e0: no results of e0 there yet. Run it first."
    assert not out.exists()
