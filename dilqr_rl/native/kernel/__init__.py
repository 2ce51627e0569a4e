"""The solver and the adjoint as machine code: source.py joins the others for given sizes, and Numba compiles them."""

from dilqr_rl.native.kernel.source import kernel_source, step_source

__all__ = ["kernel_source", "step_source"]
