"""docs/results.md and the summaries say what the csv files in results/ give, and nothing else."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripts import load_script

from dilqr_rl.experiments import EXPERIMENTS, claims_of, results_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PAGE = ROOT / "docs" / "results.md"

if not PAGE.exists():
    pytest.skip("not in a checkout", allow_module_level=True)

# How claims begin that were told from trials whose numbers had no columns yet. Run again, an experiment leaves this list.
NOT_IN_CSV = {"r1": ("pendulum: ", "cartpole: ")}


def summary(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name / "summary.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_claim_and_verdict_is_what_the_csv_gives(name: str) -> None:
    found = [asdict(claim) for claim in claims_of(name, RESULTS / name / "results.csv")]
    older = NOT_IN_CSV.get(name, ())
    told = [claim for claim in summary(name)["claims"] if not claim["claim"].startswith(older)]
    assert found == told
    assert found or name == "r2"
    assert all(any(claim["claim"].startswith(beginning) for claim in summary(name)["claims"]) for beginning in older)


def test_the_page_has_the_tables_of_the_summaries() -> None:
    page, table = PAGE.read_text(encoding="utf-8"), results_table(RESULTS)
    script = load_script(ROOT / "docs" / "update_results.py")
    assert [section[:5] for section in script.sections(table)] == [f"## {name.upper()}" for name in EXPERIMENTS]
    assert script.updated(page, table) == page
    links = re.findall(r"\((\.\./results/.*?)\)", page)
    assert len(links) > len(EXPERIMENTS)
    assert all((PAGE.parent / path).exists() for path in links)


@pytest.mark.parametrize(
    ("claim", "kind", "loss"),
    [("cost error", "cost", "cost_loss"), ("positive by", "dx", "physics_loss"), ("as published", "dx-free", "physics_loss")],
)
def test_e5_is_told_of_all_runs_and_seed_by_seed(claim: str, kind: str, loss: str) -> None:
    """Recomputed here, by NumPy, from the file's texts."""
    with (RESULTS / "e5" / "results.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] == kind]
    ours, theirs = (
        np.array([float(row[loss]) for row in sorted(rows, key=lambda row: row["seed"]) if row["gradient"] == gradient])
        for gradient in ("implicit", "diffmpc")
    )
    assert ours.shape == theirs.shape == (6,)
    (told,) = [entry["ours"] for entry in summary("e5")["claims"] if claim in entry["claim"]]
    for name, of in (("median", np.median), ("mean", np.mean)):
        assert f"in the {name} ({of(ours):.2g} and {of(theirs):.2g})" in told
    assert told.endswith(f"lower in {(ours < theirs).sum()} of 6 seeds")
