"""Runs a function of torch tensors on symbols and keeps what it computes as a graph.

A `Symbol` is a tensor without data whose elements are nodes. The function runs once, under a mode that sees every operation
after torch has broken it down, and the rules of rules.py say what each does to the nodes. What can't be known without data (a
branch, `.item()`, `.numpy()`) or has no rule raises `Untraceable`, with the place in the function.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from dilqr_rl.native.graph import Graph, Matrix, Node

_NUMBERS = 64  # a tensor of parameters up to this size becomes numbers; a larger vector stays an array,
_SMALL_MATRIX = 32  # and so does a matrix larger than this
_MOST_NUMBERS = 4096  # and one that fits neither form may not be larger than this
_LIBRARIES = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), str(Path(np.__file__).parent))


class Untraceable(Exception):
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


class Symbol(Tensor):
    """A tensor whose content is an ndarray of nodes, a `Dense` or a `Weights`."""

    content: Any

    @staticmethod
    def __new__(cls, content: Any, dtype: torch.dtype = torch.float64) -> Symbol:
        """Wrap a content."""
        symbol: Symbol = Tensor._make_wrapper_subclass(cls, tuple(content.shape), dtype=dtype)  # type: ignore[attr-defined]
        symbol.content = content
        return symbol

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Its shape: there are no numbers to show."""
        return f"Symbol{tuple(self.shape)}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Only `Trace` knows what to do."""
        raise Untraceable(f"{func} of a traced tensor after its function has returned")


