"""Writing files whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ["check_can_write", "write_whole"]


def check_can_write(path: str | Path, *, overwrite: bool) -> Path:
    """The path, if a file may be written there; ask before long work, not after it.

    Raises:
        FileExistsError: there is one already, and `overwrite` is false.
        FileNotFoundError: its folder doesn't exist.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists already. Choose another name, or allow it to be overwritten (--overwrite, overwrite=True)."
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} doesn't exist. Make it first, or choose another.")
    return path


def write_whole(path: str | Path, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Let `write` fill a temporary file beside `path`, then move it there; a failure leaves nothing behind.

    Raises:
        FileExistsError: there is one already, and `overwrite` is false.
        FileNotFoundError: its folder doesn't exist.
    """
    path = check_can_write(path, overwrite=overwrite)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        if overwrite:
            temporary.replace(path)
        else:
            _move_if_free(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _move_if_free(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)  # unlike a move, this fails if somebody was faster
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        temporary.replace(check_can_write(path, overwrite=False))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
