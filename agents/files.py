"""Writing files and folders whole or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["check_can_write", "hidden_copies", "write_folder_whole", "write_whole"]


def check_can_write(path: str | Path, *, overwrite: bool) -> Path:
    """The path, if a file may be written there; ask before long work, not after it.

    Raises:
        FileExistsError: there is one already, and `overwrite` is false.
        FileNotFoundError: its folder doesn't exist.
        IsADirectoryError: it is a folder itself.
        PermissionError: nothing may be written to its folder.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: expected the name of a file, got a folder. Give a file in it.")
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already. Choose another name, or allow it to be overwritten (--overwrite, overwrite=True)."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} doesn't exist. Make it first, or choose another.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: nothing may be written to the folder {path.parent}. Choose another.")
    return path


def write_whole(path: str | Path, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there; a failure leaves nothing behind.

    A new file has the permissions of any new file, one that is overwritten keeps those it had. It is on the disk before it gets
    its name, so that a crash leaves the old one or the new one.

    Raises:
        FileExistsError: there is one already, and `overwrite` is false.
        FileNotFoundError: its folder doesn't exist.
        OSError: it can't be written; names `path`.
    """
    path = check_can_write(path, overwrite=overwrite)
    path = path.resolve() if overwrite else path  # what a link leads to is overwritten, not the link
    before = path.stat() if path.exists() else None
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666 if before is None else 0o600))
        write(temporary)
        if before is not None:
            _become(temporary, before)
        _sync(temporary, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        if overwrite:
            temporary.replace(path)
        else:
            _move_if_free(temporary, path)
    except OSError as error:
        if error.errno is None or isinstance(error, FileExistsError):
            raise
        raise OSError(error.errno, f"it could not be written: {error.strerror}", str(path)) from error
    finally:
        with suppress(OSError):  # which would hide why
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_folder_whole(
    path: str | Path, write: Callable[[Path], None], *, overwrite: bool, why_not: Callable[[Path], str]
) -> None:
    """Let `write` fill a temporary folder beside `path`, then move it there; a failure leaves nothing behind.

    What is overwritten is what a link leads to, and folders and files of the same names keep their permissions. All is on the
    disk before it gets its name. A process that is killed leaves hidden folders beside `path`: the new one, as .new, and, if
    it was between two renames, the former one, as .old (see `hidden_copies`).

    Args:
        path: the folder, which isn't there yet.
        write: fills the folder that it is given.
        overwrite: whether it may be there, and is replaced.
        why_not: why a folder that is there may not be replaced, as a sentence's end; "" if it may.

    Raises:
        FileExistsError: there is one already, and `overwrite` is false or it may not be replaced.
        FileNotFoundError: its own folder doesn't exist.
        PermissionError: nothing may be written to it, or to its own folder.
        OSError: it can't be written; names `path`.
    """
    path = Path(os.path.realpath(path)) if overwrite else Path(path).absolute()
    _check_can_make(path, overwrite=overwrite, why_not=why_not)
    mark = uuid.uuid4().hex[:12]
    temporary, before = (path.with_name(f".{path.name}.{mark}.{name}") for name in ("new", "old"))
    try:
        temporary.mkdir(mode=0o700 if path.exists() else 0o777)
        write(temporary)
        _finish(temporary, path)
        if path.exists():
            _check_can_make(path, overwrite=overwrite, why_not=why_not)
            path.rename(before)
        temporary.rename(path)
    except OSError as error:
        if before.exists() and not path.exists():
            before.rename(path)
        if error.errno is None or isinstance(error, FileExistsError):
            raise
        raise OSError(error.errno, f"it could not be written: {error.strerror}", str(path)) from error
    finally:
        for folder in (temporary, before) if path.exists() else (temporary,):
            shutil.rmtree(folder, ignore_errors=True)
    _sync_folder(path.parent)


def hidden_copies(path: Path) -> list[Path]:
    """What `write_folder_whole` has left of a folder that isn't there, when it was killed between two renames."""
    path = Path(os.path.realpath(path))
    return sorted(path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 12}.old"))


def _check_can_make(path: Path, *, overwrite: bool, why_not: Callable[[Path], str]) -> None:
    """Whether a folder may be made there; see `write_folder_whole`."""
    if os.path.lexists(path):
        if not overwrite:
            how = "Choose another name, or allow it to be overwritten (--overwrite, overwrite=True)."
            raise FileExistsError(f"{path} exists already. {how}")
        reason = why_not(path) if path.is_dir() else "it is no folder"
        if not reason and Path.cwd().is_relative_to(path):
            reason = "this process works in it"
        if reason:
            raise FileExistsError(f"{path} exists already and can't be overwritten: {reason}. Choose another name.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} doesn't exist. Make it first, or choose another.")
    for folder in (path, path.parent) if path.exists() else (path.parent,):
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{path}: nothing may be written to the folder {folder}. Choose another.")


def _finish(temporary: Path, path: Path) -> None:
    """Put a folder onto the disk, and give it and what it holds the permissions of what it replaces."""
    for one in sorted(temporary.rglob("*")):
        if one.is_file():
            _sync(one, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        else:
            _sync_folder(one)
    _sync_folder(temporary)
    for one in (temporary, *sorted(temporary.rglob("*"))):
        before = path / one.relative_to(temporary)
        if before.exists():
            _become(one, before.stat())


def _become(temporary: Path, before: os.stat_result) -> None:
    """Give it owner and permissions of the file that it is to replace."""
    if hasattr(os, "chown"):
        with suppress(OSError):  # only root may give files away
            os.chown(temporary, before.st_uid, before.st_gid)
    temporary.chmod(stat.S_IMODE(before.st_mode))


def _sync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    if os.name != "nt":
        with suppress(OSError):  # not every file system does that
            _sync(path, os.O_RDONLY)


def _move_if_free(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a move, this fails if somebody was faster
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        temporary.replace(check_can_write(path, overwrite=False))
