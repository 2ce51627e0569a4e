"""The kernel's sizes, its memory, and its calls of functions by their address.

The files of this folder are one program in several parts, which `kernel_source` joins into one file for other sizes; each is
a module by itself, too. Pointers stand in the place of arrays: they have neither reference counts nor views to allocate,
and numba's CUDA target takes them as well. A pointer doesn't keep its array alive; whoever takes one holds on to the array.
"""

from __future__ import annotations

from typing import Any

import numba.extending
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils

N, M = 3, 1  # of the state, of the control
K = N + M
NN, NK, KK, MM, MN = N * N, N * K, K * K, M * M, M * N
INDEFINITE, POSITIVE, SINGULAR = 0, 1, 2  # what Q_uu may be on the free controls

Pointer = Any  # to float64 or int64
FASTMATH = {"contract", "reassoc", "nsz", "arcp"}  # NaN and infinity keep their meaning
OPTIONS: dict[str, Any] = {"error_model": "numpy", "nogil": True, "fastmath": FASTMATH, "no_rewrites": True}
# Inlined always: what stays a function of its own is compiled twice, alone and within its caller, with other bits, and which of
# the two is called depends on whether this process has compiled it or read it from the cache.
INNER_OPTIONS = OPTIONS | {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}

# To mypy, the stubs that come with numba know neither these options nor that an intrinsic's first argument isn't passed.
inner: Any = njit(**INNER_OPTIONS)  # for what is called from compiled code only: Python must not
outer: Any = njit(**OPTIONS, cache=True)
intrinsic: Any = numba.extending.intrinsic


def separate(function: Any) -> Any:
    """Marks what is compiled by itself and called by its address, so that its code is made once, not again in each caller."""
    return function


@intrinsic
def pointer(typing_context: Any, array: Any) -> Any:
    """The address of a contiguous array's first element."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return context.make_array(signature.args[0])(context, builder, arguments[0]).data

    return types.CPointer(array.dtype)(array), generate


@intrinsic
def shift(typing_context: Any, start: Any, count: Any) -> Any:
    """The address `count` elements after `start`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.gep(arguments[0], [arguments[1]])

    return start(start, types.int64), generate


@intrinsic(prefer_literal=True)
def local(typing_context: Any, count: Any) -> Any:
    """The address of `count` (a constant) float64 on the stack, or in registers if the compiler can; not initialised."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    size = count.literal_value

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        with builder.goto_entry_block():
            block = builder.alloca(ir.ArrayType(ir.DoubleType(), size))
            return builder.bitcast(block, ir.DoubleType().as_pointer())

    return types.CPointer(types.float64)(count), generate


def _call(result: Any, returned: ir.Type) -> Any:
    """An intrinsic that calls the C function at an address with a tuple of arguments."""

    def call(typing_context: Any, address: Any, arguments: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            passed = cgutils.unpack_tuple(builder, values[1])
            function = ir.FunctionType(returned, [value.type for value in passed])
            answer = builder.call(builder.inttoptr(values[0], function.as_pointer()), passed)
            return context.get_dummy_value() if result is types.void else answer

        return result(types.int64, arguments), generate

    return intrinsic(call)


call_void = _call(types.void, ir.VoidType())
call_float = _call(types.float64, ir.DoubleType())
call_int = _call(types.int64, ir.IntType(64))


@inner
def clamp(value: float, low: float, high: float) -> float:
    """As torch.clamp: NaN stays NaN."""
    if value < low:
        return low
    return high if value > high else value
