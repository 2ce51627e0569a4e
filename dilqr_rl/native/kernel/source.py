"""The source of what is compiled beside the models: solver and adjoint for given sizes, and the stepping of dynamics."""

from __future__ import annotations

from importlib import resources

_SIZES = "N, M = 3, 1  #"
_IMPORT = "from dilqr_rl.native.kernel."
_LARGEST_CONTROL = 62  # sets of controls are the bits of an int64
_TYPES = {
    "i": "int64",
    "f1": "float64[::1]",
    "f2": "float64[:, ::1]",
    "f3": "float64[:, :, ::1]",
    "f4": "float64[:, :, :, ::1]",
    "i1": "int64[::1]",
    "i2": "int64[:, ::1]",
    "s2": "float32[:, ::1]",
}
_ARGUMENTS = {  # in their order
    "solve_range": "i1 i i1 i i f2 f1 i2 i2 i1 f1 f3 f3 f1 i1 i1 f1 f4 i1 f3 i i1 f1 i",
    "adjoint_range": "i1 i i1 i i i f1 i2 i2 f3 f3 i1 f3 f3 f1 i f2 f1 i2 i i1 f1 i",
    "step": "i1 i1 f1 i1 f2 f2 f2",
    "transition": "i1 i1 f1 f2 i1 f2 f2 f2 s2 f1 i1",
}


def kernel_source(n: int, m: int) -> str:
    """The source of a module with `solve` and `adjoint` for states (n,) and controls (m,), compiled when it is imported.

    Raises:
        ValueError: sizes out of range.
    """
    if n < 1 or not 1 <= m <= _LARGEST_CONTROL:
        raise ValueError(f"n, m: expected n >= 1 and 1 <= m <= {_LARGEST_CONTROL}, got n = {n}, m = {m}.")
    source = _joined(
        "memory", "box_one" if m == 1 else "box_many", "instance", "sweep", "convex", "rollout", "policy", "solve", "adjoint"
    )
    sweep = "sweep_loop = cfunc(SWEEP_LOOP, error_model='numpy', fastmath=FASTMATH, no_rewrites=True, cache=True)(sweep_loop)\n"
    if source.count(_SIZES) != 1:
        raise ValueError("memory.py: expected one line that sets N and M.")
    return source.replace(_SIZES, f"N, M = {n}, {m}  #") + sweep + _compiled("solve_range") + _compiled("adjoint_range")


def step_source() -> str:
    """The source of a module with `step` and `transition`, compiled when it is imported."""
    return _joined("memory", "step") + _compiled("step") + _compiled("transition")


def _joined(*names: str) -> str:
    """The kernel's files as one, without imports of each other."""
    return "from __future__ import annotations\nfrom numba import cfunc\n" + "\n".join(map(_part, names)) + "\n"


def _part(name: str) -> str:
    lines = resources.files("dilqr_rl.native.kernel").joinpath(f"{name}.py").read_text(encoding="utf-8").splitlines()
    kept, inside = [], False
    for line in lines:
        if line.startswith(_IMPORT):
            inside = line.endswith("(")
        elif inside:
            inside = not line.startswith(")")
        elif not line.startswith("from __future__"):
            kept.append(line)
    return "\n".join(kept)


def _compiled(name: str) -> str:
    """Lines that compile a function for its arguments and for no others."""
    types = ", ".join(_TYPES[argument] for argument in _ARGUMENTS[name].split())
    return f"{name}.compile('void({types})')\n{name}.disable_compile()\n"
