"""Machine code from models in torch: traced, differentiated, written as Python, compiled by Numba.

tracing/            a function of torch tensors as a graph of numbers and small arrays, and what else the function depends on
codegen/            that graph, its derivatives, and functions written from it
model               the functions that a solver needs of a problem
kernel/             the solver and the adjoint, which call those functions
cache, build        source to machine code, kept in the user's cache folder
arguments, threads  a batch as arrays, and its share for each thread
program             all of it, for the planner
dynamics            the dynamics alone, as a NumPy function
transition          dynamics and reward of an environment, likewise
loops               modules of plain loops over arrays
"""

from dilqr_rl.native.dynamics import CompiledDynamics, compile_dynamics

__all__ = ["CompiledDynamics", "compile_dynamics"]
