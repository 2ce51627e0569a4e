"""The solver: ilqr.py's iteration, one problem after the other."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dilqr_rl.native.kernel.instance import (
    Batch,
    Bounds,
    Instance,
    Trajectory,
    bind,
    expansion_in,
    expansion_size,
    linearise,
    read_bounds,
    rows_of,
)
from dilqr_rl.native.kernel.memory import KK, MN, M, N, Pointer, call_int, inner, outer, pointer, shift
from dilqr_rl.native.kernel.policy import (
    Memory,
    Step,
    find_gains,
    find_gauss_newton,
    find_policy,
    largest,
    largest_change,
    measure,
)
from dilqr_rl.native.kernel.rollout import Descent, copy, follow, search
from dilqr_rl.native.kernel.sweep import Policy, sweep_loop

RUNNING, CONVERGED, MAX_ITERATIONS, LINE_SEARCH_FAILED, NONFINITE, TIME_LIMIT = -1, 0, 1, 2, 3, 4
CONTROLS, STATES, STATES_AND_GAINS = 0, 1, 2  # what a guess has
COLUMNS = 5  # of a row of the history: cost, residual, step length, damping, share of the curvature


class Settings(NamedTuple):
    """The solver's options, see options.py, and what the guess has: one of the three below."""

    max_iterations: int
    line_search_steps: int
    guess: int
    tolerance: float
    step_tolerance: float
    sufficient_decrease: float
    damping_min: float
    damping_max: float
    damping_factor: float


class Clock(NamedTuple):
    """What tells the time.

    Attributes:
        address: of a C function like clock_gettime; 0 where nobody asks.
        which: its first argument.
        reading: memory for what it writes: seconds and nanoseconds.
        ends: when the problem must have ended.
        usual: how long the shortest iteration of the problems before took, 0 where there were none.
    """

    address: int
    which: int
    reading: Pointer
    ends: float
    usual: float


class Outcome(NamedTuple):
    """How the solve of one problem ended; see solution.py."""

    cost: float
    status: int
    iterations: int
    residual: float
    singular: int
    usual: float


def solve(
    model: Any,
    T: int,
    sizes: Any,
    start: int,
    stop: int,
    x0: Any,
    P: Any,
    table: Any,
    bound_rows: Any,
    integers: Any,
    reals: Any,
    x: Any,
    u: Any,
    cost: Any,
    status: Any,
    iterations: Any,
    residual: Any,
    gains: Any,
    singular: Any,
    history: Any,
) -> None:
    """Solve the problems start <= b < stop; others are not touched. All arrays are contiguous, float64 or int64.

    Args:
        model: addresses of the model's functions (8,).
        T: the horizon.
        sizes: (2,), how many constants and how much memory the model needs.
        start: the first problem.
        stop: the one after the last.
        x0: start states (B, n).
        P: the parameters of all problems, flat.
        table: (3, V), where each value starts in P, and its strides from problem to problem and from step to step.
        bound_rows: (2, 2), for u_min and u_max: which value it is, and its stride from component to component.
        integers: max_iterations, line_search_steps, what the guess has; the clock's address or 0, and which.
        reals: tolerance, step_tolerance, sufficient_decrease, regularisation_min, regularisation_max, regularisation_factor;
            when, by the clock, all must have ended.
        x: states (B, T+1, n): those of the guess, if it has any; out.
        u: controls (B, T, m): those of the guess; out.
        cost: (B,), out.
        status: (B,), out.
        iterations: (B,), out.
        residual: (B,), out.
        gains: (B, T, m, n): those of the guess, if it has any; out.
        singular: (B,), out.
        history: (B, at least max_iterations + 1, 5), out; not touched where its length is 0.
    """
    rows = rows_of(T, table)
    offs = np.empty(rows * table.shape[1] + 2, np.int64)
    own = expansion_size(T) + (T + 1) * KK + T * (8 * M + MN) + 2 * (T + 1) * N
    memory = np.empty(rows * int(sizes[0]) + int(sizes[1]) + own)
    problem = (model, T, sizes, start, stop, x0, P, table, bound_rows, integers, reals)
    results = (x, u, cost, status, iterations, residual, gains, singular, history)
    solve_range(*problem, *results, rows, offs, memory, sweep_loop.address)


