"""Tensors without data, whose elements are expressions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from dilqr_rl.native.codegen.evaluate import evaluate
from dilqr_rl.native.codegen.graph import Graph, Matrix, Node
from dilqr_rl.native.tracing.places import here

UNKNOWN = "unknown"  # the leaf that stands for what has no native form; generated code may not need it


class UntraceableError(ValueError):
    """A function that can't be turned into native code; the message names the operation and where it stands."""


@dataclass(frozen=True)
class Dense:
    """In the place of numbers: an array (N, 1) that holds the elements of a tensor of some shape in order."""

    node: Node
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """A matrix of parameters that is not taken apart. Its rows and columns, in this order, may have sizes of 1 around them."""

    matrix: Matrix
    shape: tuple[int, ...]
    graph: Graph


class Symbol(Tensor):
    """A tensor whose content is an ndarray of nodes, a `Dense` or a `Weights`.

    One that outlives its trace, in a cache of somebody's function, say, becomes a plain tensor as soon as it is used.
    """

    content: Any

    @staticmethod
    def __new__(cls, content: Any, dtype: torch.dtype = torch.float64) -> Symbol:
        """Wrap a content. Its strides are told, since they decide in torch what is a view and what a copy."""
        strides = strides_of(content)
        symbol: Symbol = Tensor._make_wrapper_subclass(cls, tuple(content.shape), strides=strides, dtype=dtype)
        symbol.content = content
        return symbol

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Its shape: there are no numbers to show."""
        return f"Symbol{tuple(self.shape)}"

    def plain(self) -> Tensor:
        """The tensor that it stood for, once functions have been traced.

        Raises:
            UntraceableError: they haven't, or it depends on the state or the control.
        """
        content, graph = self.content, graph_of(self.content)
        if graph is None or graph.parameters is None:
            made = "what Python or NumPy makes of a tensor's numbers"
            raise UntraceableError(f"{made} has no native form{here()}; a step in NumPy is for a Simulator")
        nodes = nodes_of(graph, content)
        if not all(node.static for node in nodes):
            raise UntraceableError(
                "a traced tensor that depends on the state or the control was used after its function had returned"
            )
        parameters = [tensor.detach().reshape(-1).to(torch.float64).numpy() for tensor in graph.parameters]
        return torch.tensor(evaluate(nodes, {}, parameters), dtype=self.dtype).reshape(tuple(self.shape))

    def numpy(self, **_: Any) -> Any:
        """The numbers of the plain tensor."""
        return self.plain().numpy()

    def __format__(self, form: str) -> str:
        """Of the plain tensor."""
        return format(self.plain(), form)

    def tolist(self) -> Any:
        """The numbers of the plain tensor, as Python's."""
        return self.plain().tolist()

    def detach_(self) -> Symbol:
        """In place what `detach` does; torch shows it to no mode."""
        self.content = getattr(self.detach(), "content", self.content)
        return self

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.plain()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.plain().__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Outside of a `Trace`: the operation of plain tensors."""
        args, kwargs = tree_map(lambda part: part.plain() if isinstance(part, Symbol) else part, (args, kwargs or {}))
        return func(*args, **kwargs)


def graph_of(content: Any) -> Graph | None:
    """The graph that a content belongs to; None for one without elements."""
    if isinstance(content, np.ndarray):
        return content.flat[0].graph if content.size else None
    graph: Graph = content.graph if isinstance(content, Weights) else content.node.graph
    return graph


def nodes_of(graph: Graph, content: Any) -> list[Node]:
    """Its elements, in order."""
    if isinstance(content, np.ndarray):
        return list(content.flat)
    if isinstance(content, Dense):
        return [graph.elem(content.node, place) for place in range(math.prod(content.shape))]
    m = content.matrix
    places = (m.offset + i * m.row_stride + j * m.column_stride for i in range(m.rows) for j in range(m.columns))
    return [graph.parameter(m.value, place) for place in places]


def strides_of(content: Any) -> tuple[int, ...]:
    """Steps in elements from one place to the next, for each dimension; those of arrays, which are in order, for the rest."""
    if isinstance(content, np.ndarray):
        return tuple(stride // content.itemsize for stride in content.strides)
    return tuple(math.prod(content.shape[axis + 1 :]) for axis in range(len(content.shape)))


def with_symbols(module: nn.Module, symbol: Callable[[Tensor], Symbol]) -> nn.Module:
    """A copy of a module with symbols for its parameters and buffers of numbers; the module itself stays as it is.

    It may be in use by another thread. Everything but the tensors is shared with the copy.
    """
    copies: dict[int, nn.Module] = {}

    def copy(original: nn.Module) -> nn.Module:
        if id(original) not in copies:
            if any(original.__dict__[hooks] for hooks in ("_backward_hooks", "_backward_pre_hooks")):
                raise UntraceableError(f"{type(original).__name__} has backward hooks, which only PyTorch follows")
            twin = copies[id(original)] = object.__new__(type(original))  # a torch.fx module's own makes another class
            twin.__dict__ = original.__dict__.copy()
            for kind in ("_parameters", "_buffers"):
                held = original.__dict__[kind].items()
                twin.__dict__[kind] = {name: symbol(t) if t is not None and t.is_floating_point() else t for name, t in held}
            children = original.__dict__["_modules"].items()
            twin.__dict__["_modules"] = {name: None if child is None else copy(child) for name, child in children}
        return copies[id(original)]

    return copy(module)


def as_array(nodes: Any) -> Any:
    """Nodes as an ndarray of objects, a single one as a 0-d array."""
    if isinstance(nodes, np.ndarray):
        return nodes
    shape = () if isinstance(nodes, Node) else (len(nodes),)
    array: Any = np.empty(shape, dtype=object)
    array[...] = nodes
    return array
