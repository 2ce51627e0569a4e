"""One step of a model's dynamics for a batch of states."""

from __future__ import annotations

from typing import Any

import numpy as np

from dilqr_rl.native.kernel.memory import call_float, call_void, outer, pointer, shift

CONSTANTS, ADVANCE = 0, 1  # places of the model's functions


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