@outer
def solve_range(
    model: Any,
    T: int,
    sizes: Any,
    start: int,
    stop: int,
    x0: Any,
    P: Any,
    table: Any,
    bound_rows: Any,
    integers: Any,
    reals: Any,
    x: Any,
    u: Any,
    cost: Any,
    status: Any,
    iterations: Any,
    residual: Any,
    gains: Any,
    singular: Any,
    history: Any,
    rows: int,
    offs: Any,
    memory: Any,
    sweep: int,
) -> None:
    """`solve` with the memory that it needs for offsets and for everything else, and the address of the sweep."""
    batch = Batch(pointer(model), T, pointer(P), pointer(table), pointer(bound_rows), table.shape[1], sizes[0], rows)
    settings = Settings(integers[0], integers[1], integers[2], reals[0], reals[1], reals[2], reals[3], reals[4], reals[5])
    reading = shift(pointer(offs), rows * table.shape[1])
    usual = 0.0
    own = shift(pointer(memory), rows * sizes[0] + sizes[1])
    for b in range(start, stop):
        instance = bind(batch, b, pointer(offs), pointer(memory))
        parts = _solve_memory(own, T, shift(pointer(gains), b * T * MN), sweep)
        read_bounds(instance, batch.bound_rows, parts.bounds)
        now = Trajectory(shift(pointer(x), b * (T + 1) * N), shift(pointer(u), b * T * M))
        copy(T, now, parts.trial)
        for i in range(N):
            now.x[i] = x0[b, i]
        clock = Clock(integers[3], integers[4], reading, math.inf, usual)
        if clock.address != 0:  # each problem gets its share of what is left
            time = _read(clock)
            clock = Clock(integers[3], integers[4], reading, time + (reals[6] - time) / (stop - b), usual)
        rows_of_history = shift(pointer(history), b * history.shape[1] * COLUMNS)
        recording = 1 if history.shape[1] > 0 else 0
        cost[b], status[b], iterations[b], residual[b], singular[b], usual = _solve_problem(
            instance, settings, parts, now, clock, recording, rows_of_history
        )


@inner
def _solve_memory(start: Pointer, T: int, gains: Pointer, sweep: int) -> Memory:
    model = expansion_in(start, T)
    convex = shift(model.gradient, T * M)
    bounds = shift(convex, (T + 1) * KK)
    room = shift(bounds, 2 * T * M)
    k = shift(room, 2 * T * M)
    other = shift(k, T * M)
    other_feedback = shift(other, T * M)
    trial = shift(other_feedback, T * MN)
    other_trial = shift(trial, T * M + (T + 1) * N)
    return Memory(
        model,
        convex,
        Policy(k, gains),
        Policy(other, other_feedback),
        Bounds(bounds, shift(bounds, T * M)),
        Bounds(room, shift(room, T * M)),
        Trajectory(shift(trial, T * M), trial),
        Trajectory(shift(other_trial, T * M), other_trial),
        sweep,
    )


@inner
def _read(clock: Clock) -> float:
    """The time, in seconds."""
    call_int(clock.address, (clock.which, clock.reading))
    return clock.reading[0] + 1e-9 * clock.reading[1]