class Trace(TorchDispatchMode):
    """The mode in which functions are traced.

    Args:
        graph: takes the nodes.
        values: tensors that generated code gets as arguments, by place. Tensors of closures are added.

    Attributes:
        constants: integer and boolean tensors whose numbers were taken over, each with its version then.
    """

    def __init__(self, graph: Graph, values: Iterable[Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self.values = list(values)
        self.constants: list[tuple[Tensor, int]] = []
        self._places = {id(tensor): place for place, tensor in enumerate(self.values)}
        self._symbols: dict[int, Symbol] = {}
        self._made: dict[int, Tensor] = {}  # plain tensors that the function itself has made

    def symbol(self, tensor: Tensor) -> Symbol:
        """The symbol of a tensor that generated code gets as an argument."""
        if id(tensor) not in self._places:
            self._places[id(tensor)] = len(self.values)
            self.values.append(tensor)
        place = self._places[id(tensor)]
        if place not in self._symbols:
            self._symbols[place] = Symbol(self._content(tuple(tensor.shape), place))
        return self._symbols[place]

    def inputs(self, name: str, size: int) -> Symbol:
        """The symbol (1, size) of an input."""
        leaves = [self.graph.leaf(f"{name}[{i}]") for i in range(size)]
        return Symbol(as_array(leaves).reshape(1, size))

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result for symbols.

        Raises:
            Untraceable: it does what generated code can't.
        """
        try:
            with torch.no_grad(), self:
                return function(*arguments)
        except Untraceable:
            raise
        except Exception as error:
            raise Untraceable(f"{type(error).__name__}: {error}{_place_of(error)}") from error

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply the rule of an operation; where there is none, break the operation down further."""
        from dilqr_rl.native.rules import CONVERSIONS, RANDOM, find_rule

        name = func._schema.name.removeprefix("aten::")
        if any(part in name for part in RANDOM):
            raise self.refusal(name, "draws random numbers")
        tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
        if not any(isinstance(t, Symbol) or (t.is_floating_point() and name not in CONVERSIONS) for t in tensors):
            return self._made_plain(func(*args, **(kwargs or {})), keep=not tensors or name in CONVERSIONS)
        rule = find_rule(name)
        if rule is None:
            return self._break_down(func, name, args, kwargs or {})
        return rule(self, *tree_map(self._lift, args), **tree_map(self._lift, kwargs or {}))

    def refusal(self, name: str, reason: str) -> Untraceable:
        """The error for an operation, with the place in the function that is being traced."""
        return Untraceable(f"{name} {reason}{_place()}")

    def _made_plain(self, result: Any, keep: bool) -> Any:
        """What an operation without symbols gives: numbers become constants, integers and booleans stay tensors."""

        def keep_one(tensor: Any) -> Any:
            if not isinstance(tensor, Tensor):
                return tensor
            if tensor.is_floating_point():
                return self.constant(tensor)
            self._made[id(tensor)] = tensor
            return tensor

        return tree_map(keep_one, result)

    def constant(self, tensor: Tensor) -> Symbol:
        numbers = np.vectorize(self.graph.const, otypes=[object])(tensor.to(torch.float64).numpy())
        return Symbol(as_array(numbers), tensor.dtype)

    def _lift(self, argument: Any) -> Any:
        """A plain tensor of numbers as a symbol; one of integers or booleans as it is, noted as a constant."""
        if not isinstance(argument, Tensor) or isinstance(argument, Symbol):
            return argument
        if argument.is_floating_point():
            return self.symbol(argument)
        if id(argument) not in self._made:
            self.constants.append((argument, argument._version))
        return argument

    def _break_down(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        from torch._decomp import decomposition_table

        with self:
            result = func.decompose(*args, **kwargs)
            if result is NotImplemented and func in decomposition_table:
                result = decomposition_table[func](*args, **kwargs)
        if result is NotImplemented:
            raise self.refusal(name, "has no native form")
        return result

    def _content(self, shape: tuple[int, ...], place: int) -> Any:
        count = int(np.prod(shape))
        if count > _SMALL_MATRIX and len(shape) == 2 and 1 not in shape:
            return Weights(Matrix(place, 0, shape[0], shape[1], shape[1], 1), shape)
        if count > _NUMBERS and len(shape) == 1:
            return Dense(self.graph.param(Matrix(place, 0, count, 1, 1, 1)), shape)
        if count > _MOST_NUMBERS:
            raise Untraceable(f"a parameter of shape {shape} is too large for native code")
        return as_array([self.graph.parameter(place, i) for i in range(count)]).reshape(shape)


def with_symbols(module: nn.Module, symbol: Callable[[Tensor], Symbol]) -> nn.Module:
    """A copy of a module with symbols for its parameters and buffers of numbers; the module itself stays as it is.

    It may be in use by another thread. Everything but the tensors is shared with the copy.
    """
    copies: dict[int, nn.Module] = {}

    def copy(original: nn.Module) -> nn.Module:
        if id(original) not in copies:
            twin = copies[id(original)] = original.__new__(type(original))
            twin.__dict__ = original.__dict__.copy()
            for kind in ("_parameters", "_buffers"):
                held = original.__dict__[kind].items()
                twin.__dict__[kind] = {name: symbol(t) if t is not None and t.is_floating_point() else t for name, t in held}
            children = original.__dict__["_modules"].items()
            twin.__dict__["_modules"] = {name: child and copy(child) for name, child in children}
        return copies[id(original)]

    return copy(module)


def as_array(nodes: Any) -> Any:
    """Nodes as an ndarray of objects, a single one as a 0-d array."""
    if isinstance(nodes, Node):
        array = np.empty((), dtype=object)
        array[()] = nodes
        return array
    if isinstance(nodes, np.ndarray):
        return nodes
    array = np.empty(len(nodes), dtype=object)
    array[:] = nodes
    return array


def _place() -> str:
    """The line of the traced function that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((*_LIBRARIES, "<")):
            return f", in {file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def _place_of(error: BaseException) -> str:
    """The innermost line of an error's traceback that is no library's."""
    lines = traceback.extract_tb(error.__traceback__)
    ours: Sequence[traceback.FrameSummary] = [line for line in lines if not line.filename.startswith((*_LIBRARIES, "<"))]
    return f", in {ours[-1].filename}:{ours[-1].lineno}" if ours else ""
