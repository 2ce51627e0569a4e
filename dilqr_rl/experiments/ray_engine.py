"""The engine on a Ray cluster, or on this machine by way of Ray."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from dilqr_rl.experiments.engine import Answer
from dilqr_rl.experiments.worker import answer

__all__ = ["run_on_ray"]


def run_on_ray(requests: Sequence[Mapping[str, Any]], workers: int | None, retries: int) -> Generator[Answer, None, None]:
    """As `Engine` says. On a cluster, the results' folder must be one that all machines share if trials keep things there.

    Raises:
        ValueError: Ray isn't installed, or there is no cluster at RAY_ADDRESS.
    """
    try:
        import ray
    except ImportError as error:
        raise ValueError('engine: "ray" needs Ray: pip install "dilqr_rl[ray]".') from error
    ours = not ray.is_initialized()
    if ours:
        _start(ray, workers)
    try:
        yield from _run(ray, requests, workers, retries)
    finally:
        if ours:
            ray.shutdown()


def _start(ray: Any, workers: int | None) -> None:
    address = os.environ.get("RAY_ADDRESS")
    local = {"address": "local", "num_cpus": workers, "include_dashboard": False}
    try:
        ray.init(**({"address": address} if address else local), log_to_driver=False, logging_level="error")
    except ConnectionError as error:
        raise ValueError(f"RAY_ADDRESS: expected the address of a Ray cluster, got {address!r} ({error}).") from error


def _run(ray: Any, requests: Sequence[Mapping[str, Any]], workers: int | None, retries: int) -> Generator[Answer, None, None]:
    # max_calls=1: a fresh process for each trial. Retries are ours, not Ray's, so that they can be counted.
    one_thread = {"env_vars": {"OMP_NUM_THREADS": "1"}}
    remote = ray.remote(num_cpus=1, max_calls=1, max_retries=0, runtime_env=one_thread)(answer)
    asked = [{**request, "path": sys.path} for request in requests]
    left = deque((number, 1) for number in range(len(asked)))
    waiting: dict[Any, tuple[int, int]] = {}
    while left or waiting:
        while left and len(waiting) < (workers or len(asked)):
            number, attempt = left.popleft()
            waiting[remote.remote(asked[number])] = (number, attempt)
        (ready,), _ = ray.wait(list(waiting), num_returns=1)
        number, attempts = waiting.pop(ready)
        try:
            content = ray.get(ready)
        except ray.exceptions.RayError as error:  # `answer` itself raises nothing: a process or a machine is gone
            if attempts <= retries:
                left.appendleft((number, attempts + 1))
                continue
            content = {"error": f"{attempts} times its process ended without an answer: {error}"}
        yield Answer(number, content, attempts)
