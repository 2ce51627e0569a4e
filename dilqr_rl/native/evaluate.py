"""A model's functions at single points, called from Python: to compare generated code with what it was made of."""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from dilqr_rl.native.arguments import Arguments

Floats = NDArray[np.float64]
_CONSTANTS, _ADVANCE, _TERMINAL = 0, 1, 2  # places of the functions


def evaluate(addresses: NDArray[np.int64], sizes: NDArray[np.int64], arguments: Arguments, x: Floats, u: Floats) -> Floats:
    """Next states, stage costs and terminal costs at points x (K, n), u (K, m), side by side as (K, n+2).

    The values in `arguments` must be shared.
    """
    c, work = np.empty(sizes[0]), np.empty(sizes[1])
    offsets = np.ascontiguousarray(arguments.table[0])
    common = [_address(array) for array in (c, arguments.numbers, offsets, work)]
    _function(addresses[_CONSTANTS], 4)(*(_address(array) for array in (arguments.numbers, offsets, c, work)))
    rows = []
    for state, control in zip(np.ascontiguousarray(x), np.ascontiguousarray(u), strict=True):
        following = np.empty_like(state)
        points = [_address(state), _address(control)]
        cost = _function(addresses[_ADVANCE], 7)(*points, *common, _address(following))
        rows.append([*following, cost, _function(addresses[_TERMINAL], 5)(points[0], *common)])
    return np.array(rows)


def _function(address: int, count: int) -> ctypes._CFunctionType:  # type: ignore[name-defined]
    return ctypes.CFUNCTYPE(ctypes.c_double, *[ctypes.c_void_p] * count)(int(address))


def _address(array: NDArray[np.generic]) -> int:
    return int(array.ctypes.data)
