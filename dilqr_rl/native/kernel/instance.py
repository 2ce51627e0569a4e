"""One problem of the batch, and its linear-quadratic model along a trajectory: the expansion of ilqr.py.

Notation as in lqr.py. The terminal gradient and Hessian are the last rows of g and H, in the leading n and n x n numbers.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from dilqr_rl.native.kernel.memory import KK, NK, K, M, N, Pointer, call_void, inner, local, shift

CONSTANTS, EXPAND, EXPAND_TERMINAL = 0, 3, 4  # places of the model's functions


class Instance(NamedTuple):
    """A problem with its parameters.

    Attributes:
        model: addresses of the model's functions (8,).
        T: the horizon.
        P: the parameters of all problems, flat.
        offs: where each value of this problem starts in P, (V,), or (T, V) where some differ between the steps.
        offs_step: V then, else 0.
        c: the model's constants (C,), or (T, C).
        c_step: C then, else 0.
        work: memory for the model.
    """

    model: Pointer
    T: int
    P: Pointer
    offs: Pointer
    offs_step: int
    c: Pointer
    c_step: int
    work: Pointer


class Trajectory(NamedTuple):
    """States x (T+1, n) and controls u (T, m)."""

    x: Pointer
    u: Pointer


class Bounds(NamedTuple):
    """Lower and upper bounds (T, m)."""

    lower: Pointer
    upper: Pointer


class Expansion(NamedTuple):
    """A trajectory's linear-quadratic model.

    Attributes:
        F: (T, n, n+m).
        g: (T+1, n+m).
        H: (T+1, n+m, n+m), of the costs.
        C: (T, n+m, n+m), of lambda_{t+1}^T f.
        costate: lambda (T+1, n).
        gradient: of the cost with respect to the controls (T, m).
    """

    F: Pointer
    g: Pointer
    H: Pointer
    C: Pointer
    costate: Pointer
    gradient: Pointer


def expansion_size(T: int) -> int:
    """How many float64 an `Expansion` needs."""
    return T * (NK + KK + M) + (T + 1) * (K + KK + N)


@inner
def expansion_in(memory: Pointer, T: int) -> Expansion:
    """An `Expansion` in the memory given."""
    g = shift(memory, T * NK)
    H = shift(g, (T + 1) * K)
    C = shift(H, (T + 1) * KK)
    costate = shift(C, T * KK)
    return Expansion(memory, g, H, C, costate, shift(costate, (T + 1) * N))


def rows_of(T: int, table: Any) -> int:
    """How many rows of offsets and constants a problem needs: one for each step where some value has its own at each."""
    return T if table[2].any() else 1


class Batch(NamedTuple):
    """All problems.

    Attributes:
        model: addresses of the model's functions (8,).
        T: the horizon.
        P: the parameters of all problems, flat.
        table: (3, V), where each value starts in P, and its strides from problem to problem and from step to step.
        bound_rows: (2, 2), for u_min and u_max: which value it is, and its stride from component to component.
        V: the number of values.
        C: the number of the model's constants.
        rows: see `rows_of`.
    """

    model: Pointer
    T: int
    P: Pointer
    table: Pointer
    bound_rows: Pointer
    V: int
    C: int
    rows: int


@inner
def bind(batch: Batch, b: int, offs: Pointer, memory: Pointer) -> Instance:
    """Problem b; its offsets go to `offs` (rows, V), its constants and the model's memory to `memory` (rows C + W,)."""
    V, C, table = batch.V, batch.C, batch.table
    for t in range(batch.rows):
        for i in range(V):
            offs[t * V + i] = table[i] + b * table[V + i] + t * table[2 * V + i]
    work = shift(memory, batch.rows * C)
    for t in range(batch.rows):
        call_void(batch.model[CONSTANTS], (batch.P, shift(offs, t * V), shift(memory, t * C), work))
    several = 1 if batch.rows > 1 else 0
    return Instance(batch.model, batch.T, batch.P, offs, several * V, memory, several * C, work)


@inner
def read_bounds(instance: Instance, rows: Pointer, bounds: Bounds) -> None:
    """Write the problem's bounds, step by step; `rows` is `Batch.bound_rows`."""
    for t in range(instance.T):
        offs = shift(instance.offs, t * instance.offs_step)
        for i in range(M):
            bounds.lower[t * M + i] = instance.P[offs[rows[0]] + i * rows[1]]
            bounds.upper[t * M + i] = instance.P[offs[rows[2]] + i * rows[3]]


@inner
def linearise(instance: Instance, x: Pointer, u: Pointer, model: Expansion) -> bool:
    """Fill `model` along states x (T+1, n) and controls u (T, m); return whether the states and F are finite."""
    T = instance.T
    end = shift(model.g, T * K)
    call_void(
        instance.model[EXPAND_TERMINAL],
        (shift(x, T * N), instance.c, instance.P, instance.offs, instance.work, end, shift(model.H, T * KK)),
    )
    for i in range(N):
        model.costate[T * N + i] = end[i]
    finite = True
    for t in range(T - 1, -1, -1):
        F, g = shift(model.F, t * NK), shift(model.g, t * K)
        costate = shift(model.costate, t * N)
        later = shift(costate, N)
        c, offs = shift(instance.c, t * instance.c_step), shift(instance.offs, t * instance.offs_step)
        H, C = shift(model.H, t * KK), shift(model.C, t * KK)
        call_void(
            instance.model[EXPAND], (shift(x, t * N), shift(u, t * M), later, c, instance.P, offs, instance.work, F, g, H, C)
        )
        total = local(K)
        for j in range(K):
            total[j] = g[j]
        for i in range(N):
            for j in range(K):
                total[j] += F[i * K + j] * later[i]
        for j in range(N):
            costate[j] = total[j]
        for j in range(M):
            model.gradient[t * M + j] = total[N + j]
        for i in range(NK):
            finite = finite and math.isfinite(F[i])
    for i in range((T + 1) * N):
        finite = finite and math.isfinite(x[i])
    return finite
