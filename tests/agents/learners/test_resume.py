"""A fit that was cut off, at any point and by any means, goes on to bitwise what it would have come to."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_data import TINY, equal, make, plans, quick, tensors
from processes import started
from safetensors import safe_open
from safetensors.torch import save_file

from dilqr_rl.agents import Demonstrations
from dilqr_rl.agents.learners import LEARNERS, Damping, FitOptions, FitResult, Learner

ALWAYS: dict[str, Any] = {"checkpoint_seconds": 0}
EACH = [(name, optimizer) for name in LEARNERS for optimizer in LEARNERS[name].optimizers]


class CutOffError(Exception):
    """Stands for whatever ends a process."""


class After:
    """Raises after an epoch."""

    def __init__(self, epoch: int, error: type[BaseException] = CutOffError) -> None:
        self.epoch, self.error = epoch, error

    def __call__(self, result: FitResult) -> None:
        if result.history[-1]["epoch"] == self.epoch:
            raise self.error


def snapshot(folder: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(folder / "fit.safetensors", framework="pt") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def progress(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(snapshot(folder)[0]["progress"])
    return found


def log(folder: Path) -> list[dict[str, str]]:
    with (folder / "progress.csv").open() as file:
        return list(csv.DictReader(file))


def assert_same_fit(first: Path, second: Path) -> None:
    """All that two finished fits keep: parameters, best ones, the optimiser, figures, the log."""
    (metadata, kept), (other_metadata, other_kept) = snapshot(first), snapshot(second)
    assert metadata == other_metadata
    assert equal(kept, other_kept)
    assert log(first) == log(second)


def assert_resumes_the_same(
    make_one: Any, train: Demonstrations, held_out: Demonstrations, options: FitOptions, stops: tuple[int, ...], folder: Path
) -> FitResult:
    """One fit without interruption beside one that is cut off after each of `stops`, and begins with a new learner each time."""
    whole, whole_result = make_one(), None
    whole_result = whole.fit(train, held_out, options, folder=folder / "whole")
    for stop in stops:
        with pytest.raises(CutOffError):
            make_one().fit(train, held_out, options, folder=folder / "cut", resume=True, on_epoch=After(stop))
        assert progress(folder / "cut")["epoch"] < stop  # what came after the last write is lost
    learner = make_one()
    result = learner.fit(train, held_out, options, folder=folder / "cut", resume=True)
    assert replace(result, seconds=0.0) == replace(whole_result, seconds=0.0)
    assert equal(tensors(learner), tensors(whole))
    assert_same_fit(folder / "whole", folder / "cut")
    return whole_result


@pytest.mark.parametrize(("name", "optimizer"), EACH)
def test_every_learner_with_every_optimizer(
    name: str, optimizer: Any, train: Demonstrations, held_out: Demonstrations, tmp_path: Path
) -> None:
    options = quick(optimizer, epochs=5, final_rate=0.1, validate_every=2, restarts=1, **ALWAYS)
    result = assert_resumes_the_same(lambda: make(name), train, held_out, options, (1, 3), tmp_path)
    assert result.history[-1]["epoch"] > 3


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_parts_that_take_turns(
    optimizer: Any, stop: int, train: Demonstrations, held_out: Demonstrations, tmp_path: Path
) -> None:
    options = quick(optimizer, epochs=5, **ALWAYS)
    assert_resumes_the_same(lambda: make("cost", alternate=2), train, held_out, options, (stop,), tmp_path)


def test_attempts_of_levenberg_marquardt(tmp_path: Path) -> None:
    """Demonstrations that no physics explain take every attempt; each is cut off once, two amid their steps."""
    noisy, held_out = plans(5, noise=0.1), plans(2, seed=1, noise=0.1)
    options = quick("lm", epochs=40, restarts=3, damping=Damping(attempts=2), **ALWAYS)
    attempts: list[int] = []

    class Watched(LEARNERS["dx"]):  # type: ignore[name-defined]
        def set_attempt(self, attempt: int) -> None:
            attempts.append(attempt)
            super().set_attempt(attempt)

    def make_one() -> Learner:
        return Watched(**{"task": "dilqr_rl/Pendulum-v0", "horizon": 6, **TINY["dx"]})

    make_one().fit(noisy, held_out, options)
    begins = [attempts[1:].index(number) + 1 for number in range(4)]  # the epochs in which they begin
    assert set(attempts) == {0, 1, 2, 3}
    stops = (begins[0] + 1, begins[1], begins[2], begins[2] + 1, begins[3])
    result = assert_resumes_the_same(make_one, noisy, held_out, options, stops, tmp_path)
    assert result.stopped == "no step lowers the loss"


def test_what_was_written_longer_ago_leads_to_the_same(train: Demonstrations, held_out: Demonstrations, tmp_path: Path) -> None:
    """The clock decides what is written, never what comes out."""
    options = quick("rmsprop", **ALWAYS)
    whole = make("dx")
    whole.fit(train, held_out, options, folder=tmp_path / "whole")
    seldom = replace(options, checkpoint_seconds=1e9)
    with pytest.raises(CutOffError):
        make("dx").fit(train, held_out, seldom, folder=tmp_path / "cut", on_epoch=After(4))
    assert progress(tmp_path / "cut")["epoch"] == 0
    learner = make("dx")
    learner.fit(train, held_out, options, folder=tmp_path / "cut", resume=True)
    assert equal(tensors(learner), tensors(whole))
    assert_same_fit(tmp_path / "whole", tmp_path / "cut")


def test_what_a_killed_process_left_half_written_is_removed(
    train: Demonstrations, held_out: Demonstrations, tmp_path: Path
) -> None:
    (tmp_path / ".fit.safetensors.abc.safetensors").write_bytes(b"half")
    make("dx").fit(train, held_out, quick("adam", epochs=1), folder=tmp_path, resume=True)
    assert sorted(path.name for path in tmp_path.glob("*fit*")) == ["fit.safetensors"]


def test_after_ctrl_c(train: Demonstrations, held_out: Demonstrations, tmp_path: Path) -> None:
    options = quick("adam", **ALWAYS)
    whole = make("dx").fit(train, held_out, options)
    early = make("dx").fit(train, held_out, options, folder=tmp_path, on_epoch=After(3, KeyboardInterrupt))
    assert early.stopped == "interrupted"
    assert early.history == whole.history[: len(early.history)]
    late = make("dx").fit(train, held_out, options, folder=tmp_path, resume=True)
    assert replace(late, seconds=0.0) == replace(whole, seconds=0.0)


def test_the_end_of_a_fit_is_resumed_at_once(train: Demonstrations, held_out: Demonstrations, tmp_path: Path) -> None:
    options = quick("adam", learning_rate=0.05, **ALWAYS)
    learner = make("dx")
    result = learner.fit(train, held_out, options, folder=tmp_path)
    epochs: list[FitResult] = []
    again = make("dx")
    second = again.fit(train, held_out, options, folder=tmp_path, resume=True, on_epoch=epochs.append)
    assert not epochs
    assert replace(second, seconds=0.0) == replace(result, seconds=0.0)
    assert equal(tensors(again), tensors(learner))


def test_a_fit_by_patience_is_resumed_to_the_same_end(tmp_path: Path) -> None:
    noisy, held_out = plans(5, noise=0.1), plans(2, seed=1, noise=0.1)
    options = quick("adam", epochs=60, patience=4, learning_rate=0.3, **ALWAYS)
    result = assert_resumes_the_same(lambda: make("dx"), noisy, held_out, options, (2, 4), tmp_path)
    assert result.stopped == "patience"
    assert result.history[-1]["epoch"] == result.best_epoch + 4


def test_a_fit_that_diverged_is_resumed_to_the_same_end(
    train: Demonstrations, held_out: Demonstrations, tmp_path: Path
) -> None:
    options = quick("rmsprop", learning_rate=1e4, **ALWAYS)
    learner, again = make("dx"), make("dx")
    first = learner.fit(train, held_out, options, folder=tmp_path)
    second = again.fit(train, held_out, options, folder=tmp_path, resume=True)
    assert first.stopped == second.stopped == "diverged"
    assert equal(tensors(again), tensors(learner))


def test_the_log_has_every_epoch_once(train: Demonstrations, held_out: Demonstrations, tmp_path: Path) -> None:
    options = quick("adam", validate_every=2, **ALWAYS)
    with pytest.raises(CutOffError):
        make("dx").fit(train, held_out, options, folder=tmp_path, on_epoch=After(4))
    learner = make("dx")
    result = learner.fit(train, held_out, options, folder=tmp_path, resume=True, measure=lambda _: {"answer": 42})
    rows = log(tmp_path)
    assert [int(row["fit/epoch"]) for row in rows] == [0, 0, 1, 2, 3, 4, 5, 6]  # before and after the scan, then each
    for row, expected in zip(rows, result.history, strict=True):
        shown = {name.removeprefix("fit/"): float(value) for name, value in row.items() if value}
        assert shown == pytest.approx(expected)


def test_the_log_of_tensorboard_has_every_epoch_once(train: Demonstrations, held_out: Demonstrations, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = quick("adam", scan_rounds=0, **ALWAYS)
    with pytest.raises(CutOffError):
        make("dx").fit(train, held_out, options, folder=tmp_path, on_epoch=After(4))
    result = make("dx").fit(train, held_out, options, folder=tmp_path, resume=True)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    found = events.Scalars("fit/validation_loss")
    assert [event.step for event in found] == [0, 1, 2, 3, 4, 5, 6]
    assert [event.value for event in found] == pytest.approx(result.column("validation_loss")[1])


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, train: Demonstrations, held_out: Demonstrations) -> Path:
    """The folder of a fit."""
    folder = tmp_path_factory.mktemp("kept")
    make("dx").fit(train, held_out, quick("adam"), folder=folder)
    return folder


def test_a_folder_with_a_fit_is_never_overwritten(kept: Path, train: Demonstrations, held_out: Demonstrations) -> None:
    before = (kept / "fit.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match=r"fit\.safetensors exists already\. Go on \(--resume, resume=True\), or choose"):
        make("dx").fit(train, held_out, quick("adam"), folder=kept)
    assert (kept / "fit.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "settings", "options", "message"),
    [
        ("dx", {"gradient": "diffmpc"}, {}, "settings.gradient was 'implicit' and is 'diffmpc'"),
        ("dx", {"physics": {"mass": 2.0}}, {}, "settings.physics.mass was 1.3 and is 2.0"),
        ("dx", {}, {"learning_rate": 0.5}, "options.learning_rate was 0.01 and is 0.5"),
        ("dx", {}, {"damping": Damping(start=0.5)}, "options.damping.start was 0.001 and is 0.5"),
        (
            "dx",
            {},
            {"optimizer": "rmsprop", "seed": 3},
            "options.optimizer was 'adam' and is 'rmsprop'; options.seed was 0 and is 3",
        ),
        ("sysid", {}, {}, "learner was 'dx' and is 'sysid'"),
    ],
)
def test_another_fit_is_not_resumed(
    name: str, settings: Any, options: Any, message: str, kept: Path, train: Demonstrations, held_out: Demonstrations
) -> None:
    with pytest.raises(ValueError, match=f"keeps another fit; .*{message}.* Resume with the same, or choose another folder"):
        make(name, **settings).fit(train, held_out, quick(**{"optimizer": "adam", **options}), folder=kept, resume=True)


def test_other_demonstrations_are_not_resumed_with(kept: Path, train: Demonstrations, held_out: Demonstrations) -> None:
    others = plans(7, seed=5), plans(2, seed=6)
    for pair in ((others[0], held_out), (train, others[1])):
        with pytest.raises(ValueError, match=r"keeps another fit; the demonstrations are others\. Resume with the same"):
            make("dx").fit(*pair, quick("adam"), folder=kept, resume=True)


def spoil(file: Path, how: str) -> None:
    content = file.read_bytes()
    if how in ("history", "identity"):
        with safe_open(file, framework="pt") as stream:
            metadata, kept = stream.metadata(), {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        changed = {"history": {"progress": '{"epoch": 3}'}, "identity": {"identity": "["}}[how]
        save_file(kept, file, {**metadata, **changed})
    else:
        file.write_bytes({"half": content[: len(content) // 2], "empty": b"", "pickle": b"\x80\x04cos\nsystem\n."}[how])


@pytest.mark.parametrize("how", ["half", "empty", "pickle", "history", "identity"])
def test_a_damaged_file_is_refused(
    how: str, kept: Path, train: Demonstrations, held_out: Demonstrations, tmp_path: Path
) -> None:
    shutil.copytree(kept, tmp_path / "fit")
    spoil(tmp_path / "fit" / "fit.safetensors", how)
    learner = make("dx")
    before = tensors(learner)
    with pytest.raises(
        ValueError, match=r"fit\.safetensors: expected what a fit keeps to be resumed, got something else or a dam"
    ):
        learner.fit(train, held_out, quick("adam"), folder=tmp_path / "fit", resume=True)
    assert equal(tensors(learner), before)


LONG = {
    "dx": {"optimizer": "lm", "epochs": 150, "restarts": 100, "damping": Damping(attempts=2)},
    "nn": {"optimizer": "adam", "epochs": 40},
}


def long_fit(name: str, folder: Path) -> tuple[Learner, FitResult]:
    """A fit of some seconds; what the process below runs, too."""
    torch.set_num_threads(1)
    learner = make(name)
    options = quick(**LONG[name], **ALWAYS)
    result = learner.fit(plans(5, noise=0.1), plans(2, seed=1, noise=0.1), options, folder=folder, resume=True)
    return learner, result


RUN = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
sys.path.insert(0, sys.argv[2])
spec = spec_from_file_location("fits", sys.argv[1])
fits = module_from_spec(spec)
spec.loader.exec_module(fits)
fits.long_fit(sys.argv[3], Path(sys.argv[4]))
"""


