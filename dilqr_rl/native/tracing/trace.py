"""Runs a function of torch tensors on symbols and keeps what it computes as a graph.

A `Symbol` is a tensor without data whose elements are nodes. The function runs once, under a mode that sees every operation
after torch has broken it down, and the rules of rules.py say what each does to the nodes. What can't be known without data (a
branch, `.item()`, `.numpy()`) or has no rule raises `UntraceableError`, with the place in the function.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from dilqr_rl.native.codegen.graph import Graph, Matrix
from dilqr_rl.native.tracing.formulas import FORMULAS
from dilqr_rl.native.tracing.places import here, line_of
from dilqr_rl.native.tracing.rules import RULES, find_rule, root_of
from dilqr_rl.native.tracing.soundness import applied, without_data
from dilqr_rl.native.tracing.symbols import Dense, Symbol, UntraceableError, Weights, as_array, graph_of, with_symbols

_NUMBERS = 64  # a tensor of parameters up to this size becomes numbers; a larger vector stays an array,
_SMALL_MATRIX = 32  # and so does a matrix larger than this
_MOST_NUMBERS = 4096  # and one that fits neither form may not be larger than this
_CONVERSIONS = ("lift_fresh", "lift_fresh_copy")  # of a tensor that torch.tensor has just made
_RANDOM = ("rand", "normal", "bernoulli", "dropout", "multinomial", "uniform", "exponential_", "poisson")
_BACKWARD = torch.autograd.graph._engine_run_backward.__code__


class Trace(TorchDispatchMode):
    """The mode in which functions are traced.

    Args:
        graph: takes the nodes.
        values: tensors that generated code gets as arguments, by place. Tensors of closures are added.

    Attributes:
        constants: integer and boolean tensors whose numbers were taken over, each with its version then.
    """

    supports_higher_order_operators = True  # so that they get here, and are refused by name

    def __init__(self, graph: Graph, values: Iterable[Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self.values = list(values)
        self.constants: list[tuple[Tensor, int]] = []
        self._places = {id(tensor): place for place, tensor in enumerate(self.values)}
        self._symbols: dict[int, Symbol] = {}
        self._made: dict[int, Tensor] = {}  # plain tensors that the function itself has made
        self._frozen: list[Any] = []  # contents that nobody may write into any more
        self._called_from: tuple[FrameType, int] | None = None  # the instruction that called the last operation
        self._is_forward: dict[CodeType, bool] = {}  # what is known of the functions that operations were called from

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
            UntraceableError: it does what generated code can't.
        """
        try:
            if isinstance(function, nn.Module):
                function = with_symbols(function, self.symbol)
            with torch.enable_grad(), self:
                return function(*arguments)
        except UntraceableError:
            raise
        except Exception as error:
            raise UntraceableError(f"{type(error).__name__}: {error}{line_of(error)}") from error

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nobody compiles a trace, and to skip it torch would import its compiler, which takes a second."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Apply the rule of an operation; where there is none, break the operation down further."""
        if not hasattr(func, "_schema"):  # torch.cond and its like, which take functions
            raise self.refusal(f"torch.{func.name()}", "has no native form; write torch.where(mask, a, b) for a choice")
        name = func._schema.name.removeprefix("aten::")
        if any(part in name for part in _RANDOM):
            raise self.refusal(name, "draws random numbers")
        tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
        if any(t.is_meta for t in tensors):  # torch itself asks what shape a result would have
            args, kwargs = tree_map(without_data, (args, kwargs or {}))
            return func(*args, **kwargs)
        if not any(isinstance(t, Symbol) or (t.is_floating_point() and name not in _CONVERSIONS) for t in tensors):
            return self._made_plain(func(*args, **(kwargs or {})), keep=not tensors or name in _CONVERSIONS)
        if name == "detach" and self._is_autograds_own(sys._getframe(1)):
            return Symbol(args[0].content, args[0].dtype)
        if any(_is_complex(part) for part in tree_flatten((args, kwargs))[0]):
            raise self.refusal(name, "of complex numbers has no native form")
        frame = sys._getframe(1)
        self._called_from = None if name == "detach" else (frame, frame.f_lasti)
        if self._inside_custom_function():
            raise self.refusal(name, "in a custom autograd.Function, whose backward only PyTorch follows, has no native form")
        if not torch.is_grad_enabled():
            return self._without_gradient(func, name, args, kwargs or {})
        return self._apply(func, name, args, kwargs or {})

    def _is_autograds_own(self, frame: FrameType) -> bool:
        """Whether autograd detaches a result that it saves for an `autograd.grad` in the function, or one that it has saved.

        Nobody calls `detach` then: it comes from the instruction that called the last operation, or from the backward pass.
        """
        return frame.f_code is _BACKWARD or self._called_from == (frame, frame.f_lasti)

    def _inside_custom_function(self) -> bool:
        """Whether the traced function is inside the forward of an autograd.Function.

        It goes by the forwards, since from torch 2.14 on `Function.apply` is no Python function, and leaves no frame.
        """
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_code is not Trace.run.__code__:
            code = frame.f_code
            if code not in self._is_forward:
                forwards = (getattr(kind.forward, "__code__", None) for kind in _subclasses(torch.autograd.Function))
                self._is_forward[code] = code in forwards
            if self._is_forward[code]:
                return True
            frame = frame.f_back
        return False

    def _apply(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        rule = find_rule(name)
        if rule is None:
            return self._break_down(func, name, args, kwargs)
        args, kwargs = tree_map(self._lift, (args, kwargs))
        if func is not None and torch.Tag.inplace_view in func.tags and name[:-1] in RULES:
            return _reshaped(args[0], RULES[name[:-1]](self, *args, **kwargs), func, args, kwargs)
        if func is None or name.endswith("_"):
            return rule(self, *args, **kwargs)
        return applied(self, rule, func, args, kwargs)

    def _without_gradient(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        """In the function's own `torch.no_grad()`: what comes of it is constant for derivatives."""
        if name.endswith("_"):
            raise self.refusal(name, "in torch.no_grad() has no native form")
        with torch.enable_grad():
            result = self._apply(func, name, args, kwargs)
            symbols = [part for part in tree_flatten(result)[0] if isinstance(part, Symbol)]
            stopped = {id(symbol): self._apply(None, "detach", (symbol,), {}) for symbol in symbols}
        return tree_map(lambda part: stopped.get(id(part), part), result)

    def freeze(self, *symbols: Symbol) -> None:
        """Nobody may write into these any more: a view of one wouldn't see it, or would and shouldn't."""
        self._frozen += [root_of(symbol.content) for symbol in symbols]

    def is_frozen(self, target: Symbol) -> bool:
        """Whether nobody may write into it."""
        return any(root_of(target.content) is content for content in self._frozen)

    def refuse_frozen(self, target: Symbol) -> None:
        """Raise an `UntraceableError` where a write into a symbol would be lost."""
        if self.is_frozen(target):
            raise self.refusal("an in-place operation", "on a tensor that has been detached or looked at in another shape")

    def refusal(self, name: str, reason: str) -> UntraceableError:
        """The error for an operation, with the place in the function that is being traced."""
        return UntraceableError(f"{readable(name)} {reason}{here()}")

    def _made_plain(self, result: Any, keep: bool) -> Any:
        """What an operation without symbols gives: numbers become constants, integers and booleans stay tensors."""

        def keep_one(tensor: Any) -> Any:
            if not isinstance(tensor, Tensor):
                return tensor
            if tensor.is_floating_point() and not tensor.is_meta:
                return self.constant(tensor)
            self._made[id(tensor)] = tensor
            return tensor

        return tree_map(keep_one, result)

    def constant(self, tensor: Tensor) -> Symbol:
        """A symbol of plain numbers."""
        numbers = np.vectorize(self.graph.const, otypes=[object])(tensor.to(torch.float64).numpy(force=True))
        return Symbol(as_array(numbers), tensor.dtype)

    def _lift(self, argument: Any) -> Any:
        """A plain tensor of numbers as a symbol; one of integers or booleans as it is, noted as a constant."""
        if isinstance(argument, Symbol):
            return argument if graph_of(argument.content) in (self.graph, None) else self.constant(argument.plain())
        if not isinstance(argument, Tensor):
            return argument
        if argument.is_floating_point():
            return self.symbol(argument)
        if id(argument) not in self._made:
            self.constants.append((argument, argument._version))
        return argument

    def _break_down(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name in FORMULAS:
            try:
                with self:
                    return FORMULAS[name](*args, **kwargs)
            except NotImplementedError as error:
                raise self.refusal(name, f"{error} has no native form") from error
        try:
            with self:
                result = _in_parts(func, args, kwargs)
        except UntraceableError as error:
            if name.endswith("_"):  # what stands in the way of an operation in place is mostly what it writes into
                raise
            raise self.refusal(name, "has no native form") from error  # not the part of it that has none
        if result is NotImplemented:
            raise self.refusal(name, "has no native form")
        return result

    def _content(self, shape: tuple[int, ...], place: int) -> Any:
        count = int(np.prod(shape))
        if count > _SMALL_MATRIX and len(shape) == 2 and 1 not in shape:
            return Weights(Matrix(place, 0, shape[0], shape[1], shape[1], 1), shape, self.graph)
        if count > _NUMBERS and len(shape) == 1:
            return Dense(self.graph.param(Matrix(place, 0, count, 1, 1, 1)), shape)
        if count > _MOST_NUMBERS:
            raise UntraceableError(f"a parameter of shape {shape} is too large for native code")
        numbers = as_array([self.graph.parameter(place, i) for i in range(count)]).reshape(shape)
        numbers.flags.writeable = False  # and so are all views of it
        return numbers


def _in_parts(func: Any, args: Any, kwargs: Any) -> Any:
    """An operation by others, as torch has it; NotImplemented where it is none."""
    result = func.decompose(*args, **kwargs)
    if result is NotImplemented:
        from torch._decomp import decomposition_table

        if func in decomposition_table:
            result = decomposition_table[func](*args, **kwargs)
    return result


def _reshaped(symbol: Symbol, result: Symbol, func: Any, args: Any, kwargs: Any) -> Symbol:
    """A symbol with the content of a result, and the shape that an operation like `squeeze_` gives it in place."""
    with no_dispatch():  # so that it changes the shape, and gets to no rule
        before = torch._C._meta_in_tls_dispatch_include()
        torch._C._set_meta_in_tls_dispatch_include(True)
        try:
            func(*args, **kwargs)
        finally:
            torch._C._set_meta_in_tls_dispatch_include(before)
    symbol.content = result.content
    return symbol


def _is_complex(argument: Any) -> bool:
    return isinstance(argument, complex) or (isinstance(argument, Tensor) and argument.is_complex())


def readable(name: str) -> str:
    """An operation's name as people know it: linalg_solve for _linalg_solve_ex."""
    return name.removeprefix("prims::").lstrip("_").removesuffix("_ex")


def _subclasses(kind: type[Any]) -> Iterator[type[Any]]:
    """The classes that are made of this one, directly or not."""
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
