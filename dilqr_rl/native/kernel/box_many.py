"""The box-constrained quadratic program of one step, for several controls: the search of box.py.

A set of components is an integer, bit a for component a.
"""

from __future__ import annotations

import math

from dilqr_rl.native.kernel.memory import INDEFINITE, MM, POSITIVE, SINGULAR, K, M, N, Pointer, clamp, inner, local, shift

ALL = (1 << M) - 1  # the set of all components
WIDTH = M + 1 + N  # of the matrix that `_stationary_point` eliminates in
MW = M * WIDTH
SEARCH_STEPS = 60
ROUNDING_OF_SIGN = 64 * 2.0**-52  # of a derivative, relative to its terms: below it the sign means nothing


@inner
def box_step(
    Q: Pointer, q: Pointer, damping: float, rounding: Pointer, lower: Pointer, upper: Pointer, k: Pointer, feedback: Pointer
) -> int:
    """Minimise k^T Q_uu k / 2 + q_u^T k within bounds; see box.py for what happens where there is no minimum.

    Args:
        Q: (n+m, n+m), its upper triangle is read.
        q: (n+m,).
        damping: added to the diagonal of Q_uu.
        rounding: (m,), of the diagonal of Q_uu.
        lower: (m,).
        upper: (m,).
        k: (m,), out.
        feedback: (m, n), out.

    Returns:
        POSITIVE where k is a minimum; SINGULAR where Q_uu is positive semidefinite to rounding.
    """
    D, low, high, factor, direction = local(MM), local(M), local(M), local(MM), local(M)
    q_u = shift(q, N)
    missing = False  # a component without curvature has no minimum unless it has no effect
    for a in range(M):
        flat = True
        for b in range(M):
            first, second = (a, b) if a < b else (b, a)
            D[a * M + b] = Q[(N + first) * K + N + second] + (damping if a == b else 0.0)
            flat = flat and D[a * M + b] == 0.0
        origin = clamp(0.0, lower[a], upper[a])
        low[a], high[a], k[a] = (origin if flat else lower[a]), (origin if flat else upper[a]), origin
        missing = missing or (flat and q_u[a] != 0.0)
    free, factored, settled, sign = _free(D, q_u, low, high, k), -1, False, POSITIVE
    for attempt in range(SEARCH_STEPS + 1):
        if free != factored:
            factored, sign = free, _factorise(D, free, rounding, factor)
            if sign != POSITIVE:
                break
        _newton_direction(D, q_u, free, factor, k, direction)
        stopped = _move(direction, low, high, k, attempt == 0)
        free = free & ~stopped if attempt > 0 and stopped != 0 else _free(D, q_u, low, high, k)
        if attempt > 0 and free == factored:
            settled = True
            break
    if settled:
        for a in range(M):
            for j in range(N):
                feedback[a * N + j] = -Q[j * K + N + a] if free >> a & 1 else 0.0
        _substitute(factor, feedback)
        return SINGULAR if missing else POSITIVE
    if free != factored:
        sign = _factorise(D, free, rounding, factor)
    _stationary_point(D, q_u, Q, free, low, high, k, feedback)
    return SINGULAR if missing and sign == POSITIVE else sign


@inner
def _free(D: Pointer, q: Pointer, low: Pointer, high: Pointer, k: Pointer) -> int:
    """The components that are not at a bound, or that would lower the cost if they crossed it."""
    free = ALL
    for a in range(M):
        gradient, size = q[a], abs(q[a])
        for b in range(M):
            gradient += D[a * M + b] * k[b]
            size += abs(D[a * M + b]) * abs(k[b])
        rounding = ROUNDING_OF_SIGN * size
        if (k[a] <= low[a] and gradient >= -rounding) or (k[a] >= high[a] and gradient <= rounding):
            free &= ~(1 << a)
    return free


@inner
def _factorise(D: Pointer, free: int, rounding: Pointer, factor: Pointer) -> int:
    """The Cholesky factor L of D on the free components and the identity on the others, if POSITIVE is returned.

    The diagonal of `factor` holds the inverses of L's.
    """
    for a in range(M):
        for b in range(a + 1):
            total = D[a * M + b] if free >> a & free >> b & 1 else (1.0 if a == b else 0.0)
            for c in range(b):
                total -= factor[a * M + c] * factor[b * M + c]
            if a > b:
                factor[a * M + b] = total * factor[b * M + b]
            elif total > rounding[a] * (free >> a & 1):
                factor[a * M + a] = 1.0 / math.sqrt(total)
            else:
                return SINGULAR if total >= -rounding[a] else INDEFINITE
    return POSITIVE


