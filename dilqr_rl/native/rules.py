"""What each of torch's operations does to symbols.

A rule is a function (trace, *arguments of the operation) -> Symbol. Numbers are ndarrays of nodes, so that numpy does the
broadcasting, indexing and reshaping exactly as torch does, views included. Arrays (`Dense`, `Weights`) survive elementwise
operations, matrix products and reshaping; anything else takes them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dilqr_rl.native.graph import Matrix, Node, parameter_place
from dilqr_rl.native.tracing import Dense, Symbol, Trace, Weights, as_array

Rule = Callable[..., Any]
CONVERSIONS = ("lift_fresh", "lift_fresh_copy")  # of a tensor that torch.tensor has just made
RANDOM = ("rand", "normal", "bernoulli", "dropout", "multinomial", "uniform", "exponential_", "poisson")
UNKNOWN = "unknown"  # the leaf that stands for what has no native form; generated code may not need it
_LARGEST = 20_000  # nodes that one rule may make

_RULES: dict[str, Rule] = {}


def find_rule(name: str) -> Rule | None:
    """The rule of an operation, by torch's name; that of an in-place operation follows from the other's."""
    if name in _RULES:
        return _RULES[name]
    base = _RULES.get(name[:-1]) if name.endswith("_") else None
    return None if base is None else _in_place(base)


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def keep(rule: Rule) -> Rule:
        _RULES.update(dict.fromkeys(names, rule))
        return rule

    return keep


def _in_place(rule: Rule) -> Rule:
    def write(trace: Trace, target: Any, *args: Any, **kwargs: Any) -> Any:
        return _write(trace, target, rule(trace, target, *args, **kwargs))

    return write


def _write(trace: Trace, target: Any, result: Symbol) -> Any:
    if not isinstance(target, Symbol) or target.dtype != result.dtype:
        raise trace.refusal("an in-place operation", "changes a tensor's type, or one that is no number")
    if isinstance(target.content, np.ndarray):
        if any(leaf.static and leaf.op == "leaf" for leaf in target.content.flat):
            raise trace.refusal("an in-place operation", "changes a parameter")
        target.content[...] = _numbers(trace, result)
    elif isinstance(target.content, Weights) or target.content.node.op == "param":
        raise trace.refusal("an in-place operation", "changes a parameter")
    else:
        target.content = result.content
    return target


# Contents.


def _numbers(trace: Trace, argument: Any) -> Any:
    """An argument as an ndarray of nodes; arrays are taken apart."""
    if isinstance(argument, Symbol):
        if isinstance(argument.content, np.ndarray):
            return argument.content
        numbers = _taken_apart(trace, argument.content)
        if isinstance(argument.content, Dense) and not argument.content.node.static:
            argument.content = numbers  # so that views of it are views of one thing
        return numbers
    if isinstance(argument, Tensor):
        return as_array(np.vectorize(trace.graph.const, otypes=[object])(argument.numpy()))
    return as_array(trace.graph.const(argument))


def _taken_apart(trace: Trace, content: Dense | Weights) -> Any:
    graph, count = trace.graph, math.prod(content.shape)
    if count > _LARGEST:
        raise trace.refusal(f"a tensor of shape {content.shape}", "is too large to be taken apart")
    if isinstance(content, Dense):
        return as_array([graph.elem(content.node, i) for i in range(count)]).reshape(content.shape)
    m = content.matrix
    places = [m.offset + i * m.row_stride + j * m.column_stride for i in range(m.rows) for j in range(m.columns)]
    return as_array([graph.parameter(m.value, place) for place in places]).reshape(content.shape)


def _column(trace: Trace, argument: Symbol) -> Node:
    """A tensor's elements as an array (N, 1)."""
    if isinstance(argument.content, Dense):
        return argument.content.node
    nodes = list(_numbers(trace, argument).flat)
    place = parameter_place(nodes[0])
    if place is not None and all(parameter_place(node) == (place[0], place[1] + i) for i, node in enumerate(nodes)):
        return trace.graph.param(Matrix(place[0], place[1], len(nodes), 1, 1, 1))
    return trace.graph.pack(nodes)


