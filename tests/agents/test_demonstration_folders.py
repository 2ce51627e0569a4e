"""Folders of demonstrations: what they replace and what they leave alone, and folders that somebody made to do harm."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dilqr_rl.agents import Demonstrations
from dilqr_rl.agents.files import write_folder_whole

ENV = "dilqr_rl/Pendulum-v0"
posix = pytest.mark.skipif(os.name != "posix", reason="links and permissions of POSIX")


def demonstrations(seed: int = 0, **parts: Any) -> Demonstrations:
    """Two episodes of three steps."""
    rng = np.random.default_rng(seed)
    given = {"state": rng.normal(size=(2, 4, 3)), **parts}
    return Demonstrations.from_arrays(ENV, given, rng.normal(size=(2, 3, 1)))


def state(data: Demonstrations) -> Any:
    return np.concatenate([one.state_observations for one in data.episodes])


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Overwriting.


def _somebody_s_header(folder: Path) -> None:
    folder.mkdir()
    (folder / "header.json").write_text('{"title": "thesis"}')
    (folder / "thesis.tex").write_text("years of work")


def _notes_beside(folder: Path) -> None:
    demonstrations().save_folder(folder)
    (folder / "notes.txt").write_text("mine")
    (folder / "observations" / "more").mkdir()


def _a_link(folder: Path) -> None:
    demonstrations().save_folder(folder)
    (folder / "actions.npy").rename(folder.parent / "elsewhere.npy")
    (folder / "actions.npy").symlink_to(folder.parent / "elsewhere.npy")


def _a_header_alone(folder: Path) -> None:
    folder.mkdir()
    (folder / "header.json").write_text("[1]")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_somebody_s_header, r"it holds no demonstrations \(its header\.json is of another format\)"),
        (_notes_beside, r"it holds notes\.txt, observations/more beside demonstrations"),
        pytest.param(_a_link, r"it holds actions\.npy beside demonstrations", marks=posix),
        (_a_header_alone, r"it holds no demonstrations \(its header\.json is of another format\)"),
    ],
)
def test_what_holds_anything_else_is_not_overwritten(make: Any, why: str, tmp_path: Path) -> None:
    make(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=rf"data exists already and can't be overwritten: {why}\. Choose another"):
        demonstrations(1).save_folder(tmp_path / "data", overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before


@posix
def test_a_link_leads_to_the_folder_that_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "data"
    link.symlink_to(tmp_path / "disk" / "real")
    with pytest.raises(FileExistsError, match="data exists already"):
        demonstrations().save_folder(link)  # leads nowhere yet, but it is somebody's
    for seed in range(2):
        demonstrations(seed).save_folder(link, overwrite=True)
        assert link.is_symlink()
        np.testing.assert_array_equal(state(Demonstrations.load(tmp_path / "disk" / "real")), state(demonstrations(seed)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "disk"]
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["real"]


@posix
def test_folders_that_are_overwritten_keep_their_permissions(tmp_path: Path) -> None:
    data = tmp_path / "data"
    demonstrations().save_folder(data)
    modes = {data: 0o700, data / "actions.npy": 0o600, data / "observations": 0o750}
    for path, kept in modes.items():
        path.chmod(kept)
    demonstrations(1).save_folder(data, overwrite=True)
    assert {path: mode(path) for path in modes} == modes
    assert mode(data / "rewards.npy") == mode(data / "lengths.npy") != 0o600  # of any new file


@posix
def test_a_private_folder_is_never_open_to_others_meanwhile(tmp_path: Path) -> None:
    seen: list[int] = []
    (tmp_path / "data").mkdir(mode=0o700)
    write_folder_whole(tmp_path / "data", lambda folder: seen.append(mode(folder)), overwrite=True, why_not=lambda _: "")
    assert seen == [0o700]


def test_the_folder_that_a_process_works_in_is_told_for_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demonstrations().save_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(FileExistsError, match="can't be overwritten: this process works in it"):
        demonstrations(1).save_folder(".", overwrite=True)
    with pytest.raises(FileExistsError, match="exists already"):
        demonstrations(1).save_folder(".")


def test_what_a_killed_process_left_hidden_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demonstrations().save_folder(tmp_path / "data[1]")
    rename = Path.rename

    def killed(path: Path, target: Path) -> Path:
        if path.name.endswith(".new"):
            raise SystemExit
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", killed)
    with pytest.raises(SystemExit):
        demonstrations(1).save_folder(tmp_path / "data[1]", overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"no such file\. \S+\.data\[1\]\.\w+\.old is what was there .*: rename it"):
        Demonstrations.load(tmp_path / "data[1]")
    (left,) = tmp_path.glob("*.old")
    np.testing.assert_array_equal(state(Demonstrations.load(left)), state(demonstrations()))


@posix
def test_the_folder_around_is_synced_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[int, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((os.fstat(handle).st_ino, (tmp_path / "data").exists())))
    demonstrations().save_folder(tmp_path / "data")
    inside = {path.stat().st_ino for path in (tmp_path / "data").rglob("*")}
    assert inside <= {number for number, named in synced if not named}
    assert synced[-1] == (tmp_path.stat().st_ino, True)
