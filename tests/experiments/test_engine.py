"""The engine: what a run leaves, whatever happens to it and to its workers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import hears_ctrl_c, started
from trial_functions import behave

from dilqr_rl.experiments import EngineOptions, Run, Trial, read_records, run_trials

TRIALS = [
    *(Trial(f"draw-seed{seed}", {"what": "draw", "seed": seed}, estimate=2.0) for seed in (0, 1)),
    Trial("raise", {"what": "raise"}, estimate=50.0),
    Trial("nan", {"what": "nan"}),
    Trial("die-once", {"what": "die once", "seed": 3}),
    Trial("die", {"what": "die"}, estimate=100.0),
]
SUM = [Trial("sum-seed0", {"what": "draw", "seed": 0})]


@pytest.fixture(scope="module", params=["processes", pytest.param("ray", marks=pytest.mark.slow)])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, list[str]]:
    """All trials above, with either engine: the run, its folder, and the order in which the trials ended."""
    folder, order = tmp_path_factory.mktemp(request.param), []
    options = EngineOptions(engine=request.param, workers=2, retries=1)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "ray":
            patch.setenv("RAY_worker_niceness", "0")  # by Ray's own 15 a busy machine starts none in minutes
            require_ray()
        run = run_trials(behave, TRIALS, folder, options, lambda trial, record: order.append(trial.key))
    return run, folder, order


PROBE = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
print("answer", ray.get(ray.remote(lambda: 42).remote()))
"""


def require_ray() -> None:
    """Skip where there is no Ray, or where it runs nothing of its own either: then it waits for ever."""
    pytest.importorskip("ray")
    with started([sys.executable, "-c", PROBE], stderr=subprocess.STDOUT) as process:
        try:
            told, _ = process.communicate(timeout=180)
        except subprocess.TimeoutExpired:
            told = "nothing within 180 s"
    if "answer 42" not in told:
        pytest.skip(f"Ray doesn't run here: {told[-500:]}")


