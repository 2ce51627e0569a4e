"""Machine code from models in torch: traced, differentiated, written as Python, compiled by Numba.

tracing, rules          a function of torch tensors as a graph of numbers and small arrays
graph, operations       that graph, and the elementwise operations it is made of
derivatives             further nodes for its derivatives
writer, model           the source of the functions that a solver needs
fingerprint             what else the source depends on
kernel*                 the solver and the adjoint, which call those functions
cache, build            source to machine code, kept in the user's cache folder
arguments, threads      a batch as arrays, and its share for each thread
program                 all of it, for the planner
dynamics                the dynamics alone, as a NumPy function
"""

from dilqr_rl.native.dynamics import CompiledDynamics, compile_dynamics

__all__ = ["CompiledDynamics", "compile_dynamics"]
