"""The linear-quadratic problem of one iteration, and of the adjoint: the backward sweep of lqr.py for one problem."""

from __future__ import annotations

from typing import NamedTuple

from dilqr_rl.native.kernel.box_one import box_step
from dilqr_rl.native.kernel.instance import Bounds, Expansion
from dilqr_rl.native.kernel.memory import (
    INDEFINITE,
    KK,
    MN,
    NK,
    NN,
    POSITIVE,
    SINGULAR,
    K,
    M,
    N,
    Pointer,
    call_int,
    inner,
    local,
    separate,
    shift,
)


class Policy(NamedTuple):
    """What a sweep finds: k (T, m) and the feedback K (T, m, n)."""

    k: Pointer
    feedback: Pointer


# How a sweep treats a Q_uu that is not positive definite: it goes on with the stationary point; it lifts it where it is
# singular to rounding, and else stops; or it lifts it.
PLAIN, STRICT, LIFTING = 0, 1, 2
LIFT = 1e-6  # what lifts Q_uu, relative to the largest element of its diagonal
ROUNDING_OF_SUM = 64 * 2.0**-52  # of Q_uu, relative to its terms


@inner
def backward_sweep(
    sweep: int, T: int, model: Expansion, weight: float, room: Bounds, damping: float, mode: int, policy: Policy
) -> tuple[float, float, int]:
    """Solve the linear-quadratic problem backwards in time.

    Args:
        sweep: the address of `sweep_loop`, compiled by itself, once for both the solver and the adjoint.
        T: the horizon.
        model: the problem; its Hessians are H + weight C.
        weight: the share of the dynamics' curvature.
        room: bounds of the step.
        damping: added to the diagonal of Q_uu, relative to its largest element.
        mode: PLAIN, STRICT or LIFTING.
        policy: out.

    Returns:
        Slope and curvature of the expected change of the cost, and POSITIVE where every step has a minimum, SINGULAR where it
        has one since Q_uu was lifted.
    """
    change = local(2)
    F, g, H, C = model.F, model.g, model.H, model.C
    sign = call_int(
        sweep,
        (T, F, g, H, C, weight, room.lower, room.upper, damping, mode, policy.k, policy.feedback, change),
    )
    return change[0], change[1], sign


SWEEP_LOOP = "int64(int64, {D}, {D}, {D}, {D}, float64, {D}, {D}, float64, int64, {D}, {D}, {D})".format(D="CPointer(float64)")


@separate
def sweep_loop(
    T: int,
    F: Pointer,
    g: Pointer,
    H: Pointer,
    C: Pointer,
    weight: float,
    lower: Pointer,
    upper: Pointer,
    damping: float,
    mode: int,
    k: Pointer,
    feedback: Pointer,
    change: Pointer,
) -> int:
    """The sweep; see `backward_sweep`. Slope and curvature go to `change`; returns what the Q_uu are."""
    V, v, Q, q, spread, rounding = local(NN), local(N), local(KK), local(K), local(N), local(M)
    for i in range(N):
        v[i] = g[T * K + i]
        spread[i] = abs(H[T * KK + i * N + i])
    for i in range(NN):
        V[i] = H[T * KK + i]
    slope, curvature, worst = 0.0, 0.0, POSITIVE
    for t in range(T - 1, -1, -1):
        k_t, K_t, low, high = shift(k, t * M), shift(feedback, t * MN), shift(lower, t * M), shift(upper, t * M)
        F_t, H_t, C_t = shift(F, t * NK), shift(H, t * KK), shift(C, t * KK)
        _add_step(F_t, shift(g, t * K), H_t, C_t, weight, V, v, Q, q)
        unit, lift = _units(Q, q, low, high)
        _find_rounding(F_t, H_t, C_t, weight, spread, rounding)
        sign = box_step(Q, q, damping * unit, rounding, low, high, k_t, K_t)
        if mode != PLAIN and sign != POSITIVE:
            if sign == SINGULAR or mode == LIFTING:
                lifted = box_step(Q, q, damping * unit + lift, rounding, low, high, k_t, K_t)
                sign = SINGULAR if lifted == POSITIVE else INDEFINITE
            worst = sign if worst != INDEFINITE else worst
            if sign == INDEFINITE:
                break
        elif sign != POSITIVE:
            worst = INDEFINITE
        for i in range(N):
            spread[i] = abs(Q[i * K + i])
        first, second = _minimise_out(Q, q, k_t, K_t, V, v)
        slope += first
        curvature += second
    change[0], change[1] = slope, curvature
    return worst