def test_results_are_those_of_a_call_here_to_the_last_bit(outcome: tuple[Run, Path, list[str]]) -> None:
    run, folder, order = outcome
    for seed in (0, 1):
        expected = torch.randn(5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        held = json.loads((folder / "trials" / f"draw-seed{seed}.json").read_text())
        assert held["result"] == run.records[f"draw-seed{seed}"].result
        np.testing.assert_array_equal(held["result"]["numbers"], expected)
        assert held["settings"] == {"what": "draw", "seed": seed}
        assert held["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]  # a build has two names
        assert 0 <= held["seconds"] < 10
        assert held["attempts"] == 1
    assert sorted(order) == sorted(trial.key for trial in TRIALS)
    assert list(run.records) == [trial.key for trial in TRIALS if trial.key in run.records]


def test_each_trial_has_a_fresh_process_with_one_thread(outcome: tuple[Run, Path, list[str]]) -> None:
    told = [outcome[0].records[f"draw-seed{seed}"].result for seed in (0, 1)]
    assert len({one["process"] for one in told} | {os.getpid()}) == 3
    assert [one["threads"] for one in told] == [{"torch": 1, "variable": "1"}] * 2


def test_a_trial_whose_process_was_killed_is_started_again_with_what_it_had_kept(outcome: tuple[Run, Path, list[str]]) -> None:
    run, folder, _ = outcome
    assert run.records["die-once"].attempts == 2
    assert run.records["die-once"].result == {"seed": 3, "found": True}
    assert not (folder / "work" / "die-once").exists()


def test_failures_are_told_by_name_and_keep_nobody(outcome: tuple[Run, Path, list[str]]) -> None:
    run, folder, _ = outcome
    assert set(run.failures) == {"raise", "nan", "die"}
    assert "ZeroDivisionError: the trial's own error" in run.failures["raise"]
    assert "Out of range float" in run.failures["nan"]
    assert run.failures["die"].startswith("2 times its process ended without an answer")
    for key, text in run.failures.items():
        assert text in (folder / "trials" / f"{key}.error.txt").read_text()
        assert not (folder / "trials" / f"{key}.json").exists()


def test_a_second_run_does_only_what_is_missing(outcome: tuple[Run, Path, list[str]]) -> None:
    run, folder, _ = outcome
    before = {path: path.stat().st_mtime_ns for path in folder.glob("trials/*.json")}
    done = [trial for trial in TRIALS if trial.key in run.records]
    again = run_trials(behave, done, folder, on_result=lambda trial, record: pytest.fail(trial.key))
    assert again == Run(run.records)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("trials/*.json")} == before


def test_the_longest_run_first_and_other_settings_are_refused_or_redone(tmp_path: Path) -> None:
    order: list[str] = []
    trials = [Trial(f"draw-{cost}", {"what": "draw", "seed": cost}, estimate=cost) for cost in (1, 3)]
    run_trials(behave, trials, tmp_path, EngineOptions(workers=1), lambda trial, record: order.append(trial.key))
    assert order == ["draw-3", "draw-1"]

    changed = [trials[0], replace(trials[1], settings={"what": "draw", "seed": 4})]
    with pytest.raises(
        ValueError,
        match=r"draw-3\.json: was made with seed = 3, not 4\. Choose another folder, or do such trials again \(--redo, ",
    ):
        run_trials(behave, changed, tmp_path)
    run = run_trials(behave, changed, tmp_path, EngineOptions(redo=True), lambda trial, record: order.append(trial.key))
    assert order[2:] == ["draw-3"]
    expected = torch.randn(5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    np.testing.assert_array_equal(run.records["draw-3"].result["numbers"], expected)


SCRIPT = """
from pathlib import Path
from dilqr_rl.experiments import EngineOptions, Trial, run_trials
from trial_functions import behave
trials = [Trial("short", {"what": "draw", "seed": 0}, 2.0), Trial("long", {"what": "sleep", "seconds": 600})]
run_trials(behave, trials, Path("."), EngineOptions(workers=1))
"""


@pytest.mark.parametrize(
    ("how", "status"),
    [(signal.SIGKILL, -signal.SIGKILL), pytest.param(signal.SIGINT, -signal.SIGINT, marks=[pytest.mark.slow, hears_ctrl_c])],
)
def test_a_run_that_is_killed_keeps_what_is_done_and_leaves_no_process(
    tmp_path: Path, how: signal.Signals, status: int
) -> None:
    path = os.pathsep.join(sys.path)
    command, told = [sys.executable, "-c", SCRIPT], tmp_path / "work" / "long" / "process"
    with started(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL) as run:
        wait_for(lambda: told.is_file() and told.read_text())
        run.send_signal(how)
        assert run.wait(10) == status
    worker = int(told.read_text())
    wait_for(lambda: not alive(worker))
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["short.json"]
    assert set(read_records([Trial("short", {"what": "draw", "seed": 0})], tmp_path)) == {"short"}


def wait_for(reached: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def local(settings: object, folder: Path) -> dict[str, object]:
    return {}


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (
            lambda folder: Trial("Draw 1", {}),
            "key: expected lower-case letters, digits, dots and dashes, got 'Draw 1'. Choose another.",
        ),
        (lambda folder: Trial("draw", {"seed": float("nan")}), "settings of draw: expected numbers, texts, lists and dicts"),
        (lambda folder: Trial("draw", {"seed": local}), "settings of draw: expected numbers, texts, lists and dicts"),
        (lambda folder: run_trials(behave, [*SUM, *SUM], folder), "trials: expected each key once, got 'sum-seed0' 2 times."),
        (lambda folder: run_trials(lambda s, f: {}, SUM, folder), "function: expected one at the top level of a module"),
        (lambda folder: EngineOptions(engine="threads"), "engine: expected one of ('processes', 'ray'), got 'threads'."),
        (lambda folder: EngineOptions(workers=0), "workers: expected a positive integer, got 0."),
        (lambda folder: EngineOptions(retries=-1), "retries: expected 0 or more, got -1."),
    ],
)
def test_bad_input_is_refused(call: Callable[[Path], object], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        call(tmp_path)


@pytest.mark.parametrize(
    "content", ["[]", "{", '{"key": "sum-seed0"}', '{"key": "x", "settings": {}, "result": {}, "seconds": 1}']
)
def test_a_file_that_is_no_record_of_the_trial_is_refused(content: str, tmp_path: Path) -> None:
    file = tmp_path / "trials" / "sum-seed0.json"
    file.parent.mkdir()
    file.write_text(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: expected the record of "):
        run_trials(behave, SUM, tmp_path)


def test_ray_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r'^engine: "ray" needs Ray: pip install "dilqr_rl\[ray\]"\.$'):
        run_trials(behave, SUM, tmp_path, EngineOptions(engine="ray"))
