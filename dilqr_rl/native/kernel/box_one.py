"""The box-constrained quadratic program of one step, for one control: box.py in closed form."""

from __future__ import annotations

from dilqr_rl.native.kernel.memory import INDEFINITE, KK, POSITIVE, SINGULAR, K, N, Pointer, clamp, inner


@inner
def box_step(
    Q: Pointer, q: Pointer, damping: float, rounding: Pointer, lower: Pointer, upper: Pointer, k: Pointer, feedback: Pointer
) -> int:
    """Minimise Q_uu k^2 / 2 + q_u k between lower (1,) and upper (1,); see box.py for what happens where there is no minimum.

    Args:
        Q: (n+1, n+1), its upper triangle is read.
        q: (n+1,).
        damping: added to Q_uu.
        rounding: (1,), of Q_uu.
        lower: (1,).
        upper: (1,).
        k: (1,), out.
        feedback: (1, n), out.

    Returns:
        POSITIVE where k is a minimum; SINGULAR where Q_uu is zero to rounding.
    """
    Q_uu, q_u = Q[KK - 1] + damping, q[N]
    low, high = lower[0], upper[0]
    flat = Q_uu == 0.0
    if flat:
        low = high = clamp(0.0, low, high)
        Q_uu = 1.0
    inverse = 1.0 / Q_uu
    unbounded = -q_u * inverse
    down, up = q_u >= 0.0 and low >= 0.0, q_u <= 0.0 and high <= 0.0  # at a bound that it presses against
    held = down or up
    slope = 0.0
    if not held and low < unbounded and unbounded < high:
        k[0] = unbounded
        slope = -inverse
    elif down or (not up and unbounded <= low):
        k[0] = low
    else:
        k[0] = high
    for j in range(N):
        feedback[j] = slope * Q[j * K + N]
    if flat:
        return POSITIVE if q_u == 0.0 else SINGULAR
    if held or Q_uu > rounding[0]:
        return POSITIVE
    return SINGULAR if Q_uu >= -rounding[0] else INDEFINITE
