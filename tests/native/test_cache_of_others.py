"""The cache where other users may write: nothing of theirs is ever read, and what they can reach isn't compiled in."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("numba")
from cache_data import compiled, entries, load

from dilqr_rl.native import cache

pytestmark = pytest.mark.skipif(not hasattr(os, "getuid"), reason="users and modes of POSIX")
SOMEBODY = 65534  # "nobody" where there are users
as_root = pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can make files of a second user: run the suite as root"
)


class Bomb:
    """What numba would unpickle, and so execute."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def arm(folder: Path, marker: Path) -> Path:
    """An entry, sound by its manifest, in which numba's index is a bomb."""
    load()
    (entry,) = entries(folder)
    (index,) = entry.rglob("*.nbi")
    index.write_bytes(pickle.dumps(cache.numba.__version__) + pickle.dumps(Bomb(marker)))
    (entry / "manifest.json").write_text(json.dumps(cache._manifest(cache._files(entry, cache._read))))
    return entry


def give(path: Path, user: int) -> None:
    for one in (path, *path.rglob("*")):
        os.chown(one, user, user)


def test_the_bomb_is_live(folder: Path, tmp_path: Path) -> None:
    """In an entry of our own, which nothing tells from one that we have made."""
    arm(folder, tmp_path / "executed")
    load()
    assert (tmp_path / "executed").exists()


@as_root
def test_an_entry_of_another_user_is_not_read(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry = arm(folder, tmp_path / "executed")
    folder.chmod(0o1777)
    give(entry, SOMEBODY)
    caplog.clear()
    assert compiled(load())
    assert "damaged, or others may write to it" in caplog.messages[0]
    assert not (tmp_path / "executed").exists()


@as_root
def test_a_file_of_another_user_in_our_entry_is_not_read(folder: Path, tmp_path: Path) -> None:
    entry = arm(folder, tmp_path / "executed")
    for index in entry.rglob("*.nbi"):
        give(index, SOMEBODY)
    assert compiled(load())
    assert not (tmp_path / "executed").exists()


@as_root
def test_a_root_of_another_user_is_refused(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Even where the entry in it is ours: they could have moved it there from anywhere."""
    arm(folder, tmp_path / "executed")
    os.chown(folder, SOMEBODY, SOMEBODY)
    caplog.clear()
    assert compiled(load())
    (message,) = caplog.messages
    assert f"for this process only: the cache folder can't be used ({folder} belongs to another user, {SOMEBODY}" in message
    assert "DILQR_CACHE_DIR names another one" in message
    assert not (tmp_path / "executed").exists()


@as_root
def test_an_entry_that_is_swapped_after_the_look_is_not_read(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that is read is the one that was looked at: between the two, somebody puts another in its place."""
    entry = arm(folder, tmp_path / "executed")
    theirs = tmp_path / "theirs"
    shutil.copytree(entry, theirs)
    give(theirs, SOMEBODY)
    look = cache._is_ours

    def swap(state: os.stat_result) -> bool:
        answer = look(state)
        if stat.S_ISDIR(state.st_mode) and theirs.exists():
            cache._discard(entry)
            theirs.rename(entry)
        return answer

    monkeypatch.setattr(cache, "_is_ours", swap)
    assert compiled(load())
    assert not theirs.exists()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o707])
def test_a_root_that_others_may_write_is_refused(mode: int, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    load()
    folder.chmod(mode)
    caplog.clear()
    assert compiled(load())
    (message,) = caplog.messages
    assert f"(others may write to {folder}, and so have their code run; chmod go-w forbids it)" in message
    assert len(entries(folder)) == 1
    folder.chmod(0o755)
    assert not compiled(load())


def test_a_root_with_the_sticky_bit_is_used(folder: Path) -> None:
    """Others may add to it, but not move or remove what is ours."""
    folder.mkdir()
    folder.chmod(0o1777)
    assert compiled(load())
    assert not compiled(load())


@pytest.mark.parametrize("what", ["entry", "index", "source", "link", "pipe"])
def test_what_others_may_write_is_made_anew(what: str, folder: Path, tmp_path: Path) -> None:
    load()
    (entry,) = entries(folder)
    (index,), (source,) = entry.rglob("*.nbi"), entry.glob("*.py")
    if what == "link":
        entry.rename(tmp_path / "elsewhere")
        entry.symlink_to(tmp_path / "elsewhere")
    elif what == "pipe":
        index.unlink()
        os.mkfifo(index)
    else:
        {"entry": entry, "index": index, "source": source}[what].chmod(0o777)
    assert compiled(load())
    assert not compiled(load())


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("loose_umask")
def test_it_is_compiled_where_nobody_else_comes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, real = [], cache._import_from

    def watched(place: Path, *rest: Any) -> Any:
        places.append(place)
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        return real(place, *rest)

    monkeypatch.setattr(cache, "_import_from", watched)
    assert compiled(load())
    assert not compiled(load())
    assert len(places) == 2
    assert not [place for place in places if folder in place.parents]
    (entry,) = entries(folder)
    assert not [path for path in (folder, entry, *entry.rglob("*")) if path.stat().st_mode & 0o077]


def test_where_others_may_write_to_the_temporary_folder_it_is_not_used(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loose, places, real = tmp_path / "loose", [], cache._import_from
    loose.mkdir()
    loose.chmod(0o777)
    monkeypatch.setattr(tempfile, "tempdir", str(loose))
    monkeypatch.setattr(cache, "_import_from", lambda place, *rest: places.append(place) or real(place, *rest))
    assert compiled(load())
    assert not compiled(load())
    assert [place.parent for place in places] == [folder, folder]
    folder.chmod(0o777)
    with pytest.raises(PermissionError, match="others may write to"):  # which `build.load` turns into the PyTorch path
        load()


def test_other_folders_in_the_root_are_never_dropped(folder: Path) -> None:
    """A root that is somebody's folder of projects, one of which has a manifest of its own."""
    other = folder / "project"
    other.mkdir(parents=True)
    folder.chmod(0o700)
    (other / "manifest.json").write_text("{}")
    os.utime(other / "manifest.json", (0, 0))
    load()
    assert (other / "manifest.json").exists()
