"""One fit at a time in a folder."""

from __future__ import annotations

import errno
import importlib
import logging
import os
from pathlib import Path
from typing import Any

__all__ = ["FolderLock"]


def _module(name: str) -> Any:
    """A module of Python's own that not every system has; None where it isn't."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt = _module("fcntl"), _module("msvcrt")  # POSIX has the one, Windows the other
_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
_LOCKED = 1 << 30  # the byte that Windows locks: far behind the text, since nobody else can read what is locked
_log = logging.getLogger("dilqr_rl")


class FolderLock:
    """Holds a folder until `release`, or the end of the process, however that comes; the file stays, and means nothing.

    Args:
        folder: in which the file "lock" is.

    Raises:
        BlockingIOError: somebody else holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(self._handle)
            os.truncate(self._handle, 0)
            os.write(self._handle, f"{os.getpid()}\n".encode())
        except OSError as error:
            if error.errno in _TAKEN:
                os.lseek(self._handle, 0, os.SEEK_SET)
                holder = os.read(self._handle, 20).decode(errors="replace").strip()
                self.release()
                raise BlockingIOError(
                    f"{folder}: another training (process {holder or 'unknown'}) writes to this folder. Choose another, or "
                    "wait for its end."
                ) from None
            _log.warning("%s can't be locked (%s): don't let two trainings write to it", folder, error)

    def release(self) -> None:
        """Let others have it; what is closed holds no lock."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _take(handle: int) -> None:
    """Lock an open file, or raise an OSError."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        os.lseek(handle, _LOCKED, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        os.lseek(handle, 0, os.SEEK_SET)
    else:
        raise OSError(errno.ENOSYS, "this system has no locks")
