"""Modules of plain Python loops over arrays as machine code."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from types import FunctionType, ModuleType

from dilqr_rl.native import build
from dilqr_rl.native.tracing import UntraceableError

__all__ = ["compile_loops"]

# As text, since it becomes part of the source that the cache goes by: a set would be written in another order each time.
_OPTIONS = "error_model='numpy', nogil=True, fastmath={'contract', 'nsz', 'arcp'}, no_rewrites=True, cache=True"

_log = logging.getLogger("dilqr_rl")


def compile_loops(module: ModuleType, signatures: Mapping[str, str], label: str) -> ModuleType:
    """Compile a module of functions over NumPy arrays, all of it; its functions release the GIL.

    Args:
        module: plain Python that numba can compile and that imports nothing but `math` and `numpy`. Its functions may call
            each other.
        signatures: for each function that is called from outside, the numba types of its arguments, such as
            "float64[:, ::1], int64". It returns nothing.
        label: what to call it in the log.

    Returns:
        A module with the functions named in `signatures`; where nothing can be compiled, the module that was given, whose
        functions do the same slowly. One line in the log then says why.
    """
    functions = [name for name, value in vars(module).items() if isinstance(value, FunctionType)]
    lines = [f"{name} = njit({_OPTIONS})({name})" for name in functions]
    lines += [f"{name}.compile('void({types})')\n{name}.disable_compile()" for name, types in signatures.items()]
    try:
        source = "\n".join((inspect.getsource(module), "from numba import njit", *lines, ""))
        return build.load(module.__name__.rpartition(".")[2], source, label)
    except (UntraceableError, OSError) as error:  # the latter: there is no source, in an installation of bytecode only
        _log.warning("%s will be slow, in plain Python: %s", label, error)
        return module
