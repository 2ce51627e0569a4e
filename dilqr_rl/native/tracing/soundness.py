"""What a rule makes of an operation, held to what torch itself says of its result: type, shape, order in memory, and sharing.

Types decide what arithmetic means (true plus true is true), and whether two tensors share memory decides whom a write reaches.
Torch tells both without any data, on its "meta" device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from dilqr_rl.native.codegen.operations import OPERATIONS
from dilqr_rl.native.tracing.rules import OF_DATA, Rule, elementwise, refuse_unknown
from dilqr_rl.native.tracing.symbols import Symbol, strides_of

if TYPE_CHECKING:
    from dilqr_rl.native.tracing.trace import Trace

# operations of whole numbers that float64 does as well
_WHOLE = frozenset(("add", "sub", "rsub", "mul", "neg", "abs", "sign", "sum", "cumsum", "prod", "where", "clamp", "clip"))
_WHOLE |= frozenset(("clamp_min", "clamp_max", "max", "min", "maximum", "minimum", "amax", "amin"))
_SINGLE = frozenset(("add", "sub", "rsub", "mul"))  # of which float64's results, rounded once more, are float32's
_EXACT = frozenset(("neg", "abs", "sign", "floor", "ceil", "trunc", "detach", "minimum", "maximum"))  # in float32 as well
_PRODUCTS = frozenset(("sum", "cumsum", "prod", "mean", "mm", "mv", "bmm", "dot", "addmm"))
_COUNTING = _PRODUCTS | _SINGLE | {"neg"}


def applied(trace: Trace, rule: Rule, func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation's rule as torch would have it.

    Raises:
        UntraceableError: it is of another type or shape.
    """
    name = func._schema.name.removeprefix("aten::")
    if name in OF_DATA:
        return rule(trace, *args, **kwargs)
    if name == "index":
        for index in args[1]:
            refuse_unknown(trace, index)
    rights = _expected(func, args, kwargs)
    given = _with_numbers(trace, name, args)
    if name in _SINGLE and rights[0].dtype == torch.float32:
        given = tree_map(lambda part: _rounded(trace, part), given)
    result = rule(trace, *given, **kwargs)
    several = isinstance(result, list | tuple)
    found = list(result) if several else [result]
    inputs = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, Symbol)]
    is_view = func._schema.returns[0].alias_info is not None
    for place, (one, right) in enumerate(zip(found, rights, strict=False)):
        if not isinstance(one, Symbol):
            continue
        if tuple(one.shape) != tuple(right.shape):
            raise trace.refusal(f"aten.{name}", f"with a result of shape {tuple(right.shape)} has no native form")
        one = _typed(trace, name, one, right.dtype)
        found[place] = _view_of(trace, one, inputs) if is_view else _copy_of(one, right, inputs)
    return type(result)(found) if several else found[0]


def _expected(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Torch's own results, without data."""
    known = func._schema.name == "aten::index"  # by a mask, whose numbers decide the shape
    if kwargs.get("device") is not None:
        kwargs = {**kwargs, "device": "meta"}
    without = tree_map(lambda part: part if known and not isinstance(part, Symbol) else without_data(part), (args, kwargs))
    with torch.no_grad():
        results = func(*without[0], **without[1])
    return list(results) if isinstance(results, Sequence) else [results]


def without_data(argument: Any) -> Any:
    """A tensor of the same type, shape and order in memory without numbers; anything else as it is."""
    if isinstance(argument, Symbol):
        return torch.empty_strided(tuple(argument.shape), strides_of(argument.content), dtype=argument.dtype, device="meta")
    return argument.to("meta") if isinstance(argument, Tensor) else argument


def _with_numbers(trace: Trace, name: str, arguments: Any) -> Any:
    """The arguments of an operation that counts, with 1 and 0 in the place of true and false, unless all of them are such."""
    masks = [part.dtype == torch.bool for part in tree_flatten(arguments)[0] if isinstance(part, Tensor)]
    if name not in _COUNTING or not any(masks) or (all(masks) and len(masks) > 1):
        return arguments

    def number(part: Any) -> Any:
        is_mask = isinstance(part, Symbol) and part.dtype == torch.bool
        return elementwise(trace, "select", part, 1.0, 0.0) if is_mask else part

    return tree_map(number, arguments)


def _rounded(trace: Trace, argument: Any) -> Any:
    """An argument of an operation in float32."""
    if isinstance(argument, float):
        return float(np.float32(argument))
    if isinstance(argument, Symbol) and argument.dtype == torch.float64:
        return elementwise(trace, "single", argument)
    return argument


def _typed(trace: Trace, name: str, one: Symbol, dtype: torch.dtype) -> Symbol:
    """The result with torch's type."""
    if dtype == torch.float32 and name in _SINGLE:
        return elementwise(trace, "single", one, dtype=dtype)
    rounds = dtype == torch.float32 and (name in _PRODUCTS or (name in OPERATIONS and name not in _EXACT))
    if one.dtype == dtype and not rounds:
        return one
    if dtype == torch.int64 and one.dtype == torch.float64 and name in _WHOLE:
        return Symbol(one.content, dtype)
    if dtype == torch.bool and name == "where":
        return Symbol(one.content, dtype)
    kind = str(dtype).removeprefix("torch.")
    raise trace.refusal(f"aten.{name}", f"of booleans, integers or other types, with a result of {kind}, has no native form")


def _view_of(trace: Trace, one: Symbol, inputs: list[Symbol]) -> Symbol:
    """A result that shares its memory with an input in torch. Where its content can't, nobody may write into either."""
    for source in inputs[:1]:
        both = (source.content, one.content)
        if not all(isinstance(content, np.ndarray) for content in both) or not np.may_share_memory(*both):
            trace.freeze(source, one)
    return one


def _copy_of(one: Symbol, right: Tensor, inputs: list[Symbol]) -> Symbol:
    """A result with memory of its own, in torch's order."""
    content = one.content
    if not isinstance(content, np.ndarray):
        return one
    if strides_of(content) != right.stride() and content.size > 1:
        order = sorted(range(content.ndim), key=lambda axis: -right.stride()[axis])
        ordered = np.ascontiguousarray(content.transpose(order)).transpose(np.argsort(order))
        return Symbol(ordered.copy(order="K") if np.may_share_memory(ordered, content) else ordered, one.dtype)
    shared = (isinstance(source.content, np.ndarray) and np.may_share_memory(source.content, content) for source in inputs)
    return Symbol(content.copy(order="K"), one.dtype) if any(shared) else one
