"""E1's measurements against answers on paper, and its verdicts against results that are wrong on purpose."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dilqr_rl.experiments import Record, e1
from dilqr_rl.experiments.accuracy import GRADIENTS, differences, fixed_point_gradients, gradients, relative_error
from dilqr_rl.experiments.systems import closed_problem, problem, starts

# theta, u*, du*/dtheta of [DiLQR A.4.2]
CLOSED = ((0.1, -0.131170, -0.902803), (1.0, -0.410245, -0.132900), (10.0, -0.676582, -0.00929891))
NAME = "terminal_cost.theta"


@pytest.fixture(scope="module")
def records() -> list[Record]:
    settings = {"horizon": 8, "starts": 3, "seed": 0}
    chosen = {
        "cartpole-t8": {"kind": "accuracy", "system": "cartpole", **settings},
        "pendulum-t8": {"kind": "accuracy", "system": "pendulum", **settings},
        "linear-t8": {"kind": "accuracy", "system": "linear", **settings},
        "closed": {"kind": "closed", "thetas": [0.1, 1.0, 10.0]},
        "dense-cartpole": {"kind": "dense", "system": "cartpole", **settings, "horizon": 3},
    }
    return [Record(key, value, e1.run(value, Path()), 1.0) for key, value in chosen.items()]


def closed_slopes(theta: float) -> dict[str, float]:
    """What every measurement says of the closed example, whose loss is a sum that moves with theta as u* does."""
    example, x0 = closed_problem(theta), torch.ones(1, 2, dtype=torch.float64)
    found = {method: gradients(example, (NAME,), x0, method)[0][NAME].item() for method in GRADIENTS}
    _, solution = gradients(example, (NAME,), x0, "implicit")
    truth = differences(example, (NAME,), x0, solution.controls.detach())
    assert truth.usable.all()
    return {
        **found,
        "differences": truth.quotients[NAME].item(),
        "rough": truth.rough[NAME].item(),
        "dense": fixed_point_gradients(example, (NAME,), x0)[NAME].item(),
    }


def test_every_measurement_follows_the_closed_example() -> None:
    found = {theta: closed_slopes(theta) for theta, _, _ in CLOSED}
    for theta, _, slope in CLOSED:
        for method, value in found[theta].items():
            assert value / found[1.0]["implicit"] == pytest.approx(slope / -0.132900, rel=1e-5), method  # of six printed digits


def test_the_closed_trial_has_the_published_digits(records: list[Record]) -> None:
    rows = records[3].result["closed"]
    assert [row["theta"] for row in rows] == [theta for theta, _, _ in CLOSED for _ in GRADIENTS]
    for row, (_, control, slope) in zip(rows, [case for case in CLOSED for _ in GRADIENTS], strict=True):
        assert (row["control"], row["slope"]) == (pytest.approx(control, rel=1e-5), pytest.approx(slope, rel=1e-5))
        assert row["slope_error"] < 1e-12


def test_the_implicit_gradient_is_exact_and_diffmpc_s_is_where_dynamics_are_linear(records: list[Record]) -> None:
    cartpole, pendulum, linear, _, dense = (record.result for record in records)
    for result in (cartpole, pendulum, linear):
        for group, errors in result["errors"]["implicit"].items():
            assert all(error is None or error < 1e-6 for error in errors), group  # differences err 1e-7 at most
    assert max(linear["errors"]["diffmpc"]["physics"]) < 1e-6
    assert min(cartpole["errors"]["diffmpc"]["physics"]) > 1e-3
    assert dense["dense_error"] < 1e-9


def test_the_errors_are_those_of_each_start() -> None:
    tested, x0 = problem("cartpole", 5), starts("cartpole", 4, 1)
    together, _ = gradients(tested, ("dynamics.length",), x0, "implicit")
    for place in range(4):
        alone, _ = gradients(tested, ("dynamics.length",), x0[place : place + 1], "implicit")
        torch.testing.assert_close(together["dynamics.length"][place], alone["dynamics.length"][0], rtol=1e-9, atol=1e-12)
    off = {"dynamics.length": 1.25 * together["dynamics.length"]}
    error = relative_error(off, together, ("dynamics.length",))
    torch.testing.assert_close(error, torch.full((4,), 0.25, dtype=torch.float64))


def test_verdicts_turn_when_results_do(records: list[Record]) -> None:
    assert "not reproduced" not in verdicts(
        records, "The implicit gradient", "du*/dθ", "The dense system", "DiffMPC's formula is"
    )
    wrong = copy.deepcopy(records)
    wrong[0].result["errors"]["implicit"]["goal"][0] = 1e-3
    wrong[2].result["errors"]["diffmpc"]["goal"][0] = 1e-3
    wrong[3].result["closed"][0]["slope"] *= 1.001
    wrong[4].result["dense_error"] = 1e-6
    assert set(verdicts(wrong, "The implicit gradient", "du*/dθ", "The dense system", "DiffMPC's formula is")) == {
        "not reproduced"
    }


def test_what_is_left_out_is_told_with_its_reason(records: list[Record]) -> None:
    changed = copy.deepcopy(records[:3])
    for errors in changed[2].result["errors"].values():
        errors["goal"][0] = errors["weights"][1] = None
    changed[2].result["apart"][1] = True
    before, after = ({claim.claim: claim.ours for claim in e1.claims(e1.rows(r))} for r in (records[:3], changed))
    exact = "The implicit gradient is exact: physics, weights, goal, bounds, start state"
    counts = [
        [int(number) for number in re.findall(r"over (\d+) .* at (\d+) .* at (\d+) ", told[exact])[0]]
        for told in (before, after)
    ]
    assert np.subtract(*counts).tolist() == [2, -1, -1]


def verdicts(records: list[Record], *beginnings: str) -> list[str]:
    found = [claim.verdict for claim in e1.claims(e1.rows(records)) if claim.claim.startswith(beginnings)]
    assert len(found) == len([text for text in beginnings if not text.endswith("formula is")]) + 1
    return found


def test_the_rows_and_the_figure_hold_every_group_and_method(records: list[Record], tmp_path: Path) -> None:
    rows = e1.rows(records)
    accuracy = [row for row in rows if "group" in row]
    assert [(row["system"], row["group"], row["start"]) for row in accuracy] == [
        (system, group, start) for system in ("cartpole", "pendulum", "linear") for group in e1.GROUPS for start in range(3)
    ]
    for row in accuracy:
        assert ("left_out" in row) != {*GRADIENTS, "differences"}.issubset(row)
    (file,) = e1.draw(records, tmp_path)
    assert file.read_bytes().startswith(b"\x89PNG")
