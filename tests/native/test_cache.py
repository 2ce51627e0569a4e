"""The cache of generated modules: found again, never trusted, shared between processes, and no obstacle where it can't be."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("numba")
from cache_data import SOURCE, compiled, entries, load

from dilqr_rl.native import cache

PROCESS = """
import json, logging, sys, time
from dilqr_rl.native.cache import load_module

messages = []
handler = logging.Handler()
handler.emit = lambda record: messages.append(record.getMessage())
logging.getLogger("dilqr_rl").addHandler(handler)
if len(sys.argv) > 2:  # wait for the others
    open(sys.argv[2] + str(time.time_ns()), "w").close()
    import glob
    while len(glob.glob(sys.argv[2] + "*")) < 2:
        time.sleep(0.001)
start = time.perf_counter()
module = load_module("example", sys.argv[1], "an example")
seconds = time.perf_counter() - start
stats = module.double.stats
print(json.dumps({
    "answer": module.double(3.0), "hits": sum(stats.cache_hits.values()), "messages": messages, "seconds": seconds,
}))
"""


def start_process(source: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", PROCESS, source, *arguments]
    return subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True)


def outcome(process: subprocess.Popen[str]) -> dict:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(output)


def test_the_second_time_nothing_is_compiled(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert compiled(load())
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert caplog.messages == [f"compiling an example to native code, some seconds, once; kept in {folder}"]
    caplog.clear()
    assert not compiled(load())
    assert caplog.messages == []
    (entry,) = entries(folder)
    assert sorted(path.suffix for path in entry.rglob("*") if path.is_file()) == [".json", ".nbc", ".nbi", ".py"]


def test_a_module_is_loaded_once_per_process(folder: Path) -> None:
    assert load() is load(afresh=False)
    assert load(afresh=False) is not load(3.0, afresh=False)
    assert len(entries(folder)) == 2


def test_another_process_does_not_compile(folder: Path) -> None:
    load()
    found = outcome(start_process(SOURCE.format(factor=2.0)))
    assert found["answer"] == 6.0
    assert found["hits"] == 1
    assert found["messages"] == []


def test_two_processes_at_once(folder: Path, tmp_path: Path) -> None:
    source = SOURCE.format(factor=2.0)
    both = [start_process(source, str(tmp_path / "ready-")) for _ in range(2)]
    assert [outcome(process)["answer"] for process in both] == [6.0, 6.0]
    assert len(entries(folder)) == 1
    assert not compiled(load())


def test_settings_of_numba_s_own_cache_change_nothing(folder: Path, tmp_path: Path) -> None:
    other = {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    first, second = (outcome(start_process(SOURCE.format(factor=2.0), **other)) for _ in range(2))
    assert (first["hits"], second["hits"]) == (0, 1)
    assert not (tmp_path / "numba").exists()
    assert not compiled(load())


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def add_another(path: Path) -> None:
    path.with_name("another").write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink, add_another])
@pytest.mark.parametrize("kind", ["*.nbc", "*.nbi", "*.py", "manifest.json"])
def test_a_damaged_entry_is_made_anew(folder: Path, caplog: pytest.LogCaptureFixture, kind: str, damage) -> None:
    load()
    (file,) = entries(folder)[0].rglob(kind)
    damage(file)
    caplog.clear()
    assert compiled(load())
    assert "damaged" in caplog.messages[0]
    caplog.clear()
    assert not compiled(load())
    assert caplog.messages == []
    assert len(entries(folder)) == 1


def test_an_entry_that_numba_cannot_load_is_made_anew(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load()
    (entry,) = entries(folder)
    (data,) = entry.rglob("*.nbc")
    data.write_bytes(b"no pickle")
    (entry / "manifest.json").write_text(json.dumps(cache._manifest(cache._files(entry, cache._read))))
    caplog.clear()
    assert compiled(load())
    assert "can't be loaded" in caplog.messages[0]
    assert not compiled(load())


def test_a_file_in_an_entry_s_place_is_replaced(folder: Path) -> None:
    load()
    (entry,) = entries(folder)
    cache._discard(entry)
    entry.write_text("in the way")
    assert compiled(load())
    assert not compiled(load())


def test_a_folder_that_cannot_be_is_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder.write_text("a file where the folder should be")
    assert compiled(load())
    assert "for this process only: the cache folder can't be used" in caplog.messages[0]
    assert "DILQR_CACHE_DIR" in caplog.messages[0]
    load(3.0)
    assert caplog.messages[1:] == ["compiling an example to native code, some seconds, for this process only"]
    assert folder.read_text() == "a file where the folder should be"


def refuse(*arguments: object, **options: object) -> None:
    raise PermissionError(13, "Permission denied", "cache")


def test_a_read_only_cache_is_used_but_not_filled(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may write everywhere, so the refusal is put in by hand."""
    load()
    before, stamp = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}, os.utime
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        patch.setattr(cache, "_hidden", refuse)
        patch.setattr(os, "utime", lambda path, *times: stamp(path, *times) if times else refuse())
        caplog.clear()
        assert not compiled(load())
        assert caplog.messages == []
        load(3.0)
        assert "Permission denied" in caplog.messages[0]
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_no_home_folder(folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("DILQR_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert compiled(load())
    assert "Could not determine home directory" in caplog.messages[0]


def test_many_modules_of_one_label_are_said_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for factor in range(22):
        load(factor, afresh=False)
    load(0, afresh=False)
    (said,) = [message for message in caplog.messages if "never freed" in message]
    assert said.startswith("20 versions of an example have been compiled in this process; their machine code, some 4 MB each")
    assert "params=" in said


def test_source_with_an_error_leaves_nothing(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        cache.load_module("broken", "1 / 0", "something broken")
    assert entries(folder) == []
    assert not [name for name in sys.modules if name.startswith("_dilqr_rl_broken")]


def test_what_nobody_uses_is_dropped(folder: Path) -> None:
    load()
    load(3.0)
    old, used = entries(folder)
    other, unfinished = folder / "of somebody else", folder / f"{cache._HIDDEN}0"
    for path in (other, unfinished):
        path.mkdir()
    for path in (old / "manifest.json", other, unfinished):
        long_ago = time.time() - 86400 * 61
        os.utime(path, (long_ago, long_ago))
    load(4.0)
    assert used in entries(folder)
    assert other in entries(folder)
    assert old not in entries(folder)
    assert unfinished not in entries(folder)
    assert len(entries(folder)) == 3


def test_use_keeps_an_entry_young(folder: Path) -> None:
    load()
    (entry,) = entries(folder)
    os.utime(entry / "manifest.json", (0, 0))
    load()
    assert time.time() - (entry / "manifest.json").stat().st_mtime < 3600


@pytest.mark.parametrize(
    ("platform", "environment", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/x"}, "/x/dilqr_rl"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/someone/.cache/dilqr_rl"),
        ("linux", {}, "/home/someone/.cache/dilqr_rl"),
        ("darwin", {"XDG_CACHE_HOME": "/x"}, "/home/someone/Library/Caches/dilqr_rl"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/dilqr_rl"),
        ("win32", {}, "/home/someone/AppData/Local/dilqr_rl"),
        ("linux", {"DILQR_CACHE_DIR": "/chosen", "XDG_CACHE_HOME": "/x"}, "/chosen"),
    ],
)
def test_the_platform_s_folder(platform: str, environment: dict, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DILQR_CACHE_DIR", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/someone"))
    assert cache.cache_folder() == Path(expected)
