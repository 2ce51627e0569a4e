"""Rules that move numbers, copy them or make constants.

On ndarrays of nodes the first are views, as in torch: writing into one shows in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dilqr_rl.native.tracing.rules import (
    OF_DATA,
    RULES,
    elementwise,
    number_type,
    numbers,
    refuse_unknown,
    rule,
    writable,
    write_into,
)
from dilqr_rl.native.tracing.symbols import Dense, Symbol, Weights, as_array
from dilqr_rl.native.tracing.trace import Trace


def axes_of(content: Any, dim: Any) -> tuple[int, ...]:
    """The dimensions meant by an argument `dim`, counted from the first; all of them for None."""
    if dim is None or (isinstance(dim, Sequence) and len(dim) == 0):
        return tuple(range(content.ndim))
    return tuple(d % max(content.ndim, 1) for d in (dim if isinstance(dim, Sequence) else (dim,)))


def _reshaped(trace: Trace, a: Any, shape: Sequence[int]) -> Symbol:
    size = tuple(s if s >= 0 else a.numel() // -math.prod(shape) for s in shape)
    if isinstance(a.content, Dense):
        return Symbol(Dense(a.content.node, size), a.dtype)
    if isinstance(a.content, Weights) and [s for s in size if s != 1] == [a.content.matrix.rows, a.content.matrix.columns]:
        return Symbol(replace(a.content, shape=size), a.dtype)
    return Symbol(as_array(numbers(trace, a).reshape(size)), a.dtype)


@rule("view", "_unsafe_view", "reshape")
def _view(trace: Trace, a: Any, shape: Any) -> Symbol:
    return _reshaped(trace, a, shape)


@rule("unsqueeze")
def _unsqueeze(trace: Trace, a: Any, dim: int) -> Symbol:
    shape = list(a.shape)
    shape.insert(dim if dim >= 0 else dim + a.ndim + 1, 1)
    return _reshaped(trace, a, shape)


@rule("squeeze")
def _squeeze(trace: Trace, a: Any, dim: Any = None) -> Symbol:
    axes = axes_of(a, dim)
    return _reshaped(trace, a, [size for axis, size in enumerate(a.shape) if size != 1 or axis not in axes])


@rule("t", "numpy_T")
def _t(trace: Trace, a: Any) -> Symbol:
    return _permute(trace, a, list(range(a.ndim))[::-1])


@rule("transpose")
def _transpose(trace: Trace, a: Any, dim0: int, dim1: int) -> Symbol:
    axes = list(range(a.ndim))
    axes[dim0], axes[dim1] = axes[dim1], axes[dim0]
    return _permute(trace, a, axes)


@rule("permute")
def _permute(trace: Trace, a: Any, dims: Sequence[int]) -> Symbol:
    axes = [d % a.ndim for d in dims]
    shape = tuple(a.shape[axis] for axis in axes)
    moved = [axis for axis in axes if a.shape[axis] != 1]
    if isinstance(a.content, Weights):
        matrix = a.content.matrix
        return Symbol(replace(a.content, matrix=matrix if moved == sorted(moved) else matrix.transposed, shape=shape), a.dtype)
    if isinstance(a.content, Dense) and moved == sorted(moved):
        return Symbol(Dense(a.content.node, shape), a.dtype)
    return Symbol(numbers(trace, a).transpose(axes), a.dtype)


@rule("expand")
def _expand(trace: Trace, a: Any, shape: Sequence[int], implicit: bool = False) -> Symbol:
    old = (1,) * (len(shape) - a.ndim) + tuple(a.shape)
    size = tuple(o if s == -1 else s for s, o in zip(shape, old, strict=True))
    if size == tuple(a.shape):
        return Symbol(a.content, a.dtype)
    if math.prod(size) == a.numel() and not isinstance(a.content, np.ndarray):
        return _reshaped(trace, a, size)
    return Symbol(np.broadcast_to(numbers(trace, a), size), a.dtype)


@rule("select")
def _select(trace: Trace, a: Any, dim: int, index: int) -> Symbol:
    return Symbol(as_array(numbers(trace, a)[_at(a, dim, index)]), a.dtype)


@rule("slice")
def _slice(trace: Trace, a: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Symbol:
    if slice(start, end, step).indices(a.shape[dim]) == (0, a.shape[dim], 1):
        return Symbol(a.content, a.dtype)  # x[..., :] and the like: nothing to take apart
    return Symbol(numbers(trace, a)[_at(a, dim, slice(start, end, step))], a.dtype)


def _at(a: Any, dim: int, index: Any) -> tuple[Any, ...]:
    return (slice(None),) * (dim % a.ndim) + (index, ...)  # with the dots a single number is a view, too


@rule("unbind")
def _unbind(trace: Trace, a: Any, dim: int = 0) -> list[Symbol]:
    return [_select(trace, a, dim, index) for index in range(a.shape[dim])]


@rule("split_with_sizes")
def _split_with_sizes(trace: Trace, a: Any, sizes: Sequence[int], dim: int = 0) -> list[Symbol]:
    ends = np.cumsum(sizes)
    return [_slice(trace, a, dim, int(end) - size, int(end)) for size, end in zip(sizes, ends, strict=True)]


@rule("split")
def _split(trace: Trace, a: Any, size: int, dim: int = 0) -> list[Symbol]:
    return [_slice(trace, a, dim, start, start + size) for start in range(0, a.shape[dim], size)]


@rule("diagonal")
def _diagonal(trace: Trace, a: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Symbol:
    content = numbers(trace, a)
    view = np.diagonal(content, offset, dim1, dim2)
    view.flags.writeable = content.flags.writeable  # which NumPy leaves off, where torch lets people write
    return Symbol(view, a.dtype)


@rule("flip")
def _flip(trace: Trace, a: Any, dims: Sequence[int]) -> Symbol:
    return Symbol(np.flip(numbers(trace, a), tuple(dims)).copy(), a.dtype)


@rule("roll")
def _roll(trace: Trace, a: Any, shifts: Any, dims: Any = ()) -> Symbol:
    return Symbol(np.roll(numbers(trace, a), tuple(shifts), tuple(dims) or None), a.dtype)


@rule("repeat")
def _repeat(trace: Trace, a: Any, repeats: Sequence[int]) -> Symbol:
    return Symbol(np.tile(numbers(trace, a), tuple(repeats)), a.dtype)


@rule("cat")
def _cat(trace: Trace, tensors: Sequence[Any], dim: int = 0) -> Symbol:
    dim = dim % max(t.ndim for t in tensors)
    return Symbol(np.concatenate([numbers(trace, t) for t in tensors if t.shape != (0,)], axis=dim), number_type(*tensors))


@rule("stack")
def _stack(trace: Trace, tensors: Sequence[Any], dim: int = 0) -> Symbol:
    return Symbol(np.stack([numbers(trace, t) for t in tensors], axis=dim), number_type(*tensors))


@rule("index")
def _index(trace: Trace, a: Any, indices: Sequence[Any]) -> Symbol:
    places = tuple(slice(None) if i is None else _known_index(trace, i) for i in indices)
    return Symbol(as_array(numbers(trace, a)[places]), a.dtype)


@rule("index_select")
def _index_select(trace: Trace, a: Any, dim: int, index: Any) -> Symbol:
    return Symbol(np.take(numbers(trace, a), _known_index(trace, index), axis=dim), a.dtype)


@rule("gather")
def _gather(trace: Trace, a: Any, dim: int, index: Any, sparse_grad: bool = False) -> Symbol:
    return Symbol(np.take_along_axis(numbers(trace, a), _known_index(trace, index), axis=dim), a.dtype)


@rule("index_put_")
def _index_put_(trace: Trace, a: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Symbol:
    places: Any = tuple(slice(None) if i is None else _known_index(trace, i) for i in indices)
    content, new = writable(trace, a), numbers(trace, values)
    if accumulate:
        np.add.at(content, places, new)  # a place that is there twice counts twice
    else:
        content[places] = new
    return a


@rule("index_put")
def _index_put(trace: Trace, a: Any, indices: Sequence[Any], values: Any, accumulate: bool = False) -> Symbol:
    return _index_put_(trace, Symbol(numbers(trace, a).copy(), a.dtype), indices, values, accumulate)


@rule("scatter")
def _scatter(trace: Trace, a: Any, dim: int, index: Any, source: Any, reduce: str = "") -> Symbol:
    if reduce:
        raise trace.refusal("scatter", "that reduces has no native form")
    return _scattered(trace, a, dim, index, source, adds=False)


RULES["scatter_add"] = lambda trace, *args: _scattered(trace, *args, adds=True)


def _scattered(trace: Trace, a: Any, dim: int, index: Any, source: Any, *, adds: bool) -> Symbol:
    content, places = numbers(trace, a).copy(), _known_index(trace, index)
    new = numbers(trace, source)
    for place in np.ndindex(places.shape):
        at = list(place)
        at[dim] = places[place]
        number = new[place] if new.ndim else new[()]
        content[tuple(at)] = content[tuple(at)] + number if adds else number
    return Symbol(content, a.dtype)


@rule("index_add")
def _index_add(trace: Trace, a: Any, dim: int, index: Any, source: Any, alpha: float = 1) -> Symbol:
    content, added = numbers(trace, a).copy(), numbers(trace, elementwise(trace, "mul", source, alpha))
    for place, row in enumerate(_known_index(trace, index)):
        at = _at(a, dim, int(row))
        content[at] = content[at] + added[_at(a, dim, place)]
    return Symbol(content, a.dtype)


@rule("constant_pad_nd")
def _pad(trace: Trace, a: Any, pad: Sequence[int], value: float = 0) -> Symbol:
    sides = [(0, 0)] * (a.ndim - len(pad) // 2) + [(pad[i], pad[i + 1]) for i in range(len(pad) - 2, -1, -2)]
    filling: Any = trace.graph.const(value)
    return Symbol(np.pad(numbers(trace, a), sides, constant_values=filling), a.dtype)


def _known_index(trace: Trace, index: Any) -> Any:
    refuse_unknown(trace, index)
    return index.numpy()


@rule("clone", "contiguous", "alias", "lift_fresh", "lift_fresh_copy", "positive")
def _clone(trace: Trace, a: Any, memory_format: Any = None) -> Symbol:
    if isinstance(a, Symbol):
        return Symbol(a.content.copy() if isinstance(a.content, np.ndarray) else a.content, a.dtype)
    return trace.constant(a)


RULES["alias"] = lambda trace, a: Symbol(a.content, a.dtype)


@rule("copy_")
def _copy_(trace: Trace, a: Any, source: Any, non_blocking: bool = False) -> Any:
    if not isinstance(a, Symbol):
        raise trace.refusal("copy_", "writes into a tensor that is not the function's own")
    source = source if isinstance(source, Symbol) else Symbol(numbers(trace, source), torch.float64)
    writable(trace, a)  # so that views of it see the change
    return write_into(trace, a, converted(trace, source, dtype=a.dtype))


@rule("fill_")
def _fill_(trace: Trace, a: Any, value: Any) -> Any:
    writable(trace, a)
    return write_into(trace, a, Symbol(numbers(trace, value), a.dtype))


RULES["zero_"] = lambda trace, a: _fill_(trace, a, 0.0)


@rule("_to_copy", "to")
def converted(trace: Trace, a: Any, *args: Any, dtype: torch.dtype | None = None, **_: Any) -> Any:
    """A tensor in another type, which stands anywhere among the arguments, or is another tensor's; true is 1, false is 0."""
    types = (part.dtype if isinstance(part, Tensor) else part for part in args)
    dtype = next((part for part in types if isinstance(part, torch.dtype)), dtype)
    if not isinstance(a, Symbol):
        return a.to(dtype)
    if dtype is None or dtype == a.dtype:
        return a
    if a.dtype == torch.bool:
        return elementwise(trace, "select", a, 1.0, 0.0, dtype=dtype)
    if dtype == torch.float64 or (dtype == torch.bool and not a.is_floating_point()):
        return Symbol(a.content, dtype)
    if dtype == torch.bool:
        return elementwise(trace, "ne", a, 0.0, dtype=torch.bool)
    reason = "loses digits of float64, in which the solver computes; write .to(x.dtype), or torch.trunc for whole numbers"
    raise trace.refusal(f"a conversion to {dtype}", reason)