def _dtype(*arguments: Any) -> torch.dtype:
    found = [a.dtype for a in arguments if isinstance(a, Tensor) and a.is_floating_point()]
    return reduce(torch.promote_types, found) if found else torch.float64


def _map(trace: Trace, op: str, *arguments: Any, dtype: torch.dtype | None = None) -> Symbol:
    """An elementwise operation with broadcasting."""
    dtype = dtype or _dtype(*arguments)
    dense = _map_dense(trace, op, arguments)
    if dense is not None:
        return Symbol(dense, dtype)
    contents = [_numbers(trace, a) for a in arguments]
    apply = np.frompyfunc(lambda *nodes: trace.graph.apply(op, *nodes), len(contents), 1)
    return Symbol(as_array(apply(*contents)), dtype)


def _map_dense(trace: Trace, op: str, arguments: Sequence[Any]) -> Dense | None:
    if not any(isinstance(a, Symbol) and isinstance(a.content, Dense) for a in arguments):
        return None
    shape = np.broadcast_shapes(*(tuple(a.shape) for a in arguments if isinstance(a, Tensor)))
    count, nodes = math.prod(shape), []
    for argument in arguments:
        size = argument.numel() if isinstance(argument, Tensor) else 1
        if size not in (1, count):
            return None
        if isinstance(argument, Symbol) and size == count and not isinstance(argument.content, Weights):
            nodes.append(_column(trace, argument))
        elif size == 1:
            nodes.append(_numbers(trace, argument).flat[0])
        else:
            return None
    return Dense(trace.graph.apply(op, *nodes), shape)


# Elementwise operations.

for _name, _op in {
    "mul": "mul", "neg": "neg", "sqrt": "sqrt", "exp": "exp", "expm1": "expm1", "log": "log", "log1p": "log1p", "sin": "sin",
    "cos": "cos", "tan": "tan", "asin": "asin", "acos": "acos", "atan": "atan", "sinh": "sinh", "cosh": "cosh", "tanh": "tanh",
    "asinh": "asinh", "acosh": "acosh", "atanh": "atanh", "sigmoid": "sigmoid", "erf": "erf", "special_erf": "erf",
    "atan2": "atan2", "abs": "abs", "sign": "sign", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "detach": "stop",
    "erfc": "erfc", "special_erfc": "erfc", "hypot": "hypot", "minimum": "min", "maximum": "max", "fmin": "min", "fmax": "max", "pow": "pow",
}.items():  # fmt: skip
    _RULES[_name] = lambda trace, *args, _op=_op: _map(trace, _op, *args)

for _name, _op, _swapped in (
    ("lt", "lt", False), ("gt", "lt", True), ("le", "le", False), ("ge", "le", True), ("eq", "eq", False), ("ne", "ne", False),
    ("logical_and", "and", False), ("logical_or", "or", False), ("bitwise_and", "and", False), ("bitwise_or", "or", False),
    ("logical_xor", "ne", False), ("bitwise_xor", "ne", False), ("logical_not", "not", False), ("bitwise_not", "not", False),
):  # fmt: skip
    _RULES[_name] = lambda trace, *args, _op=_op, _swapped=_swapped: _map(
        trace, _op, *(args[::-1] if _swapped else args), dtype=torch.bool
    )


@_rule("add")
def _add(trace: Trace, a: Any, b: Any, alpha: float = 1) -> Symbol:
    return _map(trace, "add", a, b if alpha == 1 else _map(trace, "mul", b, alpha))


@_rule("sub")
def _sub(trace: Trace, a: Any, b: Any, alpha: float = 1) -> Symbol:
    return _map(trace, "sub", a, b if alpha == 1 else _map(trace, "mul", b, alpha))


@_rule("rsub")
def _rsub(trace: Trace, a: Any, b: Any, alpha: float = 1) -> Symbol:
    return _map(trace, "sub", b, a if alpha == 1 else _map(trace, "mul", a, alpha))


@_rule("div")
def _div(trace: Trace, a: Any, b: Any, rounding_mode: str | None = None) -> Symbol:
    quotient = _map(trace, "div", a, b)
    return quotient if rounding_mode is None else _map(trace, rounding_mode, quotient)


@_rule("remainder")
def _remainder(trace: Trace, a: Any, b: Any) -> Symbol:
    return _sub(trace, a, _map(trace, "mul", b, _map(trace, "floor", _map(trace, "div", a, b))))


