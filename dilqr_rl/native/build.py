"""Machine code for generated source, with every reason why there may be none told in one way."""

from __future__ import annotations

from functools import cache, lru_cache
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from dilqr_rl.locks import ONE_AT_A_TIME
from dilqr_rl.native.kernel import kernel_source, step_source
from dilqr_rl.native.model import SIGNATURES, Model
from dilqr_rl.native.tracing import UntraceableError

_LARGEST = 64  # of n + m: a sweep keeps some matrices of this size on a thread's stack


def refuse_large(n: int, m: int) -> None:
    """Raise an `UntraceableError` for more states and controls than a solver can be compiled for."""
    if n + m > _LARGEST:
        raise UntraceableError(f"native code is for n + m up to {_LARGEST}, got {n + m}")


@cache
def solver(n: int, m: int) -> ModuleType:
    """The module with `solve` and `adjoint` for states (n,) and controls (m,).

    Raises:
        UntraceableError: it can't be compiled here, or for these sizes.
    """
    refuse_large(n, m)
    return load(f"kernel_{n}_{m}", kernel_source(n, m), f"the solver for {n} states and {m} controls")


@lru_cache(maxsize=1)
def stepper() -> ModuleType:
    """The module with `step` and `transition`; see `solver`."""
    return load("kernel_step", step_source(), "the stepping of dynamics")


def functions(model: Model, label: str) -> NDArray[np.int64]:
    """The addresses of a model's functions, in the order of `SIGNATURES`, 0 for those that the model hasn't; see `solver`."""
    module = load("model", model.source, label)
    return np.array([getattr(module, s.name).address if hasattr(module, s.name) else 0 for s in SIGNATURES], np.int64)


def load(name: str, source: str, label: str) -> ModuleType:
    """The module that compiles when its source is imported; see `solver`."""
    with ONE_AT_A_TIME:  # also while numba is imported
        try:
            import numba

            from dilqr_rl.native.cache import load_module
        except Exception as error:  # an import of a broken numba may raise anything
            raise UntraceableError(f"numba can't be imported ({error})") from error
        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
            raise UntraceableError("NUMBA_DISABLE_JIT is set")
        try:
            return load_module(name, source, label)
        except (numba.core.errors.NumbaError, OSError, RuntimeError) as error:
            raise UntraceableError(f"numba can't compile {label} ({type(error).__name__}: {error})") from error
