"""Rules of sums, products, extremes and matrix products."""

from __future__ import annotations

import math
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dilqr_rl.native.tracing.elementwise import where
from dilqr_rl.native.tracing.rules import LARGEST, RULES, Rule, column, elementwise, number_type, numbers, rule
from dilqr_rl.native.tracing.shapes import axes_of, converted
from dilqr_rl.native.tracing.symbols import UNKNOWN, Dense, Symbol, Weights, as_array
from dilqr_rl.native.tracing.trace import Trace

_OF_NOTHING = {"add": 0.0, "mul": 1.0, "or": False, "and": True}


def reduced(trace: Trace, op: str, a: Any, dim: Any, keepdim: bool, dtype: torch.dtype | None = None) -> Symbol:
    """An operation of two numbers, over dimensions."""
    content = numbers(trace, a)
    axes = axes_of(content, dim)
    kept = [axis for axis in range(content.ndim) if axis not in axes]
    shape = [content.shape[axis] for axis in kept]
    rows = content.transpose(*kept, *axes).reshape(math.prod(shape), math.prod(content.shape[axis] for axis in axes))
    if rows.shape[1] == 0 and op not in _OF_NOTHING:
        raise trace.refusal(f"aten.{op}", "of a tensor without elements has no native form")
    results = as_array([_folded(trace, op, row) for row in rows]).reshape(shape)
    if keepdim:
        results = results.reshape([1 if axis in axes else size for axis, size in enumerate(content.shape)])
    return Symbol(results, dtype or number_type(a))


def _folded(trace: Trace, op: str, row: Any) -> Any:
    if len(row) == 0:
        return trace.graph.const(_OF_NOTHING[op])
    return reduce(lambda x, y: trace.graph.apply(op, x, y), row)


@rule("sum")
def _sum(trace: Trace, a: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Symbol:
    if isinstance(a, Symbol) and isinstance(a.content, Dense):
        axes = axes_of(a, dim)
        if math.prod(a.shape[axis] for axis in axes) == a.numel():
            shape = [1 if axis in axes else size for axis, size in enumerate(a.shape) if keepdim or axis not in axes]
            total = trace.graph.elem(trace.graph.total(a.content.node), 0)
            return Symbol(as_array(total).reshape(shape), number_type(a))
    if isinstance(a, Symbol) and a.dtype == torch.bool:
        a = converted(trace, a, dtype=torch.float64)
    return reduced(trace, "add", a, dim, keepdim)


@rule("mean")
def _mean(trace: Trace, a: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Symbol:
    count = math.prod(a.shape[axis] for axis in axes_of(a, dim))
    return elementwise(trace, "mul", _sum(trace, a, dim, keepdim), 1.0 / count)


RULES["prod"] = lambda trace, a, dim=None, keepdim=False, dtype=None: reduced(trace, "mul", a, dim, keepdim)
RULES["any"] = lambda trace, a, dim=None, keepdim=False: reduced(trace, "or", a, dim, keepdim, torch.bool)
RULES["all"] = lambda trace, a, dim=None, keepdim=False: reduced(trace, "and", a, dim, keepdim, torch.bool)


def _extreme(op: str) -> Rule:
    def extreme(trace: Trace, a: Any, dim: Any = None, keepdim: bool = False) -> Any:
        """torch.max and torch.min: of everything, of two tensors, or over a dimension, with indices that nothing may use."""
        if isinstance(dim, Tensor):
            return elementwise(trace, op, a, dim)
        if dim is None:
            return reduced(trace, op, a, dim, keepdim)
        values = reduced(trace, f"first {op}", a, dim, keepdim)
        unknown = np.full(values.shape, trace.graph.leaf(UNKNOWN))
        return values, Symbol(unknown, torch.int64)

    return extreme


RULES["max"], RULES["min"] = _extreme("max"), _extreme("min")
RULES["amax"] = lambda trace, a, dim=(), keepdim=False: reduced(trace, "max", a, dim, keepdim)
RULES["amin"] = lambda trace, a, dim=(), keepdim=False: reduced(trace, "min", a, dim, keepdim)


def _accumulated(operation: np.ufunc) -> Rule:
    def accumulated(trace: Trace, a: Any, dim: int, dtype: Any = None) -> Symbol:
        """Sums or products of everything so far."""
        return Symbol(as_array(operation.accumulate(numbers(trace, a), axis=dim, dtype=object)), number_type(a))

    return accumulated


RULES["cumsum"], RULES["cumprod"] = _accumulated(np.add), _accumulated(np.multiply)


@rule("linalg_vector_norm")
def _norm(trace: Trace, a: Any, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Symbol:
    if ord == 1:
        return _sum(trace, elementwise(trace, "abs", a), dim, keepdim)
    if ord == math.inf:
        return RULES["amax"](trace, elementwise(trace, "abs", a), dim or (), keepdim)
    if ord != 2:
        raise trace.refusal(f"a norm of order {ord}", "has no native form")
    squares = _sum(trace, elementwise(trace, "mul", a, a), dim, keepdim)
    zero = elementwise(trace, "eq", squares, 0.0, dtype=torch.bool)
    root = elementwise(trace, "sqrt", where(trace, zero, 1.0, squares))  # its derivative at zero is zero, not infinite
    return where(trace, zero, 0.0, root)


@rule("mm", "mv", "bmm", "dot", "matmul")
def _matmul(trace: Trace, a: Any, b: Any) -> Symbol:
    left, right = (p.content if isinstance(p, Symbol) else None for p in (a, b))
    if isinstance(right, Weights) and b.shape[-2:] == (right.matrix.rows, right.matrix.columns) and a.numel() == a.shape[-1]:
        node = trace.graph.matmul(right.matrix.transposed, column(trace, a))
        return Symbol(Dense(node, (*a.shape[:-1], right.matrix.columns)), number_type(a))
    if isinstance(left, Weights) and a.shape[-2:] == (left.matrix.rows, left.matrix.columns) and b.numel() == a.shape[-1]:
        node = trace.graph.matmul(left.matrix, column(trace, b))
        shape = (left.matrix.rows,) if b.ndim == 1 else (*a.shape[:-2], left.matrix.rows, 1)
        return Symbol(Dense(node, shape), number_type(a))
    first, second = numbers(trace, a), numbers(trace, b)
    if first.size * second.shape[-1] > LARGEST:
        raise trace.refusal(f"a product of matrices {first.shape} and {second.shape}", "is too large for native code")
    return Symbol(as_array(_object_matmul(trace, first, second)), number_type(a))


def _object_matmul(trace: Trace, a: Any, b: Any) -> Any:
    left = a.reshape(1, -1) if a.ndim == 1 else a
    right = b.reshape(-1, 1) if b.ndim == 1 else b
    products = np.frompyfunc(lambda x, y: trace.graph.apply("mul", x, y), 2, 1)(left[..., :, :, None], right[..., None, :, :])
    sums = reduce(lambda x, y: x + y, [products[..., :, k, :] for k in range(products.shape[-2])])
    if a.ndim == 1 and b.ndim == 1:
        return sums[0, 0]
    return sums[..., 0] if b.ndim == 1 else sums[..., 0, :] if a.ndim == 1 else sums


@rule("addmm", "addmv", "baddbmm")
def _addmm(trace: Trace, bias: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Symbol:
    product = _matmul(trace, a, b)
    product = product if alpha == 1 else elementwise(trace, "mul", product, alpha)
    return elementwise(trace, "add", bias if beta == 1 else elementwise(trace, "mul", bias, beta), product)
