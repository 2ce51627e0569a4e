"""mpc.pytorch (`mpc` in the package index): box-constrained iLQR in eager PyTorch, gradient after Amos et al. (2018)."""

from __future__ import annotations

from importlib.metadata import version

import torch
from mpc import util
from mpc.mpc import MPC, GradMethods, QuadCost
from torch import Tensor

from benchmarks.protocol import MAX_ITERATIONS, serve
from benchmarks.systems import System
from benchmarks.torch_models import Model, TorchAdapter


class Peer(TorchAdapter):
    """With the derivatives written by hand, its fastest mode and the only one whose gradient reaches the Jacobians."""

    version = version("mpc")

    def __init__(self, system: System, horizon: int) -> None:
        super().__init__(system, horizon)
        self.model = Model(system)
        q, goal = torch.tensor(system.weights), torch.tensor(system.goal)
        self.cost = (q.diag(), -q * goal)

    def parameters(self) -> list[Tensor]:
        return [self.model.physics]

    def forward(self) -> None:
        B, T = len(self.x0), self.horizon
        steps = _Counting(self.model)
        C, c = self.cost
        solver = MPC(
            self.system.state_size,
            1,
            T,
            u_lower=-self.system.bound,
            u_upper=self.system.bound,
            lqr_iter=MAX_ITERATIONS,
            grad_method=GradMethods.ANALYTIC,
            eps=EPS,
            n_batch=B,
            verbose=-1,
            exit_unconverged=False,
            detach_unconverged=False,
        )
        _, controls, _ = solver(self.x0, QuadCost(C.expand(T, B, -1, -1), c.expand(T, B, -1)), steps)
        self.controls = controls[..., 0].T
        self.iterations = torch.full((B,), float(steps.count - 1))  # the last is for the gradient


class _Counting(torch.nn.Module):
    """The model, counting how often the solver linearises."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model, self.count = model, 0

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.model(x, u)

    def grad_input(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        self.count += 1
        return self.model.grad_input(x, u)


def _diagonal(d: Tensor) -> Tensor:
    """Diagonal matrices (B, k, k) of d (B, k), for mpc.util.bdiag, which indexes with bytes: today's torch refuses them."""
    return torch.diag_embed(d.to(torch.get_default_dtype()))


util.bdiag = _diagonal
EPS = 1e-8

if __name__ == "__main__":
    serve(Peer)
