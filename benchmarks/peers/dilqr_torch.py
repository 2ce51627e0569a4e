"""Our own planner on PyTorch's operations."""

from __future__ import annotations

from importlib.metadata import version

from torch import Tensor

from benchmarks.protocol import MAX_ITERATIONS, TOLERANCE, CannotError, serve
from benchmarks.reference import problem
from benchmarks.systems import System
from benchmarks.torch_models import TorchAdapter
from dilqr_rl import ILQR, ILQROptions


class Planner(TorchAdapter):
    """The module that a user calls, everything included."""

    version = version("dilqr_rl")
    backend = "torch"

    def __init__(self, system: System, horizon: int) -> None:
        super().__init__(system, horizon)
        try:
            options = ILQROptions(max_iterations=MAX_ITERATIONS, tolerance=TOLERANCE, backend=self.backend)
        except ValueError as error:
            raise CannotError(f"not available: {error}") from error
        self.planner = ILQR(problem(system, horizon).requires_grad_(False), options)
        for parameter in self.parameters():
            parameter.requires_grad_(True)

    def parameters(self) -> list[Tensor]:
        return [self.planner.problem.dynamics.get_parameter(name) for name in self.system.physics]

    def forward(self) -> None:
        solution = self.planner(self.x0)
        self.controls, self.iterations = solution.controls[..., 0], solution.num_iterations


if __name__ == "__main__":
    serve(Planner)
