"""Operations that are formulas of others, written in torch, which break down to the operations that have rules.

What is not here either, torch's own decompositions break down, which takes a second to import.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dilqr_rl.native.tracing.matrices import MATRIX_FORMULAS


def _elu(a: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    below = torch.where(a > 0.0, 0.0, a)  # where the other branch holds, this one must not overflow: 0 times infinity is NaN
    return torch.where(a > 0.0, a * scale, torch.expm1(below * input_scale) * (alpha * scale))


def _gelu(a: Tensor, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        return 0.5 * a * (1.0 + torch.tanh(math.sqrt(2 / math.pi) * (a + 0.044715 * a * a * a)))
    return 0.5 * a * (1.0 + torch.erf(a * math.sqrt(0.5)))


def _softplus(a: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    large = a * beta > threshold
    return torch.where(large, a, torch.log1p(torch.exp(torch.where(large, 0.0, a * beta))) / beta)


def _hardtanh(a: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    a = torch.where(a <= low, low, a)  # unlike a clamp's, its derivative at the bounds is 0
    return torch.where(a >= high, high, a)


def _softmax(a: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    powers = torch.exp(a - a.amax(dim, keepdim=True).detach())
    return powers / powers.sum(dim, keepdim=True)


def _var(a: Tensor, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = 1) -> Tensor:
    mean = a.mean(dim, keepdim=True)
    squares = (a - mean) ** 2
    count = a.numel() // mean.numel()
    return squares.sum(dim, keepdim=keepdim) / (count - (correction if unbiased else 0))


def _with_mean(spread: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """A function's spread and the mean beside it, as torch.var_mean has them."""

    def both(a: Tensor, dim: Any = None, *args: Any, keepdim: bool = False, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return spread(a, dim, *args, keepdim=keepdim, **kwargs), a.mean(dim, keepdim=keepdim)

    return both


def _std(*args: Any, **kwargs: Any) -> Tensor:
    variance = _var(*args, **kwargs)
    zero = variance == 0.0  # where its derivative is zero, not infinite
    return torch.where(zero, 0.0, torch.sqrt(torch.where(zero, 1.0, variance)))


def _layer_norm(a: Tensor, shape: Any, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
    dims = list(range(-len(shape), 0))
    mean, spread = a.mean(dims, keepdim=True), torch.sqrt(a.var(dims, unbiased=False, keepdim=True) + eps)
    result = (a - mean) / spread
    result = result if weight is None else result * weight
    return (result if bias is None else result + bias), mean, 1.0 / spread


def _sinc(a: Tensor) -> Tensor:
    """sin(pi a) / (pi a); a few terms of its series near 0, where the quotient has no derivatives."""
    z = math.pi * a
    near = z.abs() < 0.02  # the term that is left out is z^8 / 9!
    squares, far = z * z, torch.where(near, 1.0, z)
    series = 1.0 - squares / 6.0 * (1.0 - squares / 20.0 * (1.0 - squares / 42.0))
    return torch.where(near, series, torch.sin(far) / far)


def _reduced(losses: Tensor, reduction: int) -> Tensor:
    """All, their mean, or their sum, as torch counts them."""
    return (losses, losses.mean(), losses.sum())[reduction] if reduction else losses


def _huber(a: Tensor, b: Tensor, reduction: int = 1, delta: float = 1.0) -> Tensor:
    d = a - b
    far = d.abs() >= delta
    return _reduced(torch.where(far, delta * (d.abs() - 0.5 * delta), 0.5 * d * d), reduction)


def _smooth_l1(a: Tensor, b: Tensor, reduction: int = 1, beta: float = 1.0) -> Tensor:
    d = a - b
    near = d.abs() < beta
    return _reduced(torch.where(near, 0.5 * d * d / beta, d.abs() - 0.5 * beta) if beta > 0 else d.abs(), reduction)


FORMULAS: dict[str, Callable[..., Any]] = MATRIX_FORMULAS | {
    "_softmax": _softmax,
    "addcdiv": lambda a, b, c, value=1: a + value * b / c,
    "addcmul": lambda a, b, c, value=1: a + value * b * c,
    "elu": _elu,
    "exp2": lambda a: torch.exp(a * math.log(2)),
    "fmod": lambda a, b: a - b * torch.trunc(a / b),
    "fmax": lambda a, b: torch.where((a >= b) | (b != b), a, b),
    "fmin": lambda a, b: torch.where((a <= b) | (b != b), a, b),
    "gelu": _gelu,
    "hardtanh": _hardtanh,
    "huber_loss": _huber,
    "isfinite": lambda a: a.abs() < math.inf,
    "isnan": lambda a: a != a,
    "leaky_relu": lambda a, slope=0.01: torch.where(a > 0.0, a, a * slope),
    "lerp": lambda a, b, weight: a + weight * (b - a),
    "log10": lambda a: torch.log(a) / math.log(10),
    "log2": lambda a: torch.log(a) / math.log(2),
    "native_layer_norm": _layer_norm,
    "relu": lambda a: torch.where(a <= 0.0, 0.0, a),
    "remainder": lambda a, b: a - b * torch.floor(a / b),
    "rsqrt": lambda a: 1.0 / torch.sqrt(a),
    "silu": lambda a: a * torch.sigmoid(a),
    "sinc": _sinc,
    "smooth_l1_loss": _smooth_l1,
    "softplus": _softplus,
    "special_xlog1py": lambda a, b: torch.xlogy(a, 1.0 + b),
    "square": lambda a: a * a,
    "std": _std,
    "std_mean": _with_mean(_std),
    "var": _var,
    "var_mean": _with_mean(_var),
}