@_rule("fmod")
def _fmod(trace: Trace, a: Any, b: Any) -> Symbol:
    return _sub(trace, a, _map(trace, "mul", b, _map(trace, "trunc", _map(trace, "div", a, b))))


@_rule("round")
def _round(trace: Trace, a: Any, decimals: int = 0) -> Symbol:
    if decimals:
        raise trace.refusal("round", "to decimals has no native form")
    return _map(trace, "round", a)


@_rule("reciprocal")
def _reciprocal(trace: Trace, a: Any) -> Symbol:
    return _map(trace, "div", 1.0, a)


@_rule("rsqrt")
def _rsqrt(trace: Trace, a: Any) -> Symbol:
    return _map(trace, "div", 1.0, _map(trace, "sqrt", a))


@_rule("square")
def _square(trace: Trace, a: Any) -> Symbol:
    return _map(trace, "mul", a, a)


@_rule("log2")
def _log2(trace: Trace, a: Any) -> Symbol:
    return _map(trace, "mul", _map(trace, "log", a), 1 / math.log(2))


@_rule("log10")
def _log10(trace: Trace, a: Any) -> Symbol:
    return _map(trace, "mul", _map(trace, "log", a), 1 / math.log(10))


@_rule("exp2")
def _exp2(trace: Trace, a: Any) -> Symbol:
    return _map(trace, "exp", _map(trace, "mul", a, math.log(2)))


@_rule("isnan")
def _isnan(trace: Trace, a: Any) -> Symbol:
    return _map(trace, "ne", a, a, dtype=torch.bool)


@_rule("isfinite")
def _isfinite(trace: Trace, a: Any) -> Symbol:
    return _map(trace, "lt", _map(trace, "abs", a), math.inf, dtype=torch.bool)


@_rule("addcmul")
def _addcmul(trace: Trace, a: Any, b: Any, c: Any, value: float = 1) -> Symbol:
    return _map(trace, "add", a, _map(trace, "mul", _map(trace, "mul", b, value), c))


@_rule("addcdiv")
def _addcdiv(trace: Trace, a: Any, b: Any, c: Any, value: float = 1) -> Symbol:
    return _map(trace, "add", a, _map(trace, "div", _map(trace, "mul", b, value), c))


@_rule("lerp")
def _lerp(trace: Trace, a: Any, b: Any, weight: Any) -> Symbol:
    return _map(trace, "add", a, _map(trace, "mul", weight, _map(trace, "sub", b, a)))


@_rule("where")
def _where(trace: Trace, condition: Any, a: Any, b: Any) -> Symbol:
    return _map(trace, "select", condition, a, b, dtype=_dtype(a, b))


@_rule("masked_fill")
def _masked_fill(trace: Trace, a: Any, mask: Any, value: Any) -> Symbol:
    return _where(trace, mask, value, a)


@_rule("clamp", "clip")
def _clamp(trace: Trace, a: Any, min: Any = None, max: Any = None) -> Symbol:
    if min is not None:
        a = _where(trace, _map(trace, "lt", a, min, dtype=torch.bool), min, a)
    if max is not None:
        a = _where(trace, _map(trace, "lt", max, a, dtype=torch.bool), max, a)
    return a


_RULES["clamp_min"] = lambda trace, a, min: _clamp(trace, a, min=min)
_RULES["clamp_max"] = lambda trace, a, max: _clamp(trace, a, max=max)
_RULES["hardtanh"] = lambda trace, a, low=-1.0, high=1.0: _between(trace, a, low, high)


def _between(trace: Trace, a: Any, low: float, high: float) -> Symbol:
    """A clamp whose derivative at the bounds is 0."""
    a = _where(trace, _map(trace, "le", a, low, dtype=torch.bool), low, a)
    return _where(trace, _map(trace, "le", high, a, dtype=torch.bool), high, a)


# Activations. Others follow from torch's own decompositions.


@_rule("relu")
def _relu(trace: Trace, a: Any) -> Symbol:
    return _where(trace, _map(trace, "le", a, 0.0, dtype=torch.bool), 0.0, a)


