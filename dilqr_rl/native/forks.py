"""The one lock of all that compiles, which a fork waits for.

A child has only the thread that forked. Of a lock that another thread held at that moment it would wait for ever: ours, those
of numba and LLVM, and those of imports under way.
"""

from __future__ import annotations

import os
import threading

__all__ = ["COMPILING"]

COMPILING = threading.RLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=COMPILING.acquire, after_in_parent=COMPILING.release, after_in_child=COMPILING.release)