@inner
def _units(Q: Pointer, q: Pointer, low: Pointer, high: Pointer) -> tuple[float, float]:
    """What damping is relative to, the largest element of Q_uu's diagonal, and what lifts it.

    Where there is no curvature at all, that is what makes a step as long as the bounds are apart; 1 without bounds.
    """
    unit, slope = 0.0, 0.0
    for a in range(M):
        unit = max(unit, abs(Q[(N + a) * K + N + a]))
        if high[a] - low[a] > 0.0:
            slope = max(slope, abs(q[N + a]) / (high[a] - low[a]))
    if unit > 0.0:
        return unit, LIFT * unit
    return (slope, slope) if slope > 0.0 else (1.0, 1.0)


@inner
def _find_rounding(F: Pointer, H: Pointer, C: Pointer, weight: float, spread: Pointer, rounding: Pointer) -> None:
    """Write what the diagonal of Q_uu may have lost to rounding.

    V is what is left of Q_xx after the later controls have been minimised out; `spread` holds its diagonal.
    """
    for a in range(N, K):
        size = 0.0
        for i in range(N):
            size += F[i * K + a] * F[i * K + a] * spread[i]
        rounding[a - N] = ROUNDING_OF_SUM * (abs(H[a * K + a] + weight * C[a * K + a]) + N * size)


@inner
def _add_step(
    F: Pointer, g: Pointer, H: Pointer, C: Pointer, weight: float, V: Pointer, v: Pointer, Q: Pointer, q: Pointer
) -> None:
    """Q = H + weight C + F^T V F, its upper triangle, and q = g + F^T v."""
    W = local(NK)  # V F
    for j in range(K):
        q[j] = g[j]
    for i in range(N):
        for j in range(K):
            q[j] += F[i * K + j] * v[i]
    for i in range(N):
        for j in range(K):
            total = 0.0
            for a in range(N):
                total += V[i * N + a] * F[a * K + j]
            W[i * K + j] = total
    for a in range(K):
        for j in range(a, K):
            total = H[a * K + j] + weight * C[a * K + j]
            for i in range(N):
                total += F[i * K + a] * W[i * K + j]
            Q[a * K + j] = total


@inner
def _minimise_out(Q: Pointer, q: Pointer, k: Pointer, feedback: Pointer, V: Pointer, v: Pointer) -> tuple[float, float]:
    """V and v of the cost to go under du = k + K dx; returns the step's part of slope and curvature."""
    W = local(MN)  # Q_uu K + Q_ux
    slope, curvature = 0.0, 0.0
    for i in range(N):
        v[i] = q[i]
    for a in range(M):
        total = 0.0
        for j in range(N):
            W[a * N + j] = Q[j * K + N + a]
        for b in range(M):
            first, second = (a, b) if a < b else (b, a)
            Q_ab = Q[(N + first) * K + N + second]
            total += Q_ab * k[b]
            for j in range(N):
                W[a * N + j] += Q_ab * feedback[b * N + j]
        slope += k[a] * q[N + a]
        curvature += k[a] * total
        for i in range(N):
            v[i] += feedback[a * N + i] * (total + q[N + a]) + Q[i * K + N + a] * k[a]
    for i in range(N):
        for j in range(i, N):
            total = Q[i * K + j]
            for a in range(M):
                total += feedback[a * N + i] * W[a * N + j] + Q[i * K + N + a] * feedback[a * N + j]
            V[i * N + j] = V[j * N + i] = total
    return slope, curvature
