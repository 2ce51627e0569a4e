"""The gradient of a solution: adjoint.py, one problem after the other."""

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
from dilqr_rl.native.kernel.memory import KK, MN, NK, K, M, N, Pointer, call_void, inner, local, outer, pointer, shift
from dilqr_rl.native.kernel.sweep import PLAIN, Policy, backward_sweep, sweep_loop

SENSITIVITY, SENSITIVITY_TERMINAL, CONSTANTS_GRADIENT = 5, 6, 7  # places of the model's functions
SOLVED = 0  # the status


class AdjointMemory(NamedTuple):
    """Memory for one problem.

    Attributes:
        model: around the solution; its g becomes the loss's.
        policy: of the sweep.
        bounds: of the controls.
        limit: of du, zero where the control is at its bound.
        side: -1 where a control is at its lower bound, 1 at its upper, else 0 (T, m).
        multiplier: derivative of the loss with respect to that bound (T, m).
        d: the step (dx, du), (T+1, n+m).
        mu: its costates (T+1, n).
    """

    model: Expansion
    policy: Policy
    bounds: Bounds
    limit: Bounds
    side: Pointer
    multiplier: Pointer
    d: Pointer
    mu: Pointer


class Loss(NamedTuple):
    """The gradient of the loss with respect to the states (T+1, n), the controls (T, m) and the cost of one problem."""

    dx: Pointer
    du: Pointer
    dcost: float


class ValueGradient(NamedTuple):
    """Where the gradient with respect to the values goes.

    Attributes:
        G: all of it, flat.
        table: (3, V), as `Batch.table`, of G.
        offs: memory for the offsets of one step (V,).
        dc: memory for the gradient with respect to the constants of one step (C,).
    """

    G: Pointer
    table: Pointer
    offs: Pointer
    dc: Pointer


def adjoint(
    model: Any,
    T: int,
    sizes: Any,
    start: int,
    stop: int,
    exact: int,
    P: Any,
    table: Any,
    bound_rows: Any,
    x: Any,
    u: Any,
    status: Any,
    loss_dx: Any,
    loss_du: Any,
    loss_dcost: Any,
    with_values: int,
    dx0: Any,
    G: Any,
    gtable: Any,
) -> None:
    """The gradient of a loss with respect to start states and values, through the solutions start <= b < stop.

    Where a problem has not converged, dx0 is zero and nothing goes into G. All arrays are contiguous, float64 or int64.

    Args:
        model: addresses of the model's functions (8,).
        T: the horizon.
        sizes: (2,), how many constants and how much memory the model needs.
        start: the first problem.
        stop: the one after the last.
        exact: 1 for the gradient of the fixed point, 0 for DiffMPC's.
        P: the parameters of all problems, flat.
        table: (3, V), where each value starts in P, and its strides from problem to problem and from step to step.
        bound_rows: (2, 2), for u_min and u_max: which value it is, and its stride from component to component.
        x: states (B, T+1, n).
        u: controls (B, T, m).
        status: (B,).
        loss_dx: gradient of the loss with respect to x.
        loss_du: with respect to u.
        loss_dcost: with respect to the cost (B,).
        with_values: 0 if only dx0 is wanted; then nothing goes into G.
        dx0: (B, n), out.
        G: the gradient with respect to the values, flat; is added to.
        gtable: (3, V), the table of G.
    """
    rows, V, C = rows_of(T, table), table.shape[1], int(sizes[0])
    offs = np.empty((rows + 1) * V, np.int64)
    memory = np.empty((rows + 1) * C + int(sizes[1]) + expansion_size(T) + T * (7 * M + MN) + (T + 1) * (K + N))
    solution = (model, T, sizes, start, stop, int(exact), P, table, bound_rows, x, u, status, loss_dx, loss_du, loss_dcost)
    adjoint_range(*solution, int(with_values), dx0, G, gtable, rows, offs, memory, sweep_loop.address)


