"""The systems as torch modules, and what the solvers in torch have in common as adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.protocol import Array, CannotError
from benchmarks.systems import System


class Model(nn.Module):
    """A system's step and its Jacobian over leading batch dimensions; the physics is one parameter (P,)."""

    def __init__(self, system: System) -> None:
        super().__init__()
        self.system = system
        self.physics = nn.Parameter(torch.tensor(list(system.physics.values()), dtype=torch.float64))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The next state (..., n) after x (..., n) and u (..., 1)."""
        return torch.stack(self.system.step(torch, x.unbind(-1), u[..., 0], self.physics.unbind()), dim=-1)

    def grad_input(self, x: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """Its Jacobian with respect to x (..., n, n) and u (..., n, 1)."""
        rows = self.system.jacobian(torch, x.unbind(-1), u[..., 0], self.physics.unbind())
        F = torch.stack([torch.stack(_tensors(row, x[..., 0]), dim=-1) for row in rows], dim=-2)
        return F[..., :-1], F[..., -1:]


def _tensors(row: Sequence[Any], like: Tensor) -> list[Tensor]:
    return [entry.expand_as(like) if isinstance(entry, Tensor) else torch.full_like(like, entry) for entry in row]


class TorchAdapter:
    """Inputs, the loss and its gradient; the rest is for each solver to fill in."""

    notes: list[str] = []

    def __init__(self, system: System, horizon: int) -> None:
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float64)
        self.system, self.horizon = system, horizon
        self.controls = self.iterations = torch.empty(0)

    def prepare(self, x0: Array, targets: Array) -> None:
        self.x0, self.targets = torch.from_numpy(x0), torch.from_numpy(targets)

    def parameters(self) -> list[Tensor]:
        """What the loss is differentiated with respect to."""
        raise NotImplementedError

    def backward(self, weights: Array) -> Array:
        if not self.controls.requires_grad:
            raise CannotError("its controls carry no gradient")
        loss = (torch.from_numpy(weights)[:, None] * (self.controls - self.targets).square()).sum()
        found = torch.autograd.grad(loss, self.parameters(), retain_graph=True)
        return torch.cat([part.reshape(-1) for part in found]).numpy()

    def result(self) -> tuple[Array, Array]:
        return self.controls.detach().numpy(), self.iterations.numpy()
