"""The engine on one machine: a fresh process for each trial."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from dilqr_rl.experiments.engine import Answer

__all__ = ["run_in_processes"]

_BOOT = "from dilqr_rl.experiments.worker import main; main()"
_COMMAND = (sys.executable, "-P", "-c", _BOOT)  # -P: what lies in the user's folder shadows nothing
_LAST = 2000  # characters of what a process that died has printed


def run_in_processes(requests: Sequence[Mapping[str, Any]], workers: int | None, retries: int) -> Generator[Answer, None, None]:
    """As `Engine` says."""
    pool, processes = ThreadPoolExecutor(workers or os.cpu_count() or 1), _Processes()
    try:
        futures = [pool.submit(_run, processes, number, request, retries) for number, request in enumerate(requests)]
        for future in as_completed(futures):
            yield future.result()
    finally:  # an interruption, too
        processes.end()
        pool.shutdown(cancel_futures=True)


class _Processes:
    """Those under way, so that all of them can be ended at once."""

    def __init__(self) -> None:
        self._lock, self._running, self.ended = threading.Lock(), set[subprocess.Popen[bytes]](), False

    def ask(self, request: Mapping[str, Any], errors: Any) -> tuple[bytes, int]:
        """What a fresh process answers, and its exit status."""
        with self._lock:
            if self.ended:
                return b"", 0
            process = subprocess.Popen(
                _COMMAND,
                bufsize=0,  # nothing is left to flush where a process is gone
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for the run, which then ends its workers
            )
            self._running.add(process)
        with process:
            text = _exchange(process, request)
        with self._lock:
            self._running.discard(process)
        return text, process.returncode

    def end(self) -> None:
        """Kill them, and start no more."""
        with self._lock:
            self.ended = True
            for process in self._running:
                process.kill()


def _exchange(process: subprocess.Popen[bytes], request: Mapping[str, Any]) -> bytes:
    if process.stdin is None or process.stdout is None:
        return b""
    try:  # the input stays open afterwards: a worker ends when it is closed
        process.stdin.write(json.dumps(request).encode() + b"\n")
    except BrokenPipeError:  # it died at once; its exit status tells
        return b""
    text = process.stdout.read()
    process.wait()
    return text


def _run(processes: _Processes, number: int, request: Mapping[str, Any], retries: int) -> Answer:
    attempts, reason = 0, ""
    while attempts <= retries and not processes.ended:
        attempts += 1
        with tempfile.TemporaryFile() as errors:
            text, status = processes.ask(request, errors)
            try:
                return Answer(number, json.loads(text), attempts)
            except ValueError:
                errors.seek(0)
                said = errors.read().decode(errors="replace")[-_LAST:]
                reason = f"its process ended without an answer, with exit status {status}; it said last:\n{said}"
    return Answer(number, {"error": f"{attempts} times {reason}"}, attempts)


def _environment() -> dict[str, str]:
    """One thread each, and the modules that are importable here."""
    path = os.pathsep.join(dict.fromkeys(entry or os.getcwd() for entry in sys.path))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