@outer
def adjoint_range(
    model: Any,
    T: int,
    sizes: Any,
    start: int,
    stop: int,
    exact: int,
    P: Any,
    table: Any,
    bound_rows: Any,
    x: Any,
    u: Any,
    status: Any,
    loss_dx: Any,
    loss_du: Any,
    loss_dcost: Any,
    with_values: int,
    dx0: Any,
    G: Any,
    gtable: Any,
    rows: int,
    offs: Any,
    memory: Any,
    sweep: int,
) -> None:
    """`adjoint` with the memory that it needs for offsets and for everything else, and the address of the sweep."""
    V, C = table.shape[1], sizes[0]
    batch = Batch(pointer(model), T, pointer(P), pointer(table), pointer(bound_rows), V, C, rows)
    dc = shift(pointer(memory), rows * C + sizes[1])
    values = ValueGradient(pointer(G), pointer(gtable), shift(pointer(offs), rows * V), dc)
    for b in range(start, stop):
        for i in range(N):
            dx0[b, i] = 0.0
        if status[b] != SOLVED:
            continue
        instance = bind(batch, b, pointer(offs), pointer(memory))
        parts = _adjoint_memory(shift(dc, C), T)
        read_bounds(instance, batch.bound_rows, parts.bounds)
        at = Trajectory(shift(pointer(x), b * (T + 1) * N), shift(pointer(u), b * T * M))
        loss = Loss(shift(pointer(loss_dx), b * (T + 1) * N), shift(pointer(loss_du), b * T * M), loss_dcost[b])
        linearise(instance, at.x, at.u, parts.model)
        _find_sides(T, at.u, parts)
        _put_loss(T, loss, parts.model)
        share = 1.0 if exact != 0 else 0.0
        backward_sweep(sweep, T, parts.model, share, parts.limit, 0.0, PLAIN, parts.policy)
        _find_step(T, parts, share)
        for i in range(N):
            dx0[b, i] = parts.mu[i]
        if with_values != 0:
            _add_value_gradient(batch, b, instance, parts, at, loss.dcost, values)


@inner
def _adjoint_memory(start: Pointer, T: int) -> AdjointMemory:
    model = expansion_in(start, T)
    bounds = shift(model.gradient, T * M)
    limit = shift(bounds, 2 * T * M)
    side = shift(limit, 2 * T * M)
    multiplier = shift(side, T * M)
    k = shift(multiplier, T * M)
    feedback = shift(k, T * M)
    d = shift(feedback, T * MN)
    return AdjointMemory(
        model,
        Policy(k, feedback),
        Bounds(bounds, shift(bounds, T * M)),
        Bounds(limit, shift(limit, T * M)),
        side,
        multiplier,
        d,
        shift(d, (T + 1) * K),
    )


@inner
def _put_loss(T: int, loss: Loss, model: Expansion) -> None:
    """Put the gradient of the loss, its part through the cost included, in the place of the cost's."""
    for t in range(T + 1):
        g = shift(model.g, t * K)
        for i in range(N):
            g[i] = loss.dx[t * N + i] + loss.dcost * g[i]
        if t < T:
            for i in range(M):
                g[N + i] = loss.du[t * M + i] + loss.dcost * g[N + i]


@inner
def _find_sides(T: int, u: Pointer, memory: AdjointMemory) -> None:
    """Which controls are at a bound, or about to press against it."""
    for i in range(T * M):
        low, high = memory.bounds.lower[i], memory.bounds.upper[i]
        target = u[i] - memory.model.gradient[i]
        side = 0.0
        if u[i] <= low or target <= low:
            side = -1.0
        elif u[i] >= high or target >= high:
            side = 1.0
        memory.side[i] = side
        limit = math.inf if side == 0.0 else 0.0
        memory.limit.lower[i], memory.limit.upper[i] = -limit, limit


