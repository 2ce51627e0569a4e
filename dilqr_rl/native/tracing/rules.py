"""What torch's operations do to symbols: the registry of rules, and what rules are made of.

A rule is a function (trace, *arguments of the operation) -> Symbol. Numbers are ndarrays of nodes, so that numpy does the
broadcasting, indexing and reshaping exactly as torch does, views included. Arrays (`Dense`, `Weights`) survive elementwise
operations, matrix products and reshaping; anything else takes them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dilqr_rl.native.codegen.graph import Matrix, Node, parameter_place
from dilqr_rl.native.tracing.symbols import Dense, Symbol, Weights, as_array, nodes_of

if TYPE_CHECKING:
    from dilqr_rl.native.tracing.trace import Trace

Rule = Callable[..., Any]
# operations whose results nobody can foretell without data
OF_DATA = ("_local_scalar_dense", "is_nonzero", "item", "equal", "_assert_async", "_is_all_true", "_is_any_true")
LARGEST = 20_000  # nodes that one rule may make

RULES: dict[str, Rule] = {}


def find_rule(name: str) -> Rule | None:
    """The rule of an operation, by torch's name; that of an in-place operation follows from the other's."""
    if name in RULES:
        return RULES[name]
    base = RULES.get(name[:-1]) if name.endswith("_") else None
    return None if base is None else _in_place(base)


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule under torch's names of its operations."""

    def keep(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        return rule

    return keep


def _in_place(rule: Rule) -> Rule:
    def write(trace: Trace, target: Any, *args: Any, **kwargs: Any) -> Any:
        return write_into(trace, target, rule(trace, target, *args, **kwargs))

    return write


def write_into(trace: Trace, target: Any, result: Symbol) -> Any:
    """Give a symbol another one's numbers, in all views of it."""
    if not isinstance(target, Symbol) or target.dtype != result.dtype:
        raise trace.refusal("an in-place operation", "changes a tensor's type, or one that is no number")
    trace.refuse_frozen(target)
    if isinstance(target.content, Dense) and not target.content.node.static:
        target.content = result.content if isinstance(result.content, Dense) else np.ascontiguousarray(numbers(trace, result))
    else:
        writable(trace, target)[...] = numbers(trace, result)
    return target


def writable(trace: Trace, target: Symbol) -> Any:
    """A symbol's numbers (an ndarray), to be written into.

    Raises:
        UntraceableError: they are a parameter's or another tensor's from outside, or not all views of them would follow.
    """
    trace.refuse_frozen(target)
    content = numbers(trace, target)
    if not content.flags.writeable:
        raise trace.refusal("an in-place operation", "changes a parameter, a tensor from outside, or an expanded one")
    return content


def refuse_unknown(trace: Trace, index: Any) -> None:
    """Raise an `UntraceableError` where an index isn't known without data."""
    if isinstance(index, Symbol):
        reason = (
            "with an index or mask that depends on the state or on parameters has no native form; write torch.where(mask, a, b)"
        )
        raise trace.refusal("indexing", reason)


def root_of(content: Any) -> Any:
    """The array whose memory a view shows; anything else is its own."""
    while isinstance(content, np.ndarray) and isinstance(content.base, np.ndarray):
        content = content.base
    return content


# Contents.


def numbers(trace: Trace, argument: Any) -> Any:
    """An argument as an ndarray of nodes; arrays are taken apart."""
    if isinstance(argument, Symbol):
        if isinstance(argument.content, np.ndarray):
            return argument.content
        apart = _taken_apart(trace, argument.content)
        if isinstance(argument.content, Dense) and not argument.content.node.static:
            frozen = trace.is_frozen(argument)
            argument.content = apart  # so that views of it are views of one thing
            if frozen:
                trace.freeze(argument)
        else:
            apart.flags.writeable = False
        return apart
    if isinstance(argument, Tensor):
        return as_array(np.vectorize(trace.graph.const, otypes=[object])(argument.numpy(force=True)))
    return as_array(trace.graph.const(argument))


def _taken_apart(trace: Trace, content: Dense | Weights) -> Any:
    if math.prod(content.shape) > LARGEST:
        raise trace.refusal(f"a tensor of shape {content.shape}", "is too large to be taken apart")
    return as_array(nodes_of(trace.graph, content)).reshape(content.shape)


def column(trace: Trace, argument: Symbol) -> Node:
    """A tensor's elements as an array (N, 1)."""
    if isinstance(argument.content, Dense):
        return argument.content.node
    nodes = list(numbers(trace, argument).flat)
    place = parameter_place(nodes[0])
    if place is not None and all(parameter_place(node) == (place[0], place[1] + i) for i, node in enumerate(nodes)):
        return trace.graph.param(Matrix(place[0], place[1], len(nodes), 1, 1, 1))
    return trace.graph.pack(nodes)


def number_type(*arguments: Any) -> torch.dtype:
    """The type of a result: numbers of Python and tensors of integers leave it as it is."""
    found = [a.dtype for a in arguments if isinstance(a, Tensor) and a.is_floating_point()]
    return reduce(torch.promote_types, found) if found else torch.float64


def elementwise(trace: Trace, op: str, *arguments: Any, dtype: torch.dtype | None = None) -> Symbol:
    """An elementwise operation with broadcasting."""
    dtype = dtype or number_type(*arguments)
    dense = _map_dense(trace, op, arguments)
    if dense is not None:
        return Symbol(dense, dtype)
    contents = [numbers(trace, a) for a in arguments]
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
            nodes.append(column(trace, argument))
        elif size == 1:
            nodes.append(numbers(trace, argument).flat[0])
        else:
            return None
    return Dense(trace.graph.apply(op, *nodes), shape)
