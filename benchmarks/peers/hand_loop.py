"""The hand-written native loop, forward only and for the pendulum alone."""

from __future__ import annotations

import numba
import numpy as np

from benchmarks.hand_loop import solve
from benchmarks.protocol import MAX_ITERATIONS, TOLERANCE, Array, CannotError, serve
from benchmarks.systems import System, h


class Peer:
    """It calls the loop with the physics folded into two numbers."""

    version = f"numba {numba.__version__}"
    notes = ["plain Gauss-Newton steps, no Newton finish"]

    def __init__(self, system: System, horizon: int) -> None:
        if system.name != "pendulum":
            raise CannotError("written for the pendulum alone")
        gravity, mass, length = system.physics.values()
        gain = (1.5 * h * gravity / length, 3.0 * h / (mass * length**2))
        self.model = (gain, np.array(system.weights), np.array(system.goal), system.bound)
        self.horizon = horizon

    def prepare(self, x0: Array, targets: Array) -> None:
        self.x0 = x0

    def forward(self) -> None:
        self.found = solve(self.x0, self.horizon, self.model, MAX_ITERATIONS, TOLERANCE)

    def backward(self, weights: Array) -> Array:
        raise CannotError("written without a gradient")

    def result(self) -> tuple[Array, Array]:
        return self.found


if __name__ == "__main__":
    serve(Peer)
