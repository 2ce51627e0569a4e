"""A batch in groups of problems, shared out among as many threads as torch uses; native code releases the GIL."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch

GROUP = 32  # problems; fixed, so that sums over groups don't depend on the number of threads
_WORTH_A_THREAD = 256  # steps of problems; fewer are solved sooner than a thread has started


def in_groups(task: Callable[[int, int], None], batch_size: int, horizon: int) -> None:
    """Call `task(start, stop)` for each group of problems; the calls may run at the same time."""
    ranges = [(start, min(start + GROUP, batch_size)) for start in range(0, batch_size, GROUP)]
    threads = workers(batch_size, horizon)
    if threads == 1:
        for group in ranges:
            task(*group)
        return
    list(_pool(threads, os.getpid()).map(lambda group: task(*group), ranges))


def workers(batch_size: int, horizon: int) -> int:
    """How many groups are worked on at the same time."""
    return 1 if batch_size * horizon < _WORTH_A_THREAD else min(torch.get_num_threads(), -(-batch_size // GROUP))


@lru_cache(maxsize=4)
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of this process: those of a parent don't outlive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="dilqr_rl")
