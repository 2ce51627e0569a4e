"""Formulas of inverses, solutions and determinants of small matrices, by cofactors.

A is (..., n, n) with n up to 3, as mass matrices of small mechanisms are. The inverse is adj(A) / det(A), so that a singular
matrix, at which torch raises an error, gives infinity or NaN. Cofactors lose digits with the square of A's condition number,
elimination with the number itself; a step of iterative refinement makes up for it. It is zero but for rounding, so it has no
derivative. What torch keeps for its own backward pass (factors, pivots) isn't there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["MATRIX_FORMULAS"]

_LARGEST = 3


def _cofactors(a: Tensor) -> tuple[Tensor, Tensor]:
    """adj(A) (..., n, n) and det(A) (...).

    Raises:
        NotImplementedError: A is larger than 3 by 3.
    """
    n = a.shape[-1]
    if n == 1:
        return torch.ones_like(a), a[..., 0, 0]
    if n == 2:
        (p, q), (r, s) = (row.unbind(-1) for row in a.unbind(-2))
        return torch.stack((torch.stack((s, -q), -1), torch.stack((-r, p), -1)), -2), p * s - q * r
    if n == _LARGEST:
        first, second, third = a.unbind(-2)
        of_first = torch.linalg.cross(second, third)
        columns = (of_first, torch.linalg.cross(third, first), torch.linalg.cross(first, second))
        return torch.stack(columns, -1), (first * of_first).sum(-1)
    raise NotImplementedError(f"of a matrix {n} by {n}, above {_LARGEST} by {_LARGEST},")


def _no_errors(a: Tensor) -> Tensor:
    """What torch tells of each matrix: that nothing was wrong."""
    return torch.zeros(a.shape[:-2], dtype=torch.int32)


def _refined(a: Tensor, b: Tensor, left: bool) -> Tensor:
    """X of A X = B, or of X A = B."""
    adjugate, determinant = _cofactors(a)

    def times(one: Tensor, right: Tensor) -> Tensor:
        return one @ right if left else right @ one

    found = times(adjugate, b) / determinant[..., None, None]
    return found + (times(adjugate, b - times(a, found)) / determinant[..., None, None]).detach()


def _inv(a: Tensor, check_errors: bool = False) -> tuple[Tensor, Tensor]:
    return _refined(a, torch.eye(a.shape[-1], dtype=a.dtype), left=True), _no_errors(a)


def _solve(a: Tensor, b: Tensor, *, left: bool = True, check_errors: bool = False) -> tuple[Tensor, ...]:
    is_vector = b.ndim == 1 or b.shape == a.shape[:-1]
    found = _refined(a, b.unsqueeze(-1) if is_vector else b, left)
    return found.squeeze(-1) if is_vector else found, a, _no_errors(a), _no_errors(a)


def _det(a: Tensor) -> tuple[Tensor, ...]:
    return _cofactors(a)[1], a, _no_errors(a)


def _slogdet(a: Tensor) -> tuple[Tensor, ...]:
    determinant = _cofactors(a)[1]
    return determinant.sign(), determinant.abs().log(), a, _no_errors(a)


MATRIX_FORMULAS: dict[str, Callable[..., Any]] = {
    "_linalg_det": _det,
    "_linalg_slogdet": _slogdet,
    "_linalg_solve_ex": _solve,
    "linalg_inv_ex": _inv,
}
