"""The solver: ilqr.py's iteration, one problem after the other."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from dilqr_rl.native.kernel.instance import (
    Batch,
    Bounds,
    Expansion,
    Instance,
    Trajectory,
    bind,
    expansion_in,
    expansion_size,
    linearise,
    read_bounds,
    rows_of,
)
from dilqr_rl.native.kernel.memory import MN, M, N, Pointer, call_float, clamp, inner, outer, pointer, shift
from dilqr_rl.native.kernel.sweep import Policy, backward_sweep, sweep_loop

ADVANCE, TERMINAL = 1, 2  # places of the model's functions
RUNNING, CONVERGED, MAX_ITERATIONS, LINE_SEARCH_FAILED, NONFINITE = -1, 0, 1, 2, 3
WEIGHTS = 10  # of the dynamics' curvature: 1, then 9/10, ..., 0
ROUNDING = 64 * 2.0**-52  # of a cost, relative: differences below it mean nothing
ROUNDING_OF_STEP = 4 * 2.0**-52  # of u + (bound - u), relative to its terms


class Memory(NamedTuple):
    """Memory for one problem.

    Attributes:
        model: around the trajectory.
        policy: of the last sweep.
        bounds: of the controls.
        room: of the step, bounds - u.
        trial: the line search's trajectory.
        sweep: the address of `sweep_loop`.
    """

    model: Expansion
    policy: Policy
    bounds: Bounds
    room: Bounds
    trial: Trajectory
    sweep: int


class Settings(NamedTuple):
    """The solver's options; see options.py."""

    max_iterations: int
    line_search_steps: int
    tolerance: float
    sufficient_decrease: float
    regularisation_min: float
    regularisation_max: float
    regularisation_factor: float


