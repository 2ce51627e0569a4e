"""The nearest positive semidefinite matrix: its eigenvalues below zero become zero."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["nearest_convex"]

_ROUNDING = 4 * torch.finfo(torch.float64).eps  # of an eigenvalue, relative to the largest


def nearest_convex(H: Tensor) -> Tensor:
    """Symmetric matrices H (..., k, k), those with a negative eigenvalue projected; what isn't finite stays as it is."""
    flat = H.reshape(-1, *H.shape[-2:])
    finite = flat.detach().isfinite().flatten(1).all(1)
    values = torch.linalg.eigvalsh(torch.where(finite[:, None, None], flat.detach(), 0.0))
    concave = (values[:, 0] < -_ROUNDING * values.abs().amax(-1)).nonzero().squeeze(1)
    if concave.numel() == 0:
        return H
    projected: Tensor = _Projection.apply(flat[concave])
    return flat.index_put((concave,), projected).view_as(H)


class _Projection(torch.autograd.Function):
    """A function of the eigenvalues, whose derivative stays finite where some are equal (Daleckii and Krein 1965)."""

    @staticmethod
    def forward(ctx: Any, H: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(H)
        ctx.save_for_backward(values, vectors)
        return H - vectors @ (values.clamp(max=0.0).unsqueeze(-1) * vectors.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        gaps = values.unsqueeze(-1) - values.unsqueeze(-2)
        rises = values.clamp(min=0.0).unsqueeze(-1) - values.clamp(min=0.0).unsqueeze(-2)
        both = (values > 0).to(values).unsqueeze(-1).expand_as(gaps)
        quotients = torch.where(gaps.abs() > 0, rises / torch.where(gaps.abs() > 0, gaps, 1.0), both)
        symmetric = 0.5 * (gradient + gradient.mT)
        return vectors @ (quotients * (vectors.mT @ symmetric @ vectors)) @ vectors.mT
