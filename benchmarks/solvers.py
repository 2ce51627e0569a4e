"""The solvers under measurement: which adapter runs each, and what the package index must give it.

A peer has an environment of its own, because their needs exclude each other. torch is pinned to our own version: without the
pin some would fetch gigabytes of another, and timings would compare two torches.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

_TORCH = f"torch=={version('torch').partition('+')[0]}"


@dataclass(frozen=True)
class Solver:
    """What is measured under one name.

    Attributes:
        adapter: module in benchmarks/peers.
        environment: name of its virtual environment; None for our own.
        steps: what pip is called with, one call after the other.
        options: further arguments of the adapter.
        bounded: whether it knows bounds of the controls.
    """

    name: str
    adapter: str
    environment: str | None = None
    steps: tuple[tuple[str, ...], ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    bounded: bool = True


_CASADI: dict[str, Any] = {"environment": "casadi", "steps": (("casadi==3.8.2", "numpy>=2"),)}

SOLVERS = {
    solver.name: solver
    for solver in (
        Solver("native", "dilqr_native"),
        Solver("torch", "dilqr_torch"),
        Solver("hand-loop", "hand_loop"),
        Solver("mpc.pytorch", "mpc_pytorch", "mpc_pytorch", ((_TORCH, "numpy<2", "setuptools"), ("--no-deps", "mpc==0.0.6"))),
        Solver("fatrop", "casadi_fatrop", **_CASADI),
        Solver("ipopt", "casadi_ipopt", **_CASADI),
        Solver("crocoddyl", "crocoddyl_boxfddp", "crocoddyl", (("crocoddyl==3.2.1",),)),
        Solver("pypose", "pypose_mpc", "pypose", ((_TORCH, "numpy", "setuptools", "pypose==0.9.5"),), bounded=False),
        # Its own requirements ask for a sparse solver that has no wheel and isn't needed; its build wants torch to be there.
        Solver(
            "theseus",
            "theseus_lm",
            "theseus",
            (
                (_TORCH, "numpy", "scipy", "setuptools", "wheel", "pytest", "pybind11", "semantic-version", "urdf-parser-py"),
                ("--no-deps", "--no-build-isolation", "torchlie==0.1.0", "torchkin==0.1.1", "theseus-ai==0.2.3"),
            ),
            bounded=False,
        ),
    )
}
OURS = ("native", "torch")
# mpc.pytorch beside Stable-Baselines3, for benchmarks/ppo.py.
PPO_SOLVER = Solver(
    "mpc.pytorch, PPO",
    "mpc_pytorch_ppo",
    "mpc_pytorch_sb3",
    (
        (_TORCH, "numpy<2", "setuptools", f"stable-baselines3=={version('stable-baselines3')}"),
        ("--no-deps", "mpc==0.0.6"),
    ),
)

UNROLLED = (50, 100, 200, 300)
E2_SOLVERS = {
    "native": SOLVERS["native"],
    "torch": SOLVERS["torch"],
    "unrolled, as needed": Solver("unrolled, as needed", "dilqr_unrolled"),
    **{f"unrolled, {n}": Solver(f"unrolled, {n}", "dilqr_unrolled", options={"iterations": n}) for n in UNROLLED},
    "mpc.pytorch": SOLVERS["mpc.pytorch"],
}
