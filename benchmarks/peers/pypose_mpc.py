"""PyPose: iLQR in eager PyTorch, whose gradient is that of one last LQR step."""

from __future__ import annotations

from importlib.metadata import version

import torch
from pypose.module import LQR, NLS
from pypose.utils import ReduceToBason
from torch import Tensor

from benchmarks.protocol import MAX_ITERATIONS, Array, serve
from benchmarks.systems import System
from benchmarks.torch_models import Model, TorchAdapter


class Plant(NLS):
    """The model with its Jacobian written by hand, over a batch."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def state_transition(self, state: Tensor, input: Tensor, t: Tensor | None = None) -> Tensor:
        return self.model(state.clone(), input)  # LQR goes on writing into the trajectory this is a part of

    def observation(self, state: Tensor, input: Tensor, t: Tensor | None = None) -> Tensor:
        return state

    @property
    def A(self) -> Tensor:  # noqa: N802
        return self.model.grad_input(self._ref_state, self._ref_input)[0]

    @property
    def B(self) -> Tensor:  # noqa: N802
        return self.model.grad_input(self._ref_state, self._ref_input)[1]


class Peer(TorchAdapter):
    """`pypose.module.MPC` for a batch: its own loop compares costs as if there were one problem, and refuses more."""

    version = version("pypose")
    notes = [
        "accepts bounds and ignores them",
        "no line search: the best iterate counts",
        "MPC's loop over LQR rewritten for batches",
    ]

    def __init__(self, system: System, horizon: int) -> None:
        super().__init__(system, horizon)
        self.plant = Plant(Model(system))
        q, goal = torch.tensor(system.weights), torch.tensor(system.goal)
        self.cost = (q.diag(), -q * goal)

    def prepare(self, x0: Array, targets: Array) -> None:
        super().prepare(x0, targets)
        B, T = targets.shape
        self.solver = LQR(self.plant, self.cost[0].expand(B, T, -1, -1), self.cost[1].expand(B, T, -1), T)

    def parameters(self) -> list[Tensor]:
        return [self.plant.model.physics]

    def forward(self) -> None:
        best = torch.zeros(*self.targets.shape, 1)
        least = torch.full((len(self.x0),), torch.inf)
        stepper = ReduceToBason(steps=MAX_ITERATIONS, patience=5, decreasing=1e-12, tol=-torch.inf)
        controls = best
        with torch.no_grad():
            while stepper.continual():
                _, controls, cost = self.solver(self.x0, 1, controls)
                better = cost < least
                best = torch.where(better[:, None, None], controls, best)
                least = torch.where(better, cost, least)
                controls = torch.where(torch.isfinite(cost)[:, None, None], controls, best)
                stepper.step(least)
        self.iterations = torch.full((len(self.x0),), float(stepper.steps + 1))
        self.controls = self.solver(self.x0, 1, best)[1][..., 0]


if __name__ == "__main__":
    serve(Peer)
