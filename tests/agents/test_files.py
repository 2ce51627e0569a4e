"""Files are written whole, last, and leave everything else as it was."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from learner_data import make, plans, quick

from dilqr_rl.agents.files import check_can_write, write_whole
from dilqr_rl.agents.tensor_files import parse_json

posix = pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def content(text: str) -> Any:
    return lambda file: file.write_text(text)


@posix
@pytest.mark.parametrize("kept", [0o600, 0o640, 0o444, 0o777])
def test_a_file_that_is_overwritten_keeps_its_permissions(kept: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(kept)
    write_whole(path, content("new"), overwrite=True)
    assert (path.read_text(), mode(path)) == ("new", kept)


@posix
def test_what_is_private_is_never_open_to_others_meanwhile(tmp_path: Path) -> None:
    path, seen = tmp_path / "file", []
    path.write_text("old")
    path.chmod(0o600)

    def write(file: Path) -> None:
        file.write_text("new")
        seen.append(mode(file))

    write_whole(path, write, overwrite=True)
    assert seen == [0o600]


@posix
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can make files of a second user")
def test_root_does_not_take_a_file_from_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    os.chown(path, 65534, 65534)
    write_whole(path, content("new"), overwrite=True)
    assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


@posix
def test_the_umask_of_the_process_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It belongs to all threads: whoever changes it for a moment may put back what another has changed."""
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda _: pytest.fail("the umask was changed"))
            threads = [
                threading.Thread(target=write_whole, args=(tmp_path / str(i), content("x")), kwargs={"overwrite": False})
                for i in range(8)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        assert os.umask(before) == 0o027
    assert [mode(tmp_path / str(i)) for i in range(8)] == [0o640] * 8


@posix
def test_it_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, events = tmp_path / "file", []
    sync, replace = os.fsync, Path.replace

    def synced(handle: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else os.fstat(handle).st_size)
        sync(handle)

    def replaced(source: Path, target: Path) -> Path:
        events.append("name")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_whole(path, content("seven b"), overwrite=True)
    assert events == [7, "name", "folder"]


def test_a_folder_in_its_place_is_said_before_long_work(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match=f"{tmp_path}: expected the name of a file, got a folder"):
        check_can_write(tmp_path, overwrite=True)


@posix
@pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_said_before_long_work(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="nothing may be written to the folder"):
        check_can_write(tmp_path / "file", overwrite=False)


@posix
def test_a_link_leads_to_what_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to("there")
    write_whole(tmp_path / "link", content("new"), overwrite=True)
    assert (tmp_path / "there").read_text() == "new"
    assert (tmp_path / "link").is_symlink()


SAVE = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from pathlib import Path
from learner_data import make, plans, quick
learner = make("dx")
learner.fit(plans(5), plans(2, seed=1), quick("adam", epochs=2), folder=Path(sys.argv[3]) / "fit")
learner.save(Path(sys.argv[3]) / "learner.safetensors")
plans(5).save(Path(sys.argv[3]) / "data.npz")
"""


@pytest.mark.slow
def test_equal_saves_are_equal_bytes(tmp_path: Path) -> None:
    """Also from other processes: safetensors draws the order of its texts anew in each of them."""
    here, digests = Path(__file__), []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        subprocess.run([sys.executable, "-c", SAVE, here.parents[1], here.parents[2], folder], check=True)
        files = (folder / "learner.safetensors", folder / "fit" / "fit.safetensors", folder / "data.npz")
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in files])
    assert digests == [digests[0]] * 2


def test_equal_saves_of_one_process_are_equal_bytes(tmp_path: Path) -> None:
    learner = make("dx")
    for number in range(20):  # of two texts or more; a hash would have another order in some of them
        learner.save(tmp_path / f"{number}.safetensors")
    assert len({(tmp_path / f"{number}.safetensors").read_bytes() for number in range(20)}) == 1
    learner.fit(plans(5), plans(2, seed=1), quick("adam", epochs=1), folder=tmp_path / "fit")
    header = (tmp_path / "fit" / "fit.safetensors").read_bytes()
    length = int.from_bytes(header[:8], "little")
    assert length % 8 == 0  # safetensors aligns its tensors so
    assert [*parse_json(header[8 : 8 + length].decode())["__metadata__"]] == ["format", "identity", "progress"]


def test_nan_that_somebody_wrote_into_demonstrations_is_not_saved(tmp_path: Path) -> None:
    data = plans(5, seed=17)
    data.episodes[2].actions[0] = np.nan
    with pytest.raises(ValueError, match="episode 2: actions hold NaN or infinity"):
        data.save(tmp_path / "data.npz")
    assert not list(tmp_path.iterdir())