class Outcome(NamedTuple):
    """How the solve of one problem ended; see solution.py."""

    cost: float
    status: int
    iterations: int
    residual: float


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
        integers: max_iterations, line_search_steps.
        reals: tolerance, sufficient_decrease, regularisation_min, regularisation_max, regularisation_factor.
        x: states (B, T+1, n), out.
        u: controls (B, T, m): where to start; out.
        cost: (B,), out.
        status: (B,), out.
        iterations: (B,), out.
        residual: (B,), out.
        gains: (B, T, m, n), out.
    """
    rows = rows_of(T, table)
    offs = np.empty(rows * table.shape[1], np.int64)
    memory = np.empty(rows * int(sizes[0]) + int(sizes[1]) + expansion_size(T) + 6 * T * M + (T + 1) * N)
    problem = (model, T, sizes, start, stop, x0, P, table, bound_rows, integers, reals)
    solve_range(*problem, x, u, cost, status, iterations, residual, gains, rows, offs, memory, sweep_loop.address)


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
    rows: int,
    offs: Any,
    memory: Any,
    sweep: int,
) -> None:
    """`solve` with the memory that it needs for offsets and for everything else, and the address of the sweep."""
    batch = Batch(pointer(model), T, pointer(P), pointer(table), pointer(bound_rows), table.shape[1], sizes[0], rows)
    settings = Settings(integers[0], integers[1], reals[0], reals[1], reals[2], reals[3], reals[4])
    own = shift(pointer(memory), rows * sizes[0] + sizes[1])
    for b in range(start, stop):
        instance = bind(batch, b, pointer(offs), pointer(memory))
        parts = _solve_memory(own, T, shift(pointer(gains), b * T * MN), sweep)
        read_bounds(instance, batch.bound_rows, parts.bounds)
        now = Trajectory(shift(pointer(x), b * (T + 1) * N), shift(pointer(u), b * T * M))
        for i in range(N):
            now.x[i] = x0[b, i]
        cost[b], status[b], iterations[b], residual[b] = _solve_problem(instance, settings, parts, now)


@inner
def _solve_memory(start: Pointer, T: int, gains: Pointer, sweep: int) -> Memory:
    model = expansion_in(start, T)
    bounds = shift(model.gradient, T * M)
    room = shift(bounds, 2 * T * M)
    k = shift(room, 2 * T * M)
    trial = shift(k, T * M)
    return Memory(
        model,
        Policy(k, gains),
        Bounds(bounds, shift(bounds, T * M)),
        Bounds(room, shift(room, T * M)),
        Trajectory(shift(trial, T * M), trial),
        sweep,
    )


@inner
def _solve_problem(instance: Instance, settings: Settings, memory: Memory, now: Trajectory) -> Outcome:
    """Solve one problem from the controls in `now`, whose first state is set; its trajectory is left there."""
    cost = _roll_out(instance, memory.bounds, now)
    regularisation, iterations, status, moved = 0.0, 0, RUNNING, True
    residual, finite = 0.0, True
    while True:
        if moved:
            finite = linearise(instance, now.x, now.u, memory.model)
            residual = _measure(instance.T, now.u, memory)
        if status == RUNNING and iterations >= settings.max_iterations:
            status = MAX_ITERATIONS
        if residual <= settings.tolerance:
            status = CONVERGED
        if not (finite and math.isfinite(cost) and math.isfinite(residual)):
            status = NONFINITE
        slope, curvature, positive = _find_policy(instance.T, memory, regularisation, status != RUNNING)
        if status != RUNNING:
            return Outcome(cost, status, iterations, residual)
        length = 0.0
        if positive:
            length, cost = _search(instance, settings, memory, now, cost, slope, curvature)
        moved = length > 0.0
        if length == 0.0:
            regularisation *= settings.regularisation_factor
            if regularisation < settings.regularisation_min:
                regularisation = settings.regularisation_min
        elif length == 1.0:
            regularisation /= settings.regularisation_factor
            if regularisation < settings.regularisation_min:
                regularisation = 0.0
        if regularisation > settings.regularisation_max:
            status = LINE_SEARCH_FAILED
        iterations += 1


@inner
def _measure(T: int, u: Pointer, memory: Memory) -> float:
    """Write the room of the step and return the norm of the projected gradient."""
    total = 0.0
    for i in range(T * M):
        low, high = memory.bounds.lower[i], memory.bounds.upper[i]
        moved = u[i] - clamp(u[i] - memory.model.gradient[i], low, high)
        total += moved * moved
        memory.room.lower[i], memory.room.upper[i] = low - u[i], high - u[i]
    return math.sqrt(total)


@inner
def _find_policy(T: int, memory: Memory, regularisation: float, last: bool) -> tuple[float, float, bool]:
    """The policy with the largest weight of the dynamics' curvature that keeps it positive definite.

    Where none does, it is that of weight 0.9, of which only the gains are of any use, and these only in the last iteration.
    """
    model, room, policy = memory.model, memory.room, memory.policy
    for tenths in range(WEIGHTS, -1, -1):
        slope, curvature, positive = backward_sweep(memory.sweep, T, model, tenths / WEIGHTS, room, regularisation, 1, policy)
        if positive:
            return slope, curvature, True
    if last:
        backward_sweep(memory.sweep, T, model, (WEIGHTS - 1) / WEIGHTS, room, regularisation, 0, policy)
    return 0.0, 0.0, False


@inner
def _search(
    instance: Instance,
    settings: Settings,
    memory: Memory,
    now: Trajectory,
    cost: float,
    slope: float,
    curvature: float,
) -> tuple[float, float]:
    """Move to the end of the longest step that lowers the cost by enough; returns its length, 0 for none, and the cost."""
    length = 1.0
    slack = ROUNDING * (1.0 + abs(cost))
    for _ in range(settings.line_search_steps + 1):
        expected = slope * length + 0.5 * curvature * length * length
        trial_cost = _take_step(instance, memory, now, length)
        if trial_cost <= cost + settings.sufficient_decrease * expected + slack:
            for i in range((instance.T + 1) * N):
                now.x[i] = memory.trial.x[i]
            for i in range(instance.T * M):
                now.u[i] = memory.trial.u[i]
            return length, trial_cost
        length *= 0.5
    return 0.0, cost


@inner
def _take_step(instance: Instance, memory: Memory, now: Trajectory, length: float) -> float:
    """Roll out under u + length k + K (x' - x), clipped, into memory.trial; returns the cost."""
    x, u, policy = memory.trial.x, memory.trial.u, memory.policy
    for i in range(N):
        x[i] = now.x[i]
    cost = 0.0
    for t in range(instance.T):
        for a in range(t * M, (t + 1) * M):
            control = now.u[a] + length * policy.k[a]
            for j in range(N):
                control += policy.feedback[a * N + j] * (x[t * N + j] - now.x[t * N + j])
            u[a] = _within(control, now.u[a], memory.bounds.lower[a], memory.bounds.upper[a])
        cost += _advance(instance, memory.trial, t)
    return cost + _terminal(instance, x)


@inner
def _within(control: float, before: float, low: float, high: float) -> float:
    """The control, clipped, and on the bound where only rounding keeps it off: there, it counts as held."""
    rounding = ROUNDING_OF_STEP * (abs(control) + abs(before))
    if control - low <= rounding:
        return low
    return high if high - control <= rounding else control


@inner
def _roll_out(instance: Instance, bounds: Bounds, now: Trajectory) -> float:
    """Clip the controls and fill in the states after the first; returns the cost."""
    cost = 0.0
    for t in range(instance.T):
        for a in range(t * M, (t + 1) * M):
            now.u[a] = clamp(now.u[a], bounds.lower[a], bounds.upper[a])
        cost += _advance(instance, now, t)
    return cost + _terminal(instance, now.x)


@inner
def _advance(instance: Instance, now: Trajectory, t: int) -> float:
    """Write the state after step t; returns the stage cost."""
    x, u = shift(now.x, t * N), shift(now.u, t * M)
    c, offs = shift(instance.c, t * instance.c_step), shift(instance.offs, t * instance.offs_step)
    return call_float(instance.model[ADVANCE], (x, u, c, instance.P, offs, instance.work, shift(x, N)))


@inner
def _terminal(instance: Instance, x: Pointer) -> float:
    last = shift(x, instance.T * N)
    return call_float(instance.model[TERMINAL], (last, instance.c, instance.P, instance.offs, instance.work))
