"""Functions of torch tensors as graphs of expressions."""

from dilqr_rl.native.tracing import elementwise, formulas, reductions, shapes  # noqa: F401 - they register their rules
from dilqr_rl.native.tracing.fingerprint import fingerprint, watched_fingerprint
from dilqr_rl.native.tracing.symbols import UNKNOWN, Symbol, UntraceableError, nodes_of, with_symbols
from dilqr_rl.native.tracing.trace import Trace
from dilqr_rl.native.tracing.watch import Watch

__all__ = [
    "UNKNOWN",
    "Symbol",
    "Trace",
    "UntraceableError",
    "Watch",
    "fingerprint",
    "nodes_of",
    "watched_fingerprint",
    "with_symbols",
]
