"""The ways in which a system tells a program to end, as the one that a person uses."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["like_ctrl_c"]

_ENDS = ("SIGTERM", "SIGHUP")  # a shutdown, a batch system's time limit; a terminal that is closed


@contextmanager
def like_ctrl_c() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt where they would have ended the process; both once, like one Ctrl-C.

    Whatever handles them already, or has them ignored (nohup), stays. Threads other than the main one can't change that.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    told: list[int] = []

    def interrupt(number: int, _: FrameType | None) -> None:
        told.append(number)
        if len(told) == 1:  # both may come, and then what is being saved would be lost
            raise KeyboardInterrupt

    numbers = [getattr(signal, name) for name in _ENDS if hasattr(signal, name)]
    ours = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
