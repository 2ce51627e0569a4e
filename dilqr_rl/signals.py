"""The ways in which a system tells a program to end, as the one that a person uses."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["like_ctrl_c", "until_interrupted"]

_log = logging.getLogger("dilqr_rl")

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