@inner
def _newton_direction(D: Pointer, q: Pointer, free: int, factor: Pointer, k: Pointer, direction: Pointer) -> None:
    """Write the step from k to the minimum over the free components."""
    for a in range(M):
        total = 0.0
        if free >> a & 1:
            total = -q[a]
            for b in range(M):
                total -= D[a * M + b] * k[b]
        for b in range(a):
            total -= factor[a * M + b] * direction[b]
        direction[a] = total * factor[a * M + a]
    for a in range(M - 1, -1, -1):
        total = direction[a]
        for b in range(a + 1, M):
            total -= factor[b * M + a] * direction[b]
        direction[a] = total * factor[a * M + a]


@inner
def _move(direction: Pointer, low: Pointer, high: Pointer, k: Pointer, clip: bool) -> int:
    """Move k along the direction, at most to the first bound in its way, or all the way and clip it.

    Returns the components that stopped the move.
    """
    length = 1.0
    for a in range(M):
        if direction[a] != 0.0 and not clip:
            room = ((high[a] if direction[a] > 0.0 else low[a]) - k[a]) / direction[a]
            length = room if room < length else length
    stopped = 0
    for a in range(M):
        bound = high[a] if direction[a] > 0.0 else low[a]
        if direction[a] != 0.0 and (bound - k[a]) / direction[a] <= length:
            k[a] = bound
            stopped |= 1 << a
        else:
            k[a] += length * direction[a]
    return stopped


@inner
def _substitute(factor: Pointer, feedback: Pointer) -> None:
    """Solve L L^T K = feedback in place."""
    for a in range(M):
        for b in range(a):
            for j in range(N):
                feedback[a * N + j] -= factor[a * M + b] * feedback[b * N + j]
        for j in range(N):
            feedback[a * N + j] *= factor[a * M + a]
    for a in range(M - 1, -1, -1):
        for b in range(a + 1, M):
            for j in range(N):
                feedback[a * N + j] -= factor[b * M + a] * feedback[b * N + j]
        for j in range(N):
            feedback[a * N + j] *= factor[a * M + a]


@inner
def _stationary_point(
    D: Pointer, q: Pointer, Q: Pointer, free: int, low: Pointer, high: Pointer, k: Pointer, feedback: Pointer
) -> None:
    """Write k and the feedback by elimination with row pivots, where D need not be positive definite.

    The components that are not free stay at the bound at which they are.
    """
    A = local(MW)  # (m, m + 1 + n): D on the free components, the identity on the others; right-hand sides of k and of K
    for a in range(M):
        k[a] = 0.0 if free >> a & 1 else (low[a] if k[a] <= low[a] else high[a])
    for a in range(M):
        is_free, total = free >> a & 1, -q[a]
        for b in range(M):
            total -= D[a * M + b] * k[b]
            A[a * WIDTH + b] = D[a * M + b] if is_free & free >> b else (1.0 if a == b else 0.0)
        A[a * WIDTH + M] = total if is_free else k[a]
        for j in range(N):
            A[a * WIDTH + M + 1 + j] = -Q[j * K + N + a] if is_free else 0.0
    for a in range(M):
        pivot = a
        for b in range(a + 1, M):
            if abs(A[b * WIDTH + a]) > abs(A[pivot * WIDTH + a]):
                pivot = b
        for j in range(WIDTH):
            A[a * WIDTH + j], A[pivot * WIDTH + j] = A[pivot * WIDTH + j], A[a * WIDTH + j]
        for b in range(M):
            ratio = 0.0 if a == b else A[b * WIDTH + a] / A[a * WIDTH + a]
            for j in range(a, WIDTH):
                A[b * WIDTH + j] -= ratio * A[a * WIDTH + j]
    for a in range(M):
        k[a] = A[a * WIDTH + M] / A[a * WIDTH + a]
        for j in range(N):
            feedback[a * N + j] = A[a * WIDTH + M + 1 + j] / A[a * WIDTH + a]