def _filled(trace: Trace, shape: Any, value: float) -> Symbol:
    return Symbol(as_array([trace.graph.const(value)] * math.prod(shape)).reshape(tuple(shape)))


RULES["zeros_like"] = RULES["empty_like"] = lambda trace, a, **_: _filled(trace, a.shape, 0.0)
RULES["ones_like"] = lambda trace, a, **_: _filled(trace, a.shape, 1.0)
RULES["full_like"] = lambda trace, a, value, **_: _filled(trace, a.shape, value)
RULES["new_zeros"] = RULES["new_empty"] = lambda trace, a, size, **_: _filled(trace, size, 0.0)
RULES["new_ones"] = lambda trace, a, size, **_: _filled(trace, size, 1.0)
RULES["new_full"] = lambda trace, a, size, value, **_: _filled(trace, size, value)


@rule("_has_same_storage_numel")
def _has_as_many_numbers(trace: Trace, a: Any, b: Any) -> bool:
    return bool(a.numel() == b.numel())  # a symbol's own, and not those of what it is a view of


@rule(*OF_DATA)
def _no_branch(trace: Trace, *args: Any) -> Any:
    raise trace.refusal(
        "a branch or a Python number",
        "that depends on the state or on parameters (`if`, bool, float, .item()) has no native form",
    )
