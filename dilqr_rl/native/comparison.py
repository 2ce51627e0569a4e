"""What was traced, beside the functions themselves: the guard against what a trace doesn't show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dilqr_rl.native.model import Model
from dilqr_rl.native.tracing import UntraceableError

_AGREEMENT = 1e-9  # of values, relative and absolute
_AGREEMENT_OF_DERIVATIVES = 1e-6  # which torch's own formulas keep less well

Function = Callable[[Tensor, Tensor], Tensor]


def compare(model: Model, function: Function, x: Tensor, u: Tensor) -> None:
    """Compare a traced model with what it was traced from, at a few points.

    Args:
        model: the model; its outputs are q numbers.
        function: x (K, n), u (K, m) -> the outputs (K, q), by torch.
        x: states (K, n).
        u: controls (K, m).

    Raises:
        UntraceableError: they differ. A function then depends on what a trace doesn't show: on the other problems of a batch,
            on a random number, on a derivative of its own.
    """
    values, jacobian = _by_torch(function, x, u)
    traced = [model.evaluate(*point) for point in zip(x.tolist(), u.tolist(), strict=True)]
    if not _close([outputs for outputs, _ in traced], values, _AGREEMENT):
        raise UntraceableError("its functions give other results when they are called again, or with another batch")
    if not _close([rows for _, rows in traced], jacobian, _AGREEMENT_OF_DERIVATIVES):
        raise UntraceableError("its functions have other derivatives than what they compute: a custom autograd.Function, say")


def _by_torch(function: Function, x: Tensor, u: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The outputs (K, q) and their derivatives with respect to (x, u), (K, q (n+m))."""
    n = x.shape[1]
    with torch.enable_grad():
        z = torch.cat((x, u), dim=1).detach().requires_grad_()
        values = function(z[:, :n], z[:, n:])
        rows = [_gradient(column.sum(), z) for column in values.unbind(1)]
    return values.detach().numpy(), torch.cat(rows, dim=1).numpy()


def _gradient(total: Tensor, z: Tensor) -> Tensor:
    if not total.requires_grad:
        return torch.zeros_like(z)
    (found,) = torch.autograd.grad(total, z, retain_graph=True, allow_unused=True)
    return torch.zeros_like(z) if found is None else found


def _close(traced: list[list[float]], expected: NDArray[np.float64], tolerance: float) -> bool:
    """Whether they agree where both are finite: what a function does at its singular points says nothing."""
    close = np.isclose(traced, expected, rtol=tolerance, atol=tolerance)
    return bool((close | ~np.isfinite(traced) | ~np.isfinite(expected)).all())
