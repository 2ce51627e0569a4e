"""One step for a batch of states: of a model's dynamics alone, or of an environment."""

from __future__ import annotations

from typing import Any

import numpy as np

from dilqr_rl.native.kernel.memory import call_float, call_void, inner, outer, pointer, shift

CONSTANTS, ADVANCE = 0, 1  # places of the model's functions
BAD_ACTION, NOT_FINITE, OUTSIDE = 1, 2, 4  # flags


@outer
def step(model: Any, sizes: Any, P: Any, offs: Any, x: Any, u: Any, following: Any) -> None:
    """Write f(x, u).

    Args:
        model: addresses of the model's functions.
        sizes: (2,), how many constants and how much memory the model needs.
        P: its parameters, flat.
        offs: (V,), where each value starts in P.
        x: states (B, n).
        u: controls (B, m).
        following: (B, n), out.
    """
    c, work = np.empty(sizes[0]), np.empty(sizes[1])
    call_void(model[CONSTANTS], (pointer(P), pointer(offs), pointer(c), pointer(work)))
    for b in range(x.shape[0]):
        state, control = shift(pointer(x), b * x.shape[1]), shift(pointer(u), b * u.shape[1])
        after = shift(pointer(following), b * x.shape[1])
        call_float(model[ADVANCE], (state, control, pointer(c), pointer(P), pointer(offs), pointer(work), after))
    # A pointer does not keep its array alive: the last use of the name does.
    c[0], work[0] = 0.0, 0.0


@inner
def observe(states: Any, b: int, limits: Any, seen: Any) -> int:
    """Write state b of (B, n), clipped to its limits, and return its flags."""
    flag = 0
    for i in range(states.shape[1]):
        value, limit = states[b, i], limits[1 + i]
        if not np.isfinite(value):
            flag |= NOT_FINITE
        elif abs(value) > limit:
            flag |= OUTSIDE
        seen[b, i] = min(max(value, -limit), limit)
    return flag


@outer
def transition(
    model: Any,
    sizes: Any,
    limits: Any,
    P: Any,
    offs: Any,
    x: Any,
    action: Any,
    following: Any,
    seen: Any,
    reward: Any,
    flags: Any,
) -> None:
    """Write what an environment makes of states and actions.

    Args:
        model: addresses of the model's functions; the stage cost is the reward.
        sizes: (2,), how many constants and how much memory the model needs.
        limits: (1+n,), the control for an action of 1, and the largest absolute states that are inside.
        P: its parameters, flat: one row for each state, or one row for all.
        offs: (V,), where each value starts in a row.
        x: states (B, n).
        action: (B, m), clipped to [-1, 1].
        following: (B, n), out.
        seen: (B, n) float32, `following` clipped to the limits, out.
        reward: (B,), of state and control, out.
        flags: (B,), out: BAD_ACTION (not finite), or the sum of NOT_FINITE and OUTSIDE (the next state).
    """
    n, m = x.shape[1], action.shape[1]
    c, work, u = np.empty(sizes[0]), np.empty(sizes[1]), np.empty(m)
    for b in range(x.shape[0]):
        row = shift(pointer(P), b * P.shape[1] if P.shape[0] > 1 else 0)
        if b == 0 or P.shape[0] > 1:
            call_void(model[CONSTANTS], (row, pointer(offs), pointer(c), pointer(work)))
        finite = True
        for j in range(m):
            finite = finite and np.isfinite(action[b, j])
            u[j] = limits[0] * min(max(action[b, j], -1.0), 1.0)
        state, after = shift(pointer(x), b * n), shift(pointer(following), b * n)
        reward[b] = call_float(model[ADVANCE], (state, pointer(u), pointer(c), row, pointer(offs), pointer(work), after))
        flags[b] = observe(following, b, limits, seen) if finite else BAD_ACTION
    # A pointer does not keep its array alive: the last use of the name does.
    c[0], work[0], u[0] = 0.0, 0.0, P[0, 0]
