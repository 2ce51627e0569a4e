"""The one lock, of all that compiles and of modules that hold other tensors for a moment, which a fork waits for.

A child has only the thread that forked. Of a lock that another thread held at that moment it would wait for ever: ours, those
of numba and LLVM, and those of imports under way.
"""

from __future__ import annotations

import os
import threading

__all__ = ["ONE_AT_A_TIME"]

ONE_AT_A_TIME = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=ONE_AT_A_TIME.acquire, after_in_parent=ONE_AT_A_TIME.release, after_in_child=ONE_AT_A_TIME.release
    )
