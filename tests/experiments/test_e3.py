"""E3: what is called imitation and model loss is that, and what is told of the trials can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dilqr_rl import ILQR, ILQROptions
from dilqr_rl.agents.learners import LinearDynamics
from dilqr_rl.agents.networks import seeded
from dilqr_rl.experiments import Record, e3
from dilqr_rl.experiments.systems import linear_problem, linear_starts


@pytest.fixture(scope="module")
def found(smoke: Callable[[str], dict[str, Record]]) -> dict[str, Any]:
    return {record.settings["method"]: record.result for record in smoke("e3").values()}


def test_losses_at_the_start_are_those_of_the_drawn_model(found: dict[str, Any]) -> None:
    """The published learner's draw, planned with and compared by hand."""
    expert, other = linear_problem(5, 0), linear_problem(5, 0)
    other.dynamics = LinearDynamics.draw(3, 3, seeded(0))
    with torch.no_grad():
        ends = [ILQR(problem, ILQROptions(tolerance=1e-10))(linear_starts(128, 3)) for problem in (expert, other)]
    errors = [
        (a - b).numpy() ** 2
        for a, b in zip((ends[0].states[:, 1:], ends[0].controls), (ends[1].states[:, 1:], ends[1].controls), strict=True)
    ]
    model = sum(
        np.mean((expert.get_parameter(f"dynamics.{name}") - other.get_parameter(f"dynamics.{name}")).detach().numpy() ** 2)
        for name in "AB"
    )
    for method, result in found.items():
        assert result["start_loss"] == pytest.approx(np.mean(np.concatenate(errors, axis=None)), rel=1e-6), method
        assert result["curve"]["model"][0] == pytest.approx(model, rel=1e-12), method


def test_levenberg_marquardt_finds_the_expert_and_few_steps_of_rmsprop_do_not(found: dict[str, Any]) -> None:
    for method in ("lm", "lm-restarts", "lm-controls"):
        assert found[method]["imitation_loss"] < 1e-15, method
        assert found[method]["model_loss"] < 1e-12, method
    assert 1e-3 * found["rmsprop"]["start_loss"] < found["rmsprop"]["imitation_loss"] < found["rmsprop"]["start_loss"]
    assert found["rmsprop"]["curve"]["step"] == [0.0, 10.0, 20.0]


def test_paper_preset_has_eight_starts_of_each_expert_for_each_method() -> None:
    trials = e3.trials("paper")
    assert len({trial.key for trial in trials}) == len(trials) == 4 * 2 * 8
    published = [trial for trial in trials if trial.settings["method"] == "rmsprop" and trial.settings["expert"] == 0]
    assert [trial.settings["start"] for trial in published] == [*range(8)]
    assert {trial.settings["steps"] for trial in published} == {5000}


def made_up(solved: int) -> list[Record]:
    """Of 8 trials of each of two experts, the first few reach 1e-5 (RMSprop) or 1e-20 of a start of 2; others stick at 0.1."""
    records = []
    for method, least in (("rmsprop", 2e-5), ("lm", 2e-20)):
        for expert in (0, 1):
            for start in range(8):
                loss = least if start < solved else 0.1
                curve = {"step": [0.0, 10.0], "imitation": [2.0, loss], "model": [1.0, 100 * loss]}
                result = {"start_loss": 2.0, "imitation_loss": loss, "model_loss": 100 * loss, "best_step": 40 + start}
                settings = {"method": method, "expert": expert, "start": start, "steps": 10}
                key = f"{method}-{expert}-{start}"
                records.append(Record(key, settings, {**result, "fit_seconds": 3.0, "curve": curve}, 1.0))
    return records


def test_claims_count_what_reaches_zero() -> None:
    rmsprop, lm, model = e3.claims(e3.rows(made_up(3)))
    several = "3 of 8, 3 of 8 (experts 1, 2, ...)"
    assert rmsprop.ours == f"{several}; of these 6, 0 below 1e-10 of the start, median 41 steps, 3.0 s"
    assert lm.ours == f"{several}; of these 6, 6 below 1e-10 of the start, median 41 steps, 3.0 s"
    assert (rmsprop.verdict, lm.verdict) == ("reproduced", "new")
    assert model.ours == "model loss 0.001 in the median, 0.002 at most; where it sticks 10, at least 10"
    assert [row["solved"] for row in e3.rows(made_up(3))].count(True) == 12


@pytest.mark.parametrize(
    ("solved", "verdict"), [(0, "not reproduced"), (1, "not reproduced"), (2, "reproduced"), (7, "partly")]
)
def test_verdict_turns_with_the_count(solved: int, verdict: str) -> None:
    assert e3.claims(e3.rows(made_up(solved)))[0].verdict == verdict


def test_the_figure_is_drawn(tmp_path: Path) -> None:
    (file,) = e3.draw(made_up(3), tmp_path)
    assert file.read_bytes().startswith(b"\x89PNG")
    assert e3.draw([], tmp_path) == []
