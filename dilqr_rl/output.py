"""Standard output that may go away: a reader that ends (`| head`), a full disk, a terminal that is closed."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import Any

__all__ = ["LastingOutput"]

_log = logging.getLogger("dilqr_rl")


class LastingOutput:
    """Writes to what `sys.stdout` (or `sys.stderr`) is at the moment; what can't be written is lost, and ends nothing.

    Args:
        name: "stdout" or "stderr".
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._gone: Any = None

    def write(self, text: str) -> int:
        """As a stream does."""
        self._attempt("write", text)
        return len(text)

    def flush(self) -> None:
        """As a stream does."""
        self._attempt("flush")

    def isatty(self) -> bool:
        """As a stream does."""
        return bool(self._attempt("isatty"))

    def settle(self) -> None:
        """At the end of a program: whatever is left in a broken stream goes nowhere, or Python would complain of it."""
        self.flush()
        if self._gone is not None and self._gone is self._stream():
            with suppress(OSError, ValueError, AttributeError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._gone.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream(), name)

    def _stream(self) -> Any:
        stream = getattr(sys, self._name)
        return getattr(stream, "rich_proxied_file", stream)  # while one of rich's bars is shown

    def _attempt(self, what: str, *arguments: Any) -> Any:
        stream = self._stream()
        if stream is None or stream is self._gone:
            return None
        try:
            return getattr(stream, what)(*arguments)
        except (OSError, ValueError) as error:  # a ValueError: it is closed
            if isinstance(error, UnicodeError):
                raise
            self._gone = stream
            _log.warning("nothing more can be written to %s (%s); what is under way goes on", self._name, error)
            return None
