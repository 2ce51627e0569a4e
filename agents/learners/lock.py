"""One fit at a time in a folder."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where a file that is open can't be replaced: the second fit finds out by itself
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock"]

_TAKEN = (errno.EWOULDBLOCK, errno.EACCES)
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
        if fcntl is None:
            return
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.truncate(self._handle, 0)
            os.write(self._handle, f"{os.getpid()}\n".encode())
        except OSError as error:
            if error.errno in _TAKEN:
                holder = os.read(self._handle, 20).decode(errors="replace").strip()
                self.release()
                raise BlockingIOError(
                    f"{folder}: another training (process {holder or 'unknown'}) writes to this folder. Choose another, or "
                    "wait for its end."
                ) from None
            _log.warning("%s can't be locked (%s): don't let two trainings write to it", folder, error)

    def release(self) -> None:
        """Let others have it."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