def kill_amid(name: str, folder: Path, delay: float) -> None:
    """Start the fit in a process of its own and kill it, that long after it has written for the third time."""
    here, file, writes = Path(__file__), folder / "fit.safetensors", set[int]()
    command = [sys.executable, "-c", RUN, here, here.parents[2], name, folder]
    with started(command, stdout=None, env={**os.environ, "OMP_NUM_THREADS": "1"}) as process:
        last = time.monotonic() + 120
        while len(writes) < 4 and process.poll() is None and time.monotonic() < last:
            writes.add(file.stat().st_mtime_ns if file.exists() else 0)
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kills"), [("dx", 2), ("nn", 1)])
def test_a_killed_process(name: str, kills: int, tmp_path: Path) -> None:
    """SIGKILL, from outside and at moments that nobody chose."""
    whole, result = long_fit(name, tmp_path / "whole")
    for _ in range(kills):
        kill_amid(name, tmp_path / "killed", random.uniform(0.1, 0.25 * result.seconds))
    reached = progress(tmp_path / "killed")["epoch"]
    assert 0 < reached < result.history[-1]["epoch"]
    learner, second = long_fit(name, tmp_path / "killed")
    assert replace(second, seconds=0.0) == replace(result, seconds=0.0)
    assert equal(tensors(learner), tensors(whole))
    assert_same_fit(tmp_path / "whole", tmp_path / "killed")
    assert not list((tmp_path / "killed").glob(".*"))
    assert not np.isnan(result.column("train_loss")[1]).any()


def test_a_folder_with_another_log_is_left_alone(train: Demonstrations, held_out: Demonstrations, tmp_path: Path) -> None:
    for name in ("progress.csv", "events.out.tfevents.1.2"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("precious")
        with pytest.raises(FileExistsError, match=r"expected a folder of its own for the fit, found \['.*'\]\. Choose another"):
            make("mlp").fit(train, held_out, quick("adam"), folder=folder, resume=True)
        assert (folder / name).read_text() == "precious"


def test_another_cost_is_another_fit(train: Demonstrations, held_out: Demonstrations, tmp_path: Path) -> None:
    make("dx").fit(train, held_out, quick("lm"), folder=tmp_path)
    other = make("dx", goal=[0.5, 0.0, 0.0, 0.0])
    other.settings["goal"] = None  # as if the task had it
    with pytest.raises(ValueError, match="keeps another fit; numbers that aren't learnt are others"):
        other.fit(train, held_out, quick("lm"), folder=tmp_path, resume=True)
