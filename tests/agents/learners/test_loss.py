"""Nothing learnt is lost: full disks, outputs that break, signals, a second training, a folder that was tampered with."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_data import equal, make, plans, quick, tensors
from packaging.version import Version
from processes import hears_ctrl_c, started
from safetensors import safe_open
from safetensors.torch import save_file

from dilqr_rl.agents import Demonstrations
from dilqr_rl.agents.learners import FitResult, load_learner, lock, run_folder
from dilqr_rl.signals import like_ctrl_c, until_interrupted

ALWAYS: dict[str, Any] = {"checkpoint_seconds": 0, "scan_rounds": 0}


class Disk:
    """A disk that is full until somebody makes room."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full, self._write = True, Path.write_bytes
        monkeypatch.setattr(Path, "write_bytes", lambda path, content: self(path, content))

    def __call__(self, path: Path, content: bytes) -> int:
        if self.full:
            self._write(path, content[:100])
            raise OSError(28, "No space left on device", str(path))
        return self._write(path, content)


def test_a_full_disk_ends_no_fit(
    train: Demonstrations,
    held_out: Demonstrations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, learner = make("dx"), make("dx")
    whole.fit(train, held_out, quick("adam", **ALWAYS))
    Disk(monkeypatch)
    result = learner.fit(train, held_out, quick("adam", **ALWAYS), folder=tmp_path)
    assert result.stopped == "epochs"
    assert equal(tensors(learner), tensors(whole))
    said = [message for message in caplog.messages if "could not be kept" in message]
    assert len(said) == 7
    assert f"epoch 0 could not be kept in {tmp_path}: [Errno 28] it could not be written: No space left on device" in said[0]
    assert "The fit goes on, and tries again." in said[0]
    assert "The learner has the best parameters: save it elsewhere." in said[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_where_there_is_room_again_all_is_kept(
    train: Demonstrations, held_out: Demonstrations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)

    def make_room(result: FitResult) -> None:
        disk.full = result.history[-1]["epoch"] in (1, 3)

    first = make("dx").fit(train, held_out, quick("adam", **ALWAYS), folder=tmp_path, on_epoch=make_room)
    second = make("dx").fit(train, held_out, quick("adam", **ALWAYS), folder=tmp_path, resume=True)
    assert second.history == first.history
    rows = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(rows) == 1 + len(first.history)


def test_a_log_that_cannot_be_written_ends_no_fit(
    train: Demonstrations,
    held_out: Demonstrations,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device", "progress.csv")

    monkeypatch.setattr(run_folder, "configure", fail)
    first = make("dx").fit(train, held_out, quick("adam", **ALWAYS), folder=tmp_path)
    assert len([message for message in caplog.messages if "could not be kept" in message]) == 7
    monkeypatch.undo()
    make("dx").fit(train, held_out, quick("adam", **ALWAYS), folder=tmp_path, resume=True)
    assert len((tmp_path / "progress.csv").read_text().splitlines()) == 1 + len(first.history)


@pytest.mark.parametrize("error", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), ValueError("closed file")])
def test_an_output_that_breaks_ends_no_fit(
    error: Exception,
    train: Demonstrations,
    held_out: Demonstrations,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        encoding = "utf-8"

        def write(self, _: str) -> int:
            raise error

        def flush(self) -> None:
            raise error

        def isatty(self) -> bool:
            return True

        def fileno(self) -> int:
            raise OSError("none")

    whole, learner = make("dx"), make("dx")
    whole.fit(train, held_out, quick("adam", **ALWAYS))
    monkeypatch.setattr(sys, "stdout", Broken())
    result = learner.fit(train, held_out, quick("adam", **ALWAYS), progress_bar=True)
    monkeypatch.undo()
    assert result.stopped == "epochs"
    assert equal(tensors(learner), tensors(whole))
    assert [message for message in caplog.messages if "nothing more can be written to stdout" in message]


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_end_a_fit_like_ctrl_c(name: str, train: Demonstrations, held_out: Demonstrations) -> None:
    def send(result: FitResult) -> None:
        if result.history[-1]["epoch"] == 3:
            os.kill(os.getpid(), getattr(signal, name))

    learner, whole = make("dx"), make("dx")
    result = learner.fit(train, held_out, quick("adam", **ALWAYS), on_epoch=send)
    assert (result.stopped, result.history[-1]["epoch"]) == ("interrupted", 3)
    whole.fit(train, held_out, quick("adam", **{**ALWAYS, "epochs": 3, "final_rate": 1.0}))
    assert result.best_validation_loss < result.start_loss
    assert equal(tensors(learner), tensors(whole))
    assert signal.getsignal(getattr(signal, name)) is signal.SIG_DFL


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_two_signals_are_one_and_those_of_others_stay() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with like_ctrl_c():
            os.kill(os.getpid(), signal.SIGHUP)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_after_an_interrupted_training_the_next_can_be_ended_too() -> None:
    for first in ("SIGINT", "SIGTERM"):
        reached = []
        with until_interrupted():
            with until_interrupted():
                signal.raise_signal(getattr(signal, first))
                reached.append("first")
            with until_interrupted():
                signal.raise_signal(signal.SIGTERM)
                reached.append("second")
            signal.raise_signal(signal.SIGINT)
            reached.append("outer")
        assert reached == []


# Two trainings.


def test_a_second_training_is_refused_while_the_first_writes(
    train: Demonstrations, held_out: Demonstrations, tmp_path: Path
) -> None:
    refused: list[str] = []

    def begin_another(_: FitResult) -> None:
        before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        with pytest.raises(BlockingIOError) as caught:
            make("dx").fit(train, held_out, quick("adam", **ALWAYS), folder=tmp_path, resume=True)
        refused.append(str(caught.value))
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

    options = quick("adam", epochs=2, **ALWAYS)
    make("dx").fit(train, held_out, options, folder=tmp_path, on_epoch=begin_another)
    assert len(refused) == 2
    assert refused[0].startswith(f"{tmp_path}: another training (process {os.getpid()}) writes to this folder. Choose another")
    make("dx").fit(train, held_out, options, folder=tmp_path, resume=True)  # the first has ended


HOLD = """
import sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
from dilqr_rl.agents.learners.lock import FolderLock
lock = FolderLock(Path(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""


def test_the_lock_of_a_process_that_was_killed_is_free(train: Demonstrations, held_out: Demonstrations, tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, Path(__file__).parents[3], tmp_path]
    with started(command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=rf"another training \(process {process.pid}\) writes"):
            make("dx").fit(train, held_out, quick("adam", epochs=1), folder=tmp_path)
        process.kill()
    make("dx").fit(train, held_out, quick("adam", epochs=1), folder=tmp_path)


class WindowsLocks:
    """As `msvcrt` has them: of a byte where the file stands, which nobody else may read then."""

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.places: list[int] = []

    def locking(self, handle: int, mode: int, count: int) -> None:
        assert (mode, count) == (self.LK_NBLCK, 1)
        self.places.append(os.lseek(handle, 0, os.SEEK_CUR))
        fcntl = importlib.import_module("fcntl")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None


@pytest.mark.skipif(os.name != "posix", reason="with locks of POSIX in the place of those of Windows")
def test_a_system_without_fcntl_locks_as_windows_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    monkeypatch.setattr(lock, "msvcrt", WindowsLocks())
    first = lock.FolderLock(tmp_path)
    with pytest.raises(BlockingIOError, match=rf"another training \(process {os.getpid()}\) writes"):
        lock.FolderLock(tmp_path)
    first.release()
    lock.FolderLock(tmp_path).release()
    assert min(lock.msvcrt.places) > 1000  # behind the text
    assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
    monkeypatch.setattr(lock, "msvcrt", None)
    lock.FolderLock(tmp_path).release()
    assert "can't be locked ([Errno 38] this system has no locks): don't let two trainings write to it" in caplog.text


# A training of somebody else's, in a script.


def told_to_end(script: str, name: str) -> tuple[str, str, int]:
    """What a script that has begun prints behind that, on both outputs, and its status."""
    paths = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    with started([sys.executable, "-c", script], stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        process.send_signal(getattr(signal, name))
        out, errors = process.communicate(timeout=60)
    return out, errors, process.returncode


SCRIPT = """
import os, signal, sys
from dilqr_rl.signals import until_interrupted
with until_interrupted():
    print("begins", flush=True)
    while True:
        pass
print("saved", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", pytest.param("SIGINT", marks=hears_ctrl_c)])
def test_a_script_that_is_told_to_end_goes_on_to_where_it_saves(name: str) -> None:
    out, errors, status = told_to_end(SCRIPT, name)
    assert (out, status) == ("saved True\n", 0)
    assert "interrupted: going on with what there is so far" in errors


LOST = """
import sys, time
from dilqr_rl.signals import until_interrupted
class Slow:
    def __del__(self):  # in which Python throws away what a signal raises
        print("begins", flush=True)
        for _ in range(1000):
            time.sleep(0.001)
with until_interrupted():
    with until_interrupted():
        Slow()
        while True:
            pass
print("saved", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", pytest.param("SIGINT", marks=hears_ctrl_c)])
def test_a_signal_within_a_finaliser_is_not_lost(name: str) -> None:
    out, errors, status = told_to_end(LOST, name)
    assert (out, status) == ("saved\n", 0)
    assert "Exception ignored" not in errors


# Folders that were tampered with.


def rewrite(file: Path, progress: Callable[[Any], Any], parts: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    with safe_open(file, framework="pt") as stream:
        metadata, kept = stream.metadata(), {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118
    told = json.loads(metadata["progress"])
    told = progress(told) or told
    parts(kept)
    save_file(kept, file, {**metadata, "progress": json.dumps(told)})


def in_progress(**changes: Any) -> Any:
    return lambda told: told.update(changes), lambda _: None


def in_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Any:
    return lambda _: None, change


def each(part: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return in_tensors(lambda kept: kept.update({name: change(t) for name, t in kept.items() if name.startswith(part)}))


TAMPERED = [
    in_progress(epoch="3"),
    in_progress(epoch=-1),
    in_progress(epoch=10**9),
    in_progress(best_epoch=99),
    in_progress(best_epoch=True),
    in_progress(history=3),
    in_progress(history=[]),
    in_progress(history=[1, 2]),
    in_progress(history=[{"epoch": "x"}]),
    in_progress(history=[{"epoch": 3}]),
    in_progress(colour=1),
    (lambda _: [1], lambda _: None),
    each("best.", lambda tensor: torch.full_like(tensor, float("nan"))),
    each("best.", lambda tensor: torch.full_like(tensor, 800.0)),
    each("best.", lambda tensor: tensor.reshape(-1).repeat(3)),
    each("learner.", lambda tensor: tensor.reshape(-1).repeat(3)),
    each("optimiser.", lambda tensor: tensor.reshape(-1).repeat(3)),
    in_tensors(lambda kept: [kept.pop(name) for name in list(kept) if name.startswith("best.")]),
    in_tensors(lambda kept: [kept.pop(name) for name in list(kept) if name.startswith("learner.")]),
    in_tensors(lambda kept: [kept.pop(name) for name in list(kept) if name.startswith("optimiser.")]),
    in_tensors(lambda kept: kept.update({"optimiser.77.exp_avg": torch.zeros(())})),
    in_tensors(lambda kept: kept.update({"optimiser.x": torch.zeros(())})),
]
if Version(version("safetensors")) >= Version("0.7"):  # older ones write no complex numbers
    TAMPERED.append(each("optimiser.", lambda tensor: tensor.to(torch.complex64)))


@pytest.mark.parametrize("optimizer", ["adam", "lm"])
def test_a_folder_that_was_tampered_with_is_refused(
    optimizer: Any, train: Demonstrations, held_out: Demonstrations, tmp_path: Path
) -> None:
    options = quick(optimizer, epochs=3, restarts=9, **ALWAYS)
    make("dx").fit(train, held_out, options, folder=tmp_path)
    file = tmp_path / "fit.safetensors"
    whole = file.read_bytes()
    for number, (progress, parts) in enumerate(TAMPERED):
        if optimizer == "lm" and number in (20, 21):
            continue  # it takes what it knows by name
        file.write_bytes(whole)
        rewrite(file, progress, parts)
        learner = make("dx")
        before = tensors(learner)
        with pytest.raises(ValueError, match=r"fit\.safetensors: expected what a fit keeps to be resumed"):
            learner.fit(train, held_out, options, folder=tmp_path, resume=True)
        assert equal(tensors(learner), before), number
    file.write_bytes(whole)
    make("dx").fit(train, held_out, options, folder=tmp_path, resume=True)  # and the lock is free


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 500 + "]" * 500, "[]", "3", '{"a": ' + "1" * 5000 + "}"])
@pytest.mark.parametrize("which", ["identity", "progress"])
def test_a_folder_s_texts_are_not_trusted(
    which: str, text: str, train: Demonstrations, held_out: Demonstrations, tmp_path: Path
) -> None:
    options = quick("adam", epochs=1, **ALWAYS)
    make("dx").fit(train, held_out, options, folder=tmp_path)
    file = tmp_path / "fit.safetensors"
    with safe_open(file, framework="pt") as stream:
        metadata, kept = stream.metadata(), {name: stream.get_tensor(name).clone() for name in stream.keys()}  # noqa: SIM118
    save_file(kept, file, {**metadata, which: text})
    with pytest.raises(ValueError, match=r"fit\.safetensors: "):
        make("dx").fit(train, held_out, options, folder=tmp_path, resume=True)


# The command, as a person runs it.

TRAIN = "import sys; sys.path[:0] = [sys.argv.pop(1)]; from dilqr_rl.cli import main; main()"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_the_command_writes_its_checkpoint_whatever_becomes_of_its_output(tmp_path: Path) -> None:
    plans(6).save(tmp_path / "data.npz")
    command = [sys.executable, "-c", TRAIN, Path(__file__).parents[3], "train", tmp_path / "data.npz", "--learner", "mlp"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(
            [*command, "--epochs", "3", "--out", tmp_path / "a.safetensors"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert run.returncode == 0
    assert "nothing more can be written to stdout ([Errno 28]" in run.stderr
    assert "Traceback" not in run.stderr
    assert "Exception ignored" not in run.stderr
    load_learner(tmp_path / "a.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_the_command_ends_on_a_signal_with_the_best_written(tmp_path: Path) -> None:
    plans(6).save(tmp_path / "data.npz")
    out, kept = tmp_path / "a.safetensors", tmp_path / "run" / "fit.safetensors"
    command = [sys.executable, "-c", TRAIN, Path(__file__).parents[3], "train", tmp_path / "data.npz", "--learner", "mlp"]
    options = ["--epochs", "1000000", "--folder", kept.parent, "--out", out]
    with started([*command, *options]) as process:
        last = time.monotonic() + 60
        while not kept.exists() and time.monotonic() < last:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGHUP)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "interrupted; keeping the best so far" in output
    load_learner(out)