@inner
def _solve_problem(
    instance: Instance,
    settings: Settings,
    memory: Memory,
    now: Trajectory,
    clock: Clock,
    recording: int,
    history: Pointer,
) -> Outcome:
    """Solve one problem from the guess in `memory.trial` and the first state in `now`, where its trajectory is left."""
    T = instance.T
    if settings.guess == STATES:
        find_gains(instance, memory)
    cost = follow(instance, memory.bounds, memory.trial, memory.policy.feedback, settings.guess != CONTROLS, now)
    if clock.address != 0 and _read(clock) + 1.5 * clock.usual > clock.ends and math.isfinite(cost):
        return _unsolved(instance.T, memory, cost, recording, history, clock.usual)
    damping, iterations, status, moved, finite, residual = 0.0, 0, RUNNING, True, True, 0.0
    length, used, share = math.nan, math.nan, math.nan  # of the step that led here
    began, usual = 0.0, clock.usual
    while True:
        if clock.address != 0:
            began = _read(clock)
        if moved:
            finite = linearise(instance, now.x, now.u, memory.model)
            residual = measure(T, now.u, memory)
        if recording != 0:
            row = shift(history, iterations * COLUMNS)
            row[0], row[1], row[2], row[3], row[4] = cost, residual, length, used, share
        if status == RUNNING and iterations >= settings.max_iterations:
            status = MAX_ITERATIONS
        if not (finite and math.isfinite(cost) and math.isfinite(residual)):
            status = NONFINITE
        near = residual <= settings.tolerance and status != NONFINITE
        step = find_policy(T, memory, 0.0 if near else damping)
        newton = step.share == 1.0 and step.strict
        if near and (status == LINE_SEARCH_FAILED or not newton or _rests(T, settings, memory, now)):
            status = CONVERGED
        if status != RUNNING:
            return Outcome(cost, status, iterations, residual, 1 if status == CONVERGED and not newton else 0, usual)
        if near and damping > 0.0:
            step = find_policy(T, memory, damping)
        used = damping
        length, cost, share = _descend(instance, settings, memory, now, cost, step, damping)
        moved, damping = length > 0.0, _next_damping(settings, damping, length)
        if damping > settings.damping_max:
            status = LINE_SEARCH_FAILED
        iterations += 1
        if clock.address != 0 and status == RUNNING:
            time = _read(clock)
            took = time - began
            usual = took if usual == 0.0 else min(usual, took)  # an interruption is none
            if time + 1.5 * took > clock.ends:  # another iteration, and what the end takes
                status = TIME_LIMIT


@inner
def _rests(T: int, settings: Settings, memory: Memory, now: Trajectory) -> bool:
    """Whether the whole step would hardly move the controls."""
    return largest_change(T, memory) <= settings.step_tolerance * (1.0 + largest(T, now.u))


@inner
def _next_damping(settings: Settings, damping: float, length: float) -> float:
    """Less after a whole step, more after none."""
    if length == 0.0:
        return max(damping * settings.damping_factor, settings.damping_min)
    if length < 1.0:
        return damping
    lower = damping / settings.damping_factor
    return lower if lower >= settings.damping_min else 0.0


@inner
def _unsolved(T: int, memory: Memory, cost: float, recording: int, history: Pointer, usual: float) -> Outcome:
    """How a problem ends that there is no time for: with its first rollout."""
    for i in range(T * MN):
        memory.policy.feedback[i] = 0.0
    if recording != 0:
        history[0], history[1], history[2], history[3], history[4] = cost, math.inf, math.nan, math.nan, math.nan
    return Outcome(cost, TIME_LIMIT, 0, math.inf, 0, usual)


@inner
def _descend(
    instance: Instance, settings: Settings, memory: Memory, now: Trajectory, cost: float, step: Step, damping: float
) -> tuple[float, float, float]:
    """Move along the policy, or Gauss-Newton's, where that one has a part of the curvature only and its whole step is too long.

    Returns the length of the step, the cost, and the share of the curvature.
    """
    T, share, halvings = instance.T, settings.sufficient_decrease, settings.line_search_steps
    length, lowest = 0.0, cost
    if step.share >= 0.0:
        descent = Descent(memory.policy, memory.bounds, step.slope, step.curvature, share, halvings)
        length, lowest = search(instance, descent, now, memory.trial, cost)
    if length < 1.0 and 0.0 < step.share < 1.0:
        other = find_gauss_newton(T, memory, damping, memory.other_policy)
        if other.share == 0.0:
            descent = Descent(memory.other_policy, memory.bounds, other.slope, other.curvature, share, halvings)
            other_length, other_cost = search(instance, descent, now, memory.other_trial, cost)
            if other_length > 0.0 and (length == 0.0 or other_cost < lowest):
                copy(T, memory.other_trial, now)
                return other_length, other_cost, 0.0
    if length > 0.0:
        copy(T, memory.trial, now)
    return length, lowest, step.share
