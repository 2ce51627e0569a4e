"""`dilqr bench`: a quick run from end to end, what it refuses, and the formulas that all solvers share."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import dilqr_rl
from dilqr_rl.cli import main
from dilqr_rl.cli.bench import _benchmarks

CHECKOUT = Path(dilqr_rl.__file__).parents[1]
needs_checkout = pytest.mark.skipif(
    not (CHECKOUT / "benchmarks" / "run.py").is_file(), reason="the suite runs on an installation, away from the checkout"
)
QUICK = ("bench", "--quick", "--systems", "pendulum", "--horizons", "5")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """What a refused command says: one line on standard error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    said = capsys.readouterr().err
    assert exit_.value.code == 2
    assert said.count("\n") == 1, said
    return said.removeprefix("error: ").rstrip()


@needs_checkout
def test_a_quick_run_measures_and_the_next_one_keeps_what_it_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*QUICK, "--solvers", "torch", "--batches", "4", "--results", str(tmp_path)])
    assert "converged" in capsys.readouterr().out
    held = json.loads((tmp_path / "bench.json").read_text())
    assert {"processor", "cores", "torch", "numba"} <= set(held["machine"])
    assert list(held["cells"]) == ["torch | pendulum | T=5 | B=4"]
    for record in held["cells"].values():
        assert record["status"] == "measured", record
        assert record["converged"] == 1.0
        assert record["gradient_error"] < 1e-6  # of the central differences: 4e-8 at worst over all problems
        assert record["matching"] == record["checked"] == record["batch"]
        assert min(record["forward_seconds"] + record["backward_seconds"]) > 0
    assert (tmp_path / "bench.png").stat().st_size > 10_000

    first = (tmp_path / "bench.json").read_bytes()
    main([*QUICK, "--solvers", "torch", "--batches", "4", "--results", str(tmp_path)])
    assert (tmp_path / "bench.json").read_bytes() == first

    main(["bench", "--report", "--results", str(tmp_path)])
    assert "not measured" in capsys.readouterr().out


@needs_checkout
def test_a_peer_without_its_environment_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ("--results", str(tmp_path), "--environments", str(tmp_path / "none"))
    main([*QUICK, "--solvers", "fatrop", "--batches", "1", *folders])
    assert "not installed" in capsys.readouterr().out
    (record,) = json.loads((tmp_path / "bench.json").read_text())["cells"].values()
    assert (record["status"], record["reason"]) == ("missing", "not installed; `dilqr bench --install` does it")


@needs_checkout
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("--solvers", "acado"),
            "solvers: expected some of native, torch, hand-loop, mpc.pytorch, fatrop, ipopt, crocoddyl, pypose, theseus, got 'acado'.",
        ),
        (("--systems", "acrobot"), "systems: expected some of pendulum, cart-pole, got 'acrobot'."),
        (("--horizons", "10", "0"), "horizons: expected positive integers, got 0."),
        (("--batches", "-1"), "batches: expected positive integers, got -1."),
        (("-n", "0"), "repeats: expected positive integers, got 0."),
        (("--cap", "0"), "cap: expected a number of seconds, at least 1, got 0."),
        (("--budget", "nan"), "budget: expected a number of seconds, at least 1, got nan."),
    ],
)
def test_bad_input_is_refused(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], text: str) -> None:
    assert refused(capsys, "bench", *arguments) == text


@needs_checkout
def test_a_file_that_is_no_result_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert (
        refused(capsys, "bench", "--report", "--results", tmp_path) == f"{file}: no results there yet. Run `dilqr bench` first."
    )
    file.write_text("[]")
    assert refused(capsys, *QUICK, "--results", tmp_path).startswith(f"{file}: expected results of `dilqr bench`")


def test_an_installation_without_the_folder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dilqr_rl, "__file__", str(tmp_path / "site-packages" / "dilqr_rl" / "__init__.py"))
    text = "bench: expected a checkout of the repository with its folder benchmarks/, which no installed package has."
    assert refused(capsys, "bench", "--quick") == text


@needs_checkout
@pytest.mark.parametrize("name", ["pendulum", "cart-pole"])
def test_the_shared_formulas_are_the_planner_s_model(name: str) -> None:
    _benchmarks()
    from benchmarks.reference import problem
    from benchmarks.systems import SYSTEMS

    system = SYSTEMS[name]
    x = (
        torch.tensor(system.starts(5), dtype=torch.float64) + 0.1
    )  # off the circle, where an angle's derivative needs its radius
    u = torch.tensor(system.targets(5, 1), dtype=torch.float64)
    dynamics = problem(system, 1).dynamics
    true = torch.func.vmap(torch.func.jacfwd(dynamics, argnums=(0, 1)))(x, u)
    values = list(system.physics.values())
    for place in range(5):
        arguments = (math, x[place].tolist(), u[place].item(), values)
        np.testing.assert_allclose(system.step(*arguments), dynamics(x[place], u[place]).detach(), rtol=1e-14, atol=1e-15)
        expected = torch.cat([part[place] for part in true], dim=-1).detach()
        np.testing.assert_allclose(system.jacobian(*arguments), expected, rtol=1e-12, atol=1e-14)


@needs_checkout
def test_the_hand_written_loop_solves_the_pendulum() -> None:
    _benchmarks()
    from benchmarks.peers.hand_loop import Peer
    from benchmarks.reference import residuals
    from benchmarks.systems import SYSTEMS

    system = SYSTEMS["pendulum"]
    x0 = np.array(system.starts(4))
    loop = Peer(system, 10)
    loop.prepare(x0, np.array(system.targets(4, 10)))
    loop.forward()
    controls, iterations = loop.result()
    # It stops at steps below 1e-8, its first-order residual lies below that times a curvature of about one.
    assert residuals(system, x0, controls).max() < 1e-7
    assert iterations.max() < 100
