"""The child's side of a measurement: one process, one solver, one cell.

A peer's script gives `serve` a class with the methods of `Adapter`. `serve` reads the request, one JSON object, from the
standard input and writes its findings to the standard output, a JSON object a line, as soon as it has them, so that a process
which runs into the time limit leaves what it found before. Whatever the solver itself prints goes to the standard error.

Needs the standard library and NumPy alone, whichever version a peer asks for.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.systems import SYSTEMS, System

Array = NDArray[np.float64]
TOLERANCE = 1e-8
MAX_ITERATIONS = 300
MATCHES = 1e-3  # largest difference of a control, relative to the largest one, at which two solutions are one local solution


class CannotError(Exception):
    """What a solver can't do, in words for the table."""


class Adapter(Protocol):
    """A solver under measurement. `prepare` is outside the clock; `forward` and `backward` are inside.

    Attributes:
        version: of the solver.
        notes: what it leaves out or does differently, for the table.
    """

    version: str
    notes: list[str]

    def __init__(self, system: System, horizon: int) -> None: ...

    def prepare(self, x0: Array, targets: Array) -> None:
        """Take start states (B, n) and targets (B, T)."""

    def forward(self) -> None:
        """Solve all B problems from zero controls, ready for `backward`."""

    def backward(self, weights: Array) -> Array:
        """The gradient (P,) of sum_b weights_b sum_t (u_bt - target_bt)^2 with respect to the physics."""

    def result(self) -> tuple[Array, Array]:
        """The controls (B, T) and the numbers of iterations (B,) of the last `forward`."""


def serve(make: Callable[..., Adapter]) -> None:
    """Measure one cell as the request says."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)

    def say(**found: Any) -> None:
        print(json.dumps(found), file=out, flush=True)

    try:
        _measure(make, request, say)
    except CannotError as reason:
        say(reason=str(reason))
    except Exception as error:
        say(reason=f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else 'no message'}")
        raise


def _measure(make: Callable[..., Adapter], request: dict[str, Any], say: Callable[..., None]) -> None:
    x0, targets = np.array(request["x0"]), np.array(request["targets"])
    everyone = np.ones(len(x0))
    start = time.perf_counter()
    adapter = make(SYSTEMS[request["system"]], request["horizon"], **request["options"])
    say(version=adapter.version, notes=adapter.notes)
    adapter.prepare(x0[:1], targets[:1])  # compiles, allocates and imports what the first call does
    adapter.forward()
    can_differentiate = _first_backward(adapter, say)
    say(build_seconds=time.perf_counter() - start)
    adapter.prepare(x0, targets)
    before = _reset_peak()
    signal.setitimer(signal.ITIMER_REAL, request["cap_seconds"])  # ends the process: the parent knows from its exit status
    forward, backward = [_timed(adapter.forward)], []
    say(forward_seconds=forward)
    controls, iterations = adapter.result()
    say(controls=controls.tolist(), iterations=np.asarray(iterations, float).tolist())
    if can_differentiate:
        backward.append(_timed(lambda: adapter.backward(everyone)))
        say(backward_seconds=backward)
    say(memory_bytes=_peak() - before)
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    if can_differentiate:
        _gradient(adapter, controls, request, say)
    end = time.perf_counter() + request["budget_seconds"]
    while len(forward) <= request["repeats"] and time.perf_counter() < end:
        forward.append(_timed(adapter.forward))
        if can_differentiate:
            backward.append(_timed(lambda: adapter.backward(everyone)))
    # The first repeat is warm in code, not in memory: it counts only where the budget leaves it alone.
    keep = 1 if len(forward) > 1 else 0
    say(forward_seconds=forward[keep:], **({"backward_seconds": backward[keep:]} if can_differentiate else {}))


def _first_backward(adapter: Adapter, say: Callable[..., None]) -> bool:
    try:
        adapter.backward(np.ones(1))
    except CannotError as reason:
        say(no_gradient=str(reason))
        return False
    return True


def _gradient(adapter: Adapter, controls: Array, request: dict[str, Any], say: Callable[..., None]) -> None:
    """The gradient over those of the first problems whose solution is the reference's, and which these are."""
    checked = np.array(request["reference"])[: len(controls)]
    apart = np.abs(controls[: len(checked)] - checked).max(axis=1)
    size = np.maximum(np.abs(checked).max(axis=1), 1.0)
    weights = np.zeros(len(controls))
    weights[: len(checked)] = (apart <= MATCHES * size) & np.array(request["usable"])[: len(controls)]
    matching = np.flatnonzero(weights).tolist()
    say(matching=matching, gradient=np.asarray(adapter.backward(weights), float).tolist() if matching else None)


def _timed(function: Callable[[], Any]) -> float:
    collecting = gc.isenabled()
    gc.disable()
    start = time.perf_counter()
    function()
    seconds = time.perf_counter() - start
    if collecting:
        gc.enable()
    return seconds


def _reset_peak() -> int:
    """Forget the largest resident size so far; returns the current one, in bytes."""
    gc.collect()
    try:
        with open("/proc/self/clear_refs", "w") as switch:
            switch.write("5")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return _peak()


def _peak() -> int:
    """The largest resident size, in bytes."""
    try:
        with open("/proc/self/status") as status:
            (line,) = (line for line in status if line.startswith("VmHWM"))
    except (OSError, ValueError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return int(line.split()[1]) * 1024
