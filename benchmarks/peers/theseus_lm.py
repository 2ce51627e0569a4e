"""Theseus: the controls as one vector of a nonlinear least-squares problem (single shooting), by Levenberg-Marquardt."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from benchmarks.protocol import MAX_ITERATIONS, TOLERANCE, Array, serve
from benchmarks.systems import System
from benchmarks.torch_models import TorchAdapter

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its sparse solver isn't installed; a dense one fits problems of this size
    import theseus as th


class Peer(TorchAdapter):
    """Its implicit gradient: one Gauss-Newton step at the solution, differentiated."""

    version = th.__version__
    notes = ["knows no bounds: solved without", "stops when no problem's cost changes by more than 1e-16, relative"]

    def __init__(self, system: System, horizon: int) -> None:
        super().__init__(system, horizon)
        self.physics = torch.tensor(list(system.physics.values())).requires_grad_()
        self.root = torch.tensor(system.weights).sqrt()
        self.goal = torch.tensor(system.goal)

    def prepare(self, x0: Array, targets: Array) -> None:
        super().prepare(x0, targets)
        B, T = targets.shape
        n = self.system.state_size
        controls = th.Vector(tensor=torch.zeros(B, T), name="controls")
        start = th.Variable(self.x0, name="x0")
        physics = th.Variable(self.physics.detach()[None], name="physics")
        objective = th.Objective(dtype=torch.float64)
        cost = th.AutoDiffCostFunction(
            [controls], self._residuals, T * (n + 1), aux_vars=[start, physics], autograd_mode="vmap", name="cost"
        )
        objective.add(cost)
        optimizer = th.LevenbergMarquardt(
            objective,
            linear_solver_cls=th.CholeskyDenseSolver,
            max_iterations=MAX_ITERATIONS,
            abs_err_tolerance=TOLERANCE**2,
            rel_err_tolerance=TOLERANCE**2,
        )
        self.layer = th.TheseusLayer(optimizer)

    def _residuals(self, optim_vars: tuple[th.Vector], aux_vars: tuple[th.Variable, th.Variable]) -> Tensor:
        controls, x, physics = optim_vars[0].tensor, aux_vars[0].tensor, aux_vars[1].tensor.unbind(-1)
        found = []
        for u in controls.unbind(-1):
            found.append(self.root * (torch.cat((x, u[..., None]), dim=-1) - self.goal))
            x = torch.stack(self.system.step(torch, x.unbind(-1), u, physics), dim=-1)
        return torch.cat(found, dim=-1)

    def parameters(self) -> list[Tensor]:
        return [self.physics]

    def forward(self) -> None:
        inputs = {"controls": torch.zeros_like(self.targets), "x0": self.x0, "physics": self.physics[None]}
        settings = {"backward_mode": "implicit", "adaptive_damping": True, "damping": 1e-3}
        values, info = self.layer.forward(inputs, optimizer_kwargs=settings)
        self.controls = values["controls"]
        self.iterations = torch.where(info.converged_iter < 0, MAX_ITERATIONS, info.converged_iter)


if __name__ == "__main__":
    serve(Peer)
