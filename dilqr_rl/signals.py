"""The ways in which a system tells a program to end, as the one that a person uses."""

from __future__ import annotations

import _thread
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

__all__ = ["like_ctrl_c", "until_interrupted"]

_log = logging.getLogger("dilqr_rl")

_ENDS = ("SIGTERM", "SIGHUP")  # a shutdown, a batch system's time limit; a terminal that is closed
_PAIR = 1.0  # s, within which two signals are one
_AGAIN = 0.1  # s, after which a lost one is sent again


class _Interrupt:
    """A handler that raises KeyboardInterrupt until one has arrived where it is waited for: what is saved there isn't lost."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Raise again."""
        self.arrived, self._last = False, -math.inf

    def arrive(self) -> None:
        """Raise no more, if it was raised here and not by Ctrl-C."""
        self.arrived = math.isfinite(self._last)

    def __call__(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not self.arrived and now - self._last > _PAIR:
            self._last = now
            raise KeyboardInterrupt

    def lost(self, error: BaseException | None) -> bool:
        """Whether Python has dropped a KeyboardInterrupt, as it does in finalisers and in callbacks of C; it comes again."""
        if self.arrived or not isinstance(error, KeyboardInterrupt):
            return False
        number = signal.SIGTERM if math.isfinite(self._last) else signal.SIGINT
        self._last = -math.inf
        again = threading.Timer(_AGAIN, lambda: None if self.arrived else _thread.interrupt_main(number))
        again.daemon = True
        again.start()
        return True


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt where they would have ended the process; both once, like one Ctrl-C.

    Whatever handles them already, or has them ignored (nohup), stays. Threads other than the main one can't change that. While
    it lasts, none of the three is lost in a finaliser, where Python drops what is raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [getattr(signal, name) for name in _ENDS if hasattr(signal, name)]
    handlers = [signal.getsignal(number) for number in numbers]
    around = [one for one in handlers if isinstance(one, _Interrupt)]
    interrupt = around[0] if around else _Interrupt()
    interrupt.begin()
    ours = [number for number, handler in zip(numbers, handlers, strict=True) if handler is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        with _watched(interrupt):
            yield
    except KeyboardInterrupt:
        interrupt.arrive()
        raise
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _watched(interrupt: _Interrupt) -> Iterator[None]:
    before = sys.unraisablehook

    def hook(what: Any) -> None:
        if not interrupt.lost(what.exc_value):
            before(what)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def until_interrupted() -> Iterator[None]:
    """Inside, Ctrl-C, SIGTERM and SIGHUP end what goes on, and the program goes on behind it, where it can save what it has.

        with until_interrupted():
            model.learn(100_000)
        model.save("model.zip")

    A line in the log says so. For scripts whose training has no such end of its own, as that of Stable-Baselines3 hasn't.
    """
    try:
        with like_ctrl_c():
            yield
    except KeyboardInterrupt:
        _log.warning("interrupted: going on with what there is so far")
