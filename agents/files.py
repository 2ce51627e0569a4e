"""Writing files and folders whole or not at all."""

from __future__ import annotations

import os
import shutil
import stat
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["check_can_write", "write_folder_whole", "write_whole"]


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
    if os.name != "nt":
        with suppress(OSError):  # not every file system does that
            _sync(path.parent, os.O_RDONLY)


def write_folder_whole(
    path: str | Path, write: Callable[[Path], None], *, overwrite: bool, is_ours: Callable[[Path], bool]
) -> None:
    """Let `write` fill a temporary folder beside `path`, then move it there; a failure leaves nothing behind.

    Args:
        path: the folder, which isn't there yet.
        write: fills the folder that it is given.
        overwrite: whether it may be there, and is replaced.
        is_ours: whether a folder is one that may be replaced; all else stays.

    Raises:
        FileExistsError: there is one already, and `overwrite` is false or it isn't ours.
        FileNotFoundError: its own folder doesn't exist.
        OSError: it can't be written; names `path`.
    """
    path = _check_can_make(Path(path), overwrite=overwrite, is_ours=is_ours)
    mark = uuid.uuid4().hex[:12]
    temporary, before = (path.with_name(f".{path.name}.{mark}.{name}") for name in ("new", "old"))
    try:
        temporary.mkdir()
        write(temporary)
        for file in temporary.rglob("*.*"):
            _sync(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        if path.exists():
            _check_can_make(path, overwrite=overwrite, is_ours=is_ours).rename(before)
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


def _check_can_make(path: Path, *, overwrite: bool, is_ours: Callable[[Path], bool]) -> Path:
    """The path, if a folder may be made there; see `write_folder_whole`."""
    if path.exists() and not (overwrite and path.is_dir() and is_ours(path)):
        how = "" if overwrite else ", or allow it to be overwritten (--overwrite, overwrite=True)"
        raise FileExistsError(f"{path} exists already. Choose another name{how}.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} doesn't exist. Make it first, or choose another.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: nothing may be written to the folder {path.parent}. Choose another.")
    return path


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


def _move_if_free(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a move, this fails if somebody was faster
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        temporary.replace(check_can_write(path, overwrite=False))