@inner
def _find_step(T: int, memory: AdjointMemory, share: float) -> None:
    """The step d under the policy, its costates mu and the multipliers: zeros for a problem whose system is singular.

    `share` is that of the dynamics' curvature in the Hessians.
    """
    finite = _linear_rollout(T, memory)
    _find_costates(T, memory, share)
    for i in range((T + 1) * N):
        finite = finite and math.isfinite(memory.mu[i])
    if not finite:
        for i in range((T + 1) * K):
            memory.d[i] = 0.0
        for i in range((T + 1) * N):
            memory.mu[i] = 0.0
        for i in range(T * M):
            memory.multiplier[i] = 0.0


@inner
def _linear_rollout(T: int, memory: AdjointMemory) -> bool:
    """The step d from dx_0 = 0; returns whether all of it is finite."""
    d = memory.d
    finite = True
    for i in range(N):
        d[i] = 0.0
    for t in range(T):
        here = shift(d, t * K)
        after = shift(here, K)
        F = shift(memory.model.F, t * NK)
        for a in range(M):
            here[N + a] = memory.policy.k[t * M + a]
            for j in range(N):
                here[N + a] += memory.policy.feedback[(t * M + a) * N + j] * here[j]
            finite = finite and math.isfinite(here[N + a])
        for i in range(N):
            total = 0.0
            for j in range(K):
                total += F[i * K + j] * here[j]
            after[i] = total
            finite = finite and math.isfinite(total)
    return finite


@inner
def _find_costates(T: int, memory: AdjointMemory, share: float) -> None:
    """The costates mu of the step d, and the multipliers of the bounds."""
    model, mu = memory.model, memory.mu
    for i in range(N):
        total = model.g[T * K + i]
        for j in range(N):
            total += model.H[T * KK + i * N + j] * memory.d[T * K + j]
        mu[T * N + i] = total
    sums = local(K)
    for t in range(T - 1, -1, -1):
        d, F = shift(memory.d, t * K), shift(model.F, t * NK)
        H, C = shift(model.H, t * KK), shift(model.C, t * KK)
        for i in range(K):
            total = model.g[t * K + i]
            for j in range(K):
                total += (H[i * K + j] + share * C[i * K + j]) * d[j]
            sums[i] = total
        for j in range(N):
            for i in range(K):
                sums[i] += F[j * K + i] * mu[(t + 1) * N + j]
        for i in range(N):
            mu[t * N + i] = sums[i]
        for i in range(M):
            memory.multiplier[t * M + i] = sums[N + i]


@inner
def _add_value_gradient(
    batch: Batch,
    b: int,
    instance: Instance,
    memory: AdjointMemory,
    at: Trajectory,
    weight: float,
    values: ValueGradient,
) -> None:
    """Add to G what problem b contributes; `weight` is the loss's derivative with respect to its cost."""
    T, V, table, G, goffs, dc = batch.T, batch.V, values.table, values.G, values.offs, values.dc
    for t in range(T):
        for i in range(V):
            goffs[i] = table[i] + b * table[V + i] + t * table[2 * V + i]
        c, offs = shift(instance.c, t * instance.c_step), shift(instance.offs, t * instance.offs_step)
        rest = (c, instance.P, offs, instance.work, dc, G, goffs)
        if t == 0 or batch.rows > 1:
            for i in range(batch.C):
                dc[i] = 0.0
        if t == 0:
            last = (shift(at.x, T * N), shift(memory.d, T * K), weight)
            call_void(instance.model[SENSITIVITY_TERMINAL], last + rest)
        here = (shift(at.x, t * N), shift(at.u, t * M), shift(memory.model.costate, (t + 1) * N))
        step = (shift(memory.d, t * K), shift(memory.mu, (t + 1) * N), weight)
        call_void(instance.model[SENSITIVITY], here + step + rest)
        if t == T - 1 or batch.rows > 1:
            call_void(instance.model[CONSTANTS_GRADIENT], (instance.P, offs, c, instance.work, dc, G, goffs))
        for i in range(M):
            side = memory.side[t * M + i]
            if side != 0.0:
                row = shift(batch.bound_rows, 0 if side < 0.0 else 2)
                G[goffs[row[0]] + i * row[1]] += memory.multiplier[t * M + i]