@_rule("leaky_relu")
def _leaky_relu(trace: Trace, a: Any, negative_slope: float = 0.01) -> Symbol:
    return _where(trace, _map(trace, "lt", 0.0, a, dtype=torch.bool), a, _map(trace, "mul", a, negative_slope))


@_rule("elu")
def _elu(trace: Trace, a: Any, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Symbol:
    below = _map(trace, "mul", _map(trace, "expm1", _map(trace, "mul", a, input_scale)), alpha * scale)
    return _where(trace, _map(trace, "lt", 0.0, a, dtype=torch.bool), _map(trace, "mul", a, scale), below)


@_rule("silu")
def _silu(trace: Trace, a: Any) -> Symbol:
    return _map(trace, "mul", a, _map(trace, "sigmoid", a))


@_rule("gelu")
def _gelu(trace: Trace, a: Any, approximate: str = "none") -> Symbol:
    if approximate == "tanh":
        cube = _map(trace, "mul", _map(trace, "mul", a, a), a)
        inner = _map(trace, "mul", _map(trace, "add", a, _map(trace, "mul", cube, 0.044715)), math.sqrt(2 / math.pi))
        share = _map(trace, "tanh", inner)
    else:
        share = _map(trace, "erf", _map(trace, "mul", a, math.sqrt(0.5)))
    return _map(trace, "mul", _map(trace, "mul", a, 0.5), _map(trace, "add", share, 1.0))


@_rule("softplus")
def _softplus(trace: Trace, a: Any, beta: float = 1, threshold: float = 20) -> Symbol:
    scaled = _map(trace, "mul", a, beta)
    smooth = _map(trace, "div", _map(trace, "log1p", _map(trace, "exp", scaled)), beta)
    return _where(trace, _map(trace, "lt", threshold, scaled, dtype=torch.bool), a, smooth)


# Reductions.


def _axes(content: Any, dim: Any) -> tuple[int, ...]:
    if dim is None or (isinstance(dim, Sequence) and len(dim) == 0):
        return tuple(range(content.ndim))
    return tuple(d % max(content.ndim, 1) for d in (dim if isinstance(dim, Sequence) else (dim,)))


def _reduce(trace: Trace, op: str, a: Any, dim: Any, keepdim: bool, dtype: torch.dtype | None = None) -> Symbol:
    content = _numbers(trace, a)
    axes = _axes(content, dim)
    kept = [axis for axis in range(content.ndim) if axis not in axes]
    shape = [content.shape[axis] for axis in kept]
    rows = content.transpose(*kept, *axes).reshape(math.prod(shape), -1)
    results = as_array([reduce(lambda x, y: trace.graph.apply(op, x, y), row) for row in rows]).reshape(shape)
    if keepdim:
        results = results.reshape([1 if axis in axes else size for axis, size in enumerate(content.shape)])
    return Symbol(results, dtype or _dtype(a))


@_rule("sum")
def _sum(trace: Trace, a: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Symbol:
    if isinstance(a, Symbol) and isinstance(a.content, Dense):
        axes = _axes(a, dim)
        if math.prod(a.shape[axis] for axis in axes) == a.numel():
            shape = [1 if axis in axes else size for axis, size in enumerate(a.shape) if keepdim or axis not in axes]
            total = trace.graph.elem(trace.graph.total(a.content.node), 0)
            return Symbol(as_array(total).reshape(shape), _dtype(a))
    if isinstance(a, Symbol) and a.dtype == torch.bool:
        a = _to_copy(trace, a, dtype=torch.float64)
    return _reduce(trace, "add", a, dim, keepdim)


@_rule("mean")
def _mean(trace: Trace, a: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Symbol:
    count = math.prod(a.shape[axis] for axis in _axes(a, dim))
    return _map(trace, "mul", _sum(trace, a, dim, keepdim), 1.0 / count)


@_rule("var")
def _var(trace: Trace, a: Any, dim: Any = None, unbiased: bool = True, keepdim: bool = False, *, correction: Any = 1) -> Symbol:
    if not unbiased:
        correction = 0
    offset = _map(trace, "sub", a, _mean(trace, a, dim, True))
    count = math.prod(a.shape[axis] for axis in _axes(a, dim))
    return _map(trace, "mul", _sum(trace, _map(trace, "mul", offset, offset), dim, keepdim), 1.0 / (count - correction))


_RULES["std"] = lambda trace, *args, **kwargs: _map(trace, "sqrt", _var(trace, *args, **kwargs))


@_rule("native_layer_norm")
def _layer_norm(trace: Trace, a: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> tuple[Symbol, ...]:
    dims = list(range(a.ndim - len(shape), a.ndim))
    mean = _mean(trace, a, dims, True)
    spread = _map(trace, "sqrt", _map(trace, "add", _var(trace, a, dims, False, True), eps))
    result = _map(trace, "div", _map(trace, "sub", a, mean), spread)
    result = result if weight is None else _map(trace, "mul", result, weight)
    return (result if bias is None else _map(trace, "add", result, bias)), mean, spread


_RULES["prod"] = lambda trace, a, dim=None, keepdim=False, dtype=None: _reduce(trace, "mul", a, dim, keepdim)
_RULES["any"] = lambda trace, a, dim=None, keepdim=False: _reduce(trace, "or", a, dim, keepdim, torch.bool)
_RULES["all"] = lambda trace, a, dim=None, keepdim=False: _reduce(trace, "and", a, dim, keepdim, torch.bool)


def _extreme(op: str) -> Rule:
    def extreme(trace: Trace, a: Any, dim: Any = None, keepdim: bool = False) -> Any:
        """torch.max and torch.min: of everything, of two tensors, or over a dimension, with indices that nothing may use."""
        if isinstance(dim, Tensor):
            return _map(trace, op, a, dim)
        values = _reduce(trace, op, a, dim, keepdim)
        if dim is None:
            return values
        unknown = np.full(values.shape, trace.graph.leaf(UNKNOWN))
        return values, Symbol(unknown, torch.int64)

    return extreme


_RULES["max"], _RULES["min"] = _extreme("max"), _extreme("min")
_RULES["amax"] = lambda trace, a, dim=(), keepdim=False: _reduce(trace, "max", a, dim, keepdim)
_RULES["amin"] = lambda trace, a, dim=(), keepdim=False: _reduce(trace, "min", a, dim, keepdim)


@_rule("cumsum")
def _cumsum(trace: Trace, a: Any, dim: int, dtype: Any = None) -> Symbol:
    content = _numbers(trace, a)
    return Symbol(as_array(np.add.accumulate(content, axis=dim, dtype=object)), _dtype(a))


@_rule("linalg_vector_norm")
def _norm(trace: Trace, a: Any, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Symbol:
    if ord == 1:
        return _sum(trace, _map(trace, "abs", a), dim, keepdim)
    if ord == math.inf:
        return _RULES["amax"](trace, _map(trace, "abs", a), dim or (), keepdim)
    if ord != 2:
        raise trace.refusal(f"a norm of order {ord}", "has no native form")
    squares = _sum(trace, _map(trace, "mul", a, a), dim, keepdim)
    zero = _map(trace, "eq", squares, 0.0, dtype=torch.bool)
    return _where(trace, zero, 0.0, _map(trace, "sqrt", squares))  # its derivative at zero is zero


@_rule("_softmax")
def _softmax(trace: Trace, a: Any, dim: int, half_to_float: bool = False) -> Symbol:
    largest = _map(trace, "stop", _reduce(trace, "max", a, dim, True))
    powers = _map(trace, "exp", _map(trace, "sub", a, largest))
    return _map(trace, "div", powers, _sum(trace, powers, dim, True))


# Products.


@_rule("mm", "mv", "bmm", "dot", "matmul")
def _matmul(trace: Trace, a: Any, b: Any) -> Symbol:
    left, right = (p.content if isinstance(p, Symbol) else None for p in (a, b))
    if isinstance(right, Weights) and b.shape[-2:] == (right.matrix.rows, right.matrix.columns) and a.numel() == a.shape[-1]:
        node = trace.graph.matmul(right.matrix.transposed, _column(trace, a))
        return Symbol(Dense(node, (*a.shape[:-1], right.matrix.columns)), _dtype(a))
    if isinstance(left, Weights) and a.shape[-2:] == (left.matrix.rows, left.matrix.columns) and b.numel() == a.shape[-1]:
        node = trace.graph.matmul(left.matrix, _column(trace, b))
        shape = (left.matrix.rows,) if b.ndim == 1 else (*a.shape[:-2], left.matrix.rows, 1)
        return Symbol(Dense(node, shape), _dtype(a))
    first, second = _numbers(trace, a), _numbers(trace, b)
    if first.size * second.shape[-1] > _LARGEST:
        raise trace.refusal(f"a product of matrices {first.shape} and {second.shape}", "is too large for native code")
    return Symbol(as_array(_object_matmul(trace, first, second)), _dtype(a))


def _object_matmul(trace: Trace, a: Any, b: Any) -> Any:
    left = a.reshape(1, -1) if a.ndim == 1 else a
    right = b.reshape(-1, 1) if b.ndim == 1 else b
    products = np.frompyfunc(lambda x, y: trace.graph.apply("mul", x, y), 2, 1)(left[..., :, :, None], right[..., None, :, :])
    sums = reduce(lambda x, y: x + y, [products[..., :, k, :] for k in range(products.shape[-2])])
    if a.ndim == 1 and b.ndim == 1:
        return sums[0, 0]
    return sums[..., 0] if b.ndim == 1 else sums[..., 0, :] if a.ndim == 1 else sums


@_rule("addmm", "addmv", "baddbmm")
def _addmm(trace: Trace, bias: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> Symbol:
    product = _matmul(trace, a, b)
    product = product if alpha == 1 else _map(trace, "mul", product, alpha)
    return _map(trace, "add", bias if beta == 1 else _map(trace, "mul", bias, beta), product)


# Shapes. On ndarrays these are views, so that writing into one writes into what it was taken from, as in torch.


def _reshaped(trace: Trace, a: Any, shape: Sequence[int]) -> Symbol:
    size = tuple(s if s >= 0 else a.numel() // -math.prod(shape) for s in shape)
    if isinstance(a.content, Dense):
        return Symbol(Dense(a.content.node, size), a.dtype)
    if isinstance(a.content, Weights) and [s for s in size if s != 1] == [a.content.matrix.rows, a.content.matrix.columns]:
        return Symbol(Weights(a.content.matrix, size), a.dtype)
    return Symbol(as_array(_numbers(trace, a).reshape(size)), a.dtype)


@_rule("view", "_unsafe_view", "reshape")
def _view(trace: Trace, a: Any, shape: Any) -> Symbol:
    return _reshaped(trace, a, shape)


@_rule("unsqueeze")
def _unsqueeze(trace: Trace, a: Any, dim: int) -> Symbol:
    shape = list(a.shape)
    shape.insert(dim if dim >= 0 else dim + a.ndim + 1, 1)
    return _reshaped(trace, a, shape)


@_rule("squeeze")
def _squeeze(trace: Trace, a: Any, dim: Any = None) -> Symbol:
    axes = _axes(a, dim)
    return _reshaped(trace, a, [size for axis, size in enumerate(a.shape) if size != 1 or axis not in axes])


@_rule("t", "numpy_T")
def _t(trace: Trace, a: Any) -> Symbol:
    return _permute(trace, a, list(range(a.ndim))[::-1])


@_rule("transpose")
def _transpose(trace: Trace, a: Any, dim0: int, dim1: int) -> Symbol:
    axes = list(range(a.ndim))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return _permute(trace, a, axes)


@_rule("permute")
def _permute(trace: Trace, a: Any, dims: Sequence[int]) -> Symbol:
    axes = [d % a.ndim for d in dims]
    shape = tuple(a.shape[axis] for axis in axes)
    moved = [axis for axis in axes if a.shape[axis] != 1]
    if isinstance(a.content, Weights):
        matrix = a.content.matrix
        return Symbol(Weights(matrix if moved == sorted(moved) else matrix.transposed, shape), a.dtype)
    if isinstance(a.content, Dense) and moved == sorted(moved):
        return Symbol(Dense(a.content.node, shape), a.dtype)
    return Symbol(_numbers(trace, a).transpose(axes), a.dtype)


@_rule("expand")
def _expand(trace: Trace, a: Any, shape: Sequence[int], implicit: bool = False) -> Symbol:
    old = (1,) * (len(shape) - a.ndim) + tuple(a.shape)
    size = tuple(o if s == -1 else s for s, o in zip(shape, old, strict=True))
    if size == tuple(a.shape):
        return Symbol(a.content, a.dtype)
    if math.prod(size) == a.numel() and not isinstance(a.content, np.ndarray):
        return _reshaped(trace, a, size)
    return Symbol(np.broadcast_to(_numbers(trace, a), size), a.dtype)


@_rule("select")
def _select(trace: Trace, a: Any, dim: int, index: int) -> Symbol:
    return Symbol(as_array(_numbers(trace, a)[_at(a, dim, index)]), a.dtype)


@_rule("slice")
def _slice(trace: Trace, a: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Symbol:
    if slice(start, end, step).indices(a.shape[dim]) == (0, a.shape[dim], 1):
        return Symbol(a.content, a.dtype)  # x[..., :] and the like: nothing to take apart
    return Symbol(_numbers(trace, a)[_at(a, dim, slice(start, end, step))], a.dtype)


def _at(a: Any, dim: int, index: Any) -> tuple[Any, ...]:
    return (slice(None),) * (dim % a.ndim) + (index, ...)


@_rule("unbind")
def _unbind(trace: Trace, a: Any, dim: int = 0) -> list[Symbol]:
    return [_select(trace, a, dim, index) for index in range(a.shape[dim])]


@_rule("split_with_sizes")
def _split_with_sizes(trace: Trace, a: Any, sizes: Sequence[int], dim: int = 0) -> list[Symbol]:
    ends = np.cumsum(sizes)
    return [_slice(trace, a, dim, int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True)]


@_rule("split")
def _split(trace: Trace, a: Any, size: int, dim: int = 0) -> list[Symbol]:
    return [_slice(trace, a, dim, start, start + size) for start in range(0, a.shape[dim], size)]


@_rule("diagonal")
def _diagonal(trace: Trace, a: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Symbol:
    return Symbol(np.diagonal(_numbers(trace, a), offset, dim1, dim2), a.dtype)


@_rule("flip")
def _flip(trace: Trace, a: Any, dims: Sequence[int]) -> Symbol:
    return Symbol(np.flip(_numbers(trace, a), tuple(dims)).copy(), a.dtype)


@_rule("roll")
def _roll(trace: Trace, a: Any, shifts: Any, dims: Any = ()) -> Symbol:
    return Symbol(np.roll(_numbers(trace, a), tuple(shifts), tuple(dims) or None), a.dtype)


@_rule("repeat")
def _repeat(trace: Trace, a: Any, repeats: Sequence[int]) -> Symbol:
    return Symbol(np.tile(_numbers(trace, a), tuple(repeats)), a.dtype)


@_rule("cat")
def _cat(trace: Trace, tensors: Sequence[Any], dim: int = 0) -> Symbol:
    dim = dim % max(t.ndim for t in tensors)
    return Symbol(np.concatenate([_numbers(trace, t) for t in tensors if t.shape != (0,)], axis=dim), _dtype(*tensors))


@_rule("stack")
def _stack(trace: Trace, tensors: Sequence[Any], dim: int = 0) -> Symbol:
    return Symbol(np.stack([_numbers(trace, t) for t in tensors], axis=dim), _dtype(*tensors))


@_rule("index")
def _index(trace: Trace, a: Any, indices: Sequence[Any]) -> Symbol:
    places = tuple(slice(None) if i is None else _known_index(trace, i) for i in indices)
    return Symbol(as_array(_numbers(trace, a)[places]), a.dtype)


@_rule("index_select")
def _index_select(trace: Trace, a: Any, dim: int, index: Any) -> Symbol:
    return Symbol(np.take(_numbers(trace, a), _known_index(trace, index), axis=dim), a.dtype)


@_rule("gather")
def _gather(trace: Trace, a: Any, dim: int, index: Any, sparse_grad: bool = False) -> Symbol:
    return Symbol(np.take_along_axis(_numbers(trace, a), _known_index(trace, index), axis=dim), a.dtype)


@_rule("index_put_")
def _index_put_(trace: Trace, a: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Symbol:
    places = tuple(slice(None) if i is None else _known_index(trace, i) for i in indices)
    content = _numbers(trace, a)
    new = _numbers(trace, values)
    content[places] = content[places] + new if accumulate else new
    return a


@_rule("index_add")
def _index_add(trace: Trace, a: Any, dim: int, index: Any, source: Any, alpha: float = 1) -> Symbol:
    content, added = _numbers(trace, a).copy(), _numbers(trace, _map(trace, "mul", source, alpha))
    for place, row in enumerate(_known_index(trace, index)):
        at = _at(a, dim, int(row))
        content[at] = content[at] + added[_at(a, dim, place)]
    return Symbol(content, a.dtype)


@_rule("constant_pad_nd")
def _pad(trace: Trace, a: Any, pad: Sequence[int], value: float = 0) -> Symbol:
    sides = [(0, 0)] * (a.ndim - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    return Symbol(np.pad(_numbers(trace, a), sides, constant_values=trace.graph.const(value)), a.dtype)


def _known_index(trace: Trace, index: Any) -> Any:
    if isinstance(index, Symbol):
        raise trace.refusal("indexing", "with an index or mask that depends on the state or on parameters has no native form")
    return index.numpy()


# Copies and constants.


@_rule("clone", "contiguous", "alias", "lift_fresh", "lift_fresh_copy", "positive")
def _clone(trace: Trace, a: Any, memory_format: Any = None) -> Symbol:
    if isinstance(a, Symbol):
        return Symbol(a.content.copy() if isinstance(a.content, np.ndarray) else a.content, a.dtype)
    return trace.constant(a)


_RULES["alias"] = lambda trace, a: Symbol(a.content, a.dtype)


@_rule("copy_")
def _copy_(trace: Trace, a: Any, source: Any, non_blocking: bool = False) -> Any:
    if not isinstance(a, Symbol):
        raise trace.refusal("copy_", "writes into a tensor that is not the function's own")
    source = source if isinstance(source, Symbol) else Symbol(_numbers(trace, source), torch.float64)
    _numbers(trace, a)  # so that views of it see the change
    return _write(trace, a, _to_copy(trace, source, dtype=a.dtype))


@_rule("fill_")
def _fill_(trace: Trace, a: Any, value: Any) -> Any:
    _numbers(trace, a)
    return _write(trace, a, Symbol(_numbers(trace, value), a.dtype))


_RULES["zero_"] = lambda trace, a: _fill_(trace, a, 0.0)


@_rule("_to_copy", "to")
def _to_copy(trace: Trace, a: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
    if not isinstance(a, Symbol):
        return a.to(dtype)
    if dtype is None or dtype == a.dtype:
        return a
    if a.dtype == torch.bool:
        return _map(trace, "select", a, 1.0, 0.0, dtype=dtype)
    if dtype == torch.float64 or (dtype == torch.bool and not a.is_floating_point()):
        return Symbol(a.content, dtype)
    if dtype == torch.bool:
        return _map(trace, "ne", a, 0.0, dtype=torch.bool)
    raise trace.refusal(f"a conversion to {dtype}", "loses digits of float64, in which the solver computes")


def _filled(trace: Trace, shape: Any, value: float) -> Symbol:
    return Symbol(as_array([trace.graph.const(value)] * math.prod(shape)).reshape(tuple(shape)))


_RULES["zeros_like"] = _RULES["empty_like"] = lambda trace, a, **_: _filled(trace, a.shape, 0.0)
_RULES["ones_like"] = lambda trace, a, **_: _filled(trace, a.shape, 1.0)
_RULES["full_like"] = lambda trace, a, value, **_: _filled(trace, a.shape, value)
_RULES["new_zeros"] = _RULES["new_empty"] = lambda trace, a, size, **_: _filled(trace, size, 0.0)
_RULES["new_ones"] = lambda trace, a, size, **_: _filled(trace, size, 1.0)
_RULES["new_full"] = lambda trace, a, size, value, **_: _filled(trace, size, value)


@_rule("_local_scalar_dense", "is_nonzero", "item", "equal", "_assert_async")
def _no_branch(trace: Trace, *args: Any) -> Any:
    raise trace.refusal("a branch or a Python number", "that depends on the state or on parameters (`if`, bool, float, .item()) has no native form")
