"""The linear-quadratic problem of one iteration, and of the adjoint: the backward sweep of lqr.py for one problem."""

from __future__ import annotations

from typing import NamedTuple

from dilqr_rl.native.kernel.box_one import box_step
from dilqr_rl.native.kernel.instance import Bounds, Expansion
from dilqr_rl.native.kernel.memory import KK, MN, NK, NN, K, M, N, Pointer, call_int, inner, local, separate, shift


class Policy(NamedTuple):
    """What a sweep finds: k (T, m) and the feedback K (T, m, n)."""

    k: Pointer
    feedback: Pointer


@inner
def backward_sweep(
    sweep: int, T: int, model: Expansion, weight: float, room: Bounds, regularisation: float, stop: int, policy: Policy
) -> tuple[float, float, bool]:
    """Solve the linear-quadratic problem backwards in time.

    Args:
        sweep: the address of `sweep_loop`, compiled by itself, once for both the solver and the adjoint.
        T: the horizon.
        model: the problem; its Hessians are H + weight C.
        weight: the share of the dynamics' curvature.
        room: bounds of the step.
        regularisation: added to the diagonal of Q_uu.
        stop: 1 to give up at the first step without a minimum, else 0.
        policy: out.

    Returns:
        Slope and curvature of the expected change of the cost, and whether every step has a minimum.
    """
    change = local(2)
    F, g, H, C = model.F, model.g, model.H, model.C
    positive = call_int(
        sweep,
        (T, F, g, H, C, weight, room.lower, room.upper, regularisation, stop, policy.k, policy.feedback, change),
    )
    return change[0], change[1], positive != 0


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
    regularisation: float,
    stop: int,
    k: Pointer,
    feedback: Pointer,
    change: Pointer,
) -> int:
    """The sweep; see `backward_sweep`. Slope and curvature go to `change`, and 1 is returned if every step has a minimum."""
    V, v, Q, q = local(NN), local(N), local(KK), local(K)
    for i in range(N):
        v[i] = g[T * K + i]
    for i in range(NN):
        V[i] = H[T * KK + i]
    slope, curvature, positive = 0.0, 0.0, 1
    for t in range(T - 1, -1, -1):
        k_t, K_t = shift(k, t * M), shift(feedback, t * MN)
        _add_step(shift(F, t * NK), shift(g, t * K), shift(H, t * KK), shift(C, t * KK), weight, V, v, Q, q)
        if not box_step(Q, q, regularisation, shift(lower, t * M), shift(upper, t * M), k_t, K_t):
            positive = 0
            if stop != 0:
                break
        first, second = _minimise_out(Q, q, k_t, K_t, V, v)
        slope += first
        curvature += second
    change[0], change[1] = slope, curvature
    return positive


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
