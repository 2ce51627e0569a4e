"""Our own planner with backpropagation through its iterations, which E2 compares the implicit gradient with."""

from __future__ import annotations

from benchmarks.peers.dilqr_torch import Planner
from benchmarks.protocol import MAX_ITERATIONS, TOLERANCE, serve
from benchmarks.systems import System
from dilqr_rl import ILQR, ILQROptions


class _Exactly(ILQROptions):
    """Options without their checks: no residual meets a negative tolerance, so every problem takes all iterations."""

    def __post_init__(self) -> None:
        pass


class Unrolled(Planner):
    """As many iterations as asked for, or as convergence takes."""

    notes = ["its forward time includes recording the graph"]

    def __init__(self, system: System, horizon: int, iterations: int | None = None) -> None:
        super().__init__(system, horizon)
        if iterations is None:
            options = ILQROptions(max_iterations=MAX_ITERATIONS, tolerance=TOLERANCE, backend="torch")
        else:
            options = _Exactly(max_iterations=iterations, tolerance=-1.0, backend="torch", regularisation_max=float("inf"))
        self.planner = ILQR(self.planner.problem, options, gradient="unroll")


if __name__ == "__main__":
    serve(Unrolled)
