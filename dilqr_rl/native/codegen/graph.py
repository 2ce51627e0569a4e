"""Expressions of a model: a graph of numbers and small arrays, in which equal expressions are one node.

A node is a number (shape ()) or an array (rows, columns). Arrays stand for the layers of networks, which become loops instead
of a line per number: one column where a value is meant, and one column per direction where its derivatives are. Everything that
can be settled while building is: constants are folded, products with zero vanish, and factors that depend on parameters only
are drawn together ("static" nodes), since these are computed once per problem rather than at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dilqr_rl.native.codegen.operations import OPERATIONS

Shape = tuple[int, ...]  # () or (rows, columns)
_LOGICAL = frozenset(("lt", "le", "eq", "ne", "and", "or", "not"))


@dataclass(frozen=True)
class Matrix:
    """Where a matrix lies among the parameters: element (i, j) is `value[offset + i row_stride + j column_stride]`."""

    value: int
    offset: int
    rows: int
    columns: int
    row_stride: int
    column_stride: int

    @property
    def transposed(self) -> Matrix:
        """The same numbers, rows and columns exchanged."""
        return Matrix(self.value, self.offset, self.columns, self.rows, self.column_stride, self.row_stride)


class Node:
    """One expression.

    Attributes:
        op: "const", "leaf", the name of an elementwise operation, or one of the array operations "pack" (numbers to an array),
            "elem" (an array's number), "param" (an array of parameters), "matmul" (a parameter matrix times an array) and
            "total" (the sum over the rows).
        args: what it is computed from.
        value: of a constant its number, of a leaf its name, of "elem" the place, of "param" and "matmul" the `Matrix`.
        shape: () or (rows, columns).
        index: its number in the graph; a node's arguments come before it.
        static: whether it depends on parameters and constants only.
    """

    __slots__ = ("args", "graph", "index", "op", "shape", "static", "value")

    def __init__(self, graph: Graph, op: str, args: tuple[Node, ...], value: Any, shape: Shape, static: bool) -> None:
        self.graph, self.op, self.args, self.value, self.shape, self.static = graph, op, args, value, shape, static
        self.index = len(graph.nodes)

    def __add__(self, other: Node | float) -> Node:
        return self.graph.apply("add", self, other)

    def __radd__(self, other: float) -> Node:
        return self.graph.apply("add", other, self)

    def __sub__(self, other: Node | float) -> Node:
        return self.graph.apply("sub", self, other)

    def __rsub__(self, other: float) -> Node:
        return self.graph.apply("sub", other, self)

    def __mul__(self, other: Node | float) -> Node:
        return self.graph.apply("mul", self, other)

    def __rmul__(self, other: float) -> Node:
        return self.graph.apply("mul", other, self)

    def __truediv__(self, other: Node | float) -> Node:
        return self.graph.apply("div", self, other)

    def __rtruediv__(self, other: float) -> Node:
        return self.graph.apply("div", other, self)

    def __neg__(self) -> Node:
        return self.graph.apply("neg", self)

    @property
    def logical(self) -> bool:
        """Whether it is true or false rather than a number."""
        if self.op in ("select", "stop"):
            return self.args[-1].logical
        return self.op in _LOGICAL or (self.op == "const" and isinstance(self.value, bool))

    @property
    def kept(self) -> bool:
        """Whether it is a number that is computed once per problem and kept: a static one."""
        return self.static and not self.shape and not self.logical

    @property
    def constant(self) -> float | bool | None:
        """Its number, if it is one."""
        return self.value if self.op == "const" else None


class Graph:
    """Makes nodes, each expression once.

    Attributes:
        differentiating: whether zero times anything is zero. In derivatives it is; while a function is traced, the other factor
            might be NaN.
        parameters: the tensors that generated code gets as arguments, by place, once functions have been traced.
    """

    def __init__(self) -> None:
        self.nodes: dict[tuple[object, ...], Node] = {}
        self.differentiating = False
        self.parameters: Sequence[Any] | None = None

    def const(self, value: float | bool) -> Node:
        """A number."""
        value = bool(value) if isinstance(value, bool | np.bool_) else float(value)
        key = (type(value), str(value)) if value != 0 else (type(value), math.copysign(1, value))
        return self._make("const", (), value, (), True, key)

    def leaf(self, name: str) -> Node:
        """An input, by its text in generated code: x[0], say."""
        return self._make("leaf", (), name, (), False)

    def parameter(self, value: int, place: int) -> Node:
        """One number of a parameter tensor."""
        return self._make("leaf", (), (value, place), (), True)

    def param(self, matrix: Matrix) -> Node:
        """An array of parameters (rows, 1)."""
        return self._make("param", (), matrix, (matrix.rows, 1), True)

    def pack(self, numbers: Sequence[Node], columns: int = 1) -> Node:
        """Numbers, row by row, as an array."""
        return self._make("pack", tuple(numbers), None, (len(numbers) // columns, columns))

    def elem(self, array: Node, row: int, column: int = 0) -> Node:
        """One number of an array; row or column 0 of an array with one only stands for all."""
        rows, columns = array.shape
        row, column = row if rows > 1 else 0, column if columns > 1 else 0
        if array.op == "pack":
            return array.args[row * columns + column]
        return self._make("elem", (array,), (row, column), ())

    def matmul(self, matrix: Matrix, array: Node) -> Node:
        """A matrix of parameters times an array (columns of the matrix, D)."""
        return self._make("matmul", (array,), matrix, (matrix.rows, array.shape[1]))

    def total(self, array: Node) -> Node:
        """The sum over the rows, (1, columns)."""
        return self._make("total", (array,), None, (1, array.shape[1]))

    def add_all(self, nodes: Sequence[Node]) -> Node:
        """The sum; zero for none."""
        result = self.const(0.0)
        for node in nodes:
            result = result + node
        return result

    def apply(self, op: str, *arguments: Node | float | bool) -> Node:
        """An elementwise operation; arrays and numbers may be mixed, and single rows and columns are repeated."""
        args = tuple(a if isinstance(a, Node) else self.const(a) for a in arguments)
        if all(a.op == "const" for a in args):
            return self.const(OPERATIONS[op].evaluate(*(a.value for a in args)))
        simplify = _SIMPLIFY.get(op)
        simpler = simplify(self, *args) if simplify else None
        if simpler is not None:
            return simpler
        if op in ("add", "mul", "eq", "ne"):
            args = tuple(sorted(args, key=lambda a: a.index))
        return self._make(op, args, None, _broadcast(args))

    def select(self, condition: Node, then: Node | float, otherwise: Node | float) -> Node:
        """`then` where the condition holds, else `otherwise`."""
        return self.apply("select", condition, then, otherwise)

    def _make(
        self, op: str, args: tuple[Node, ...], value: object, shape: Shape, static: bool | None = None, key: object = None
    ) -> Node:
        place = (op, value if key is None else key, *(a.index for a in args))
        node = self.nodes.get(place)
        if node is None:
            known = all(a.static for a in args) if static is None else static
            node = self.nodes[place] = Node(self, op, args, value, shape, known)
        return node


def parameter_place(node: Node) -> tuple[int, int] | None:
    """The value and the place in it, of a node that is one of its numbers."""
    return node.value if node.op == "leaf" and node.static else None


def _broadcast(args: tuple[Node, ...]) -> Shape:
    shapes = [a.shape for a in args if a.shape]
    return (max(s[0] for s in shapes), max(s[1] for s in shapes)) if shapes else ()


def _factors(node: Node) -> tuple[Node | None, Node]:
    """A product's static factor and the rest."""
    if node.op == "mul" and not node.shape and not node.static:
        for static, rest in (node.args, node.args[::-1]):
            if static.static:
                return static, rest
    return None, node


def _add(graph: Graph, a: Node, b: Node) -> Node | None:
    if a.constant == 0.0 and _covers(b, a):
        return b
    if b.constant == 0.0:
        return a
    if b.op == "neg":
        return a - b.args[0]
    if a.op == "neg":
        return b - a.args[0]
    return None


def _sub(graph: Graph, a: Node, b: Node) -> Node | None:
    if b.constant == 0.0:
        return a
    if a.constant == 0.0:
        return -b
    if b.op == "neg":
        return a + b.args[0]
    if a is b and _finite(graph, a):
        return graph.const(0.0)
    return None


def _mul(graph: Graph, a: Node, b: Node) -> Node | None:
    for one, other in ((a, b), (b, a)):
        if one.constant == 0.0 and _finite(graph, other):
            return one if one.value == 0.0 and not other.shape else graph.const(0.0)
        if one.constant == 1.0:
            return other
        if one.constant == -1.0:
            return -other
        if one.op == "neg":
            return -(one.args[0] * other)
    if a.shape or b.shape or (a.static and b.static):
        return None
    (static_a, rest_a), (static_b, rest_b) = _factors(a), _factors(b)
    if a.static and static_b is not None:
        return (a * static_b) * rest_b
    if b.static and static_a is not None:
        return (b * static_a) * rest_a
    if static_a is not None and static_b is not None:
        return (static_a * static_b) * (rest_a * rest_b)
    if static_a is not None and not b.static:
        return static_a * (rest_a * b)
    if static_b is not None and not a.static:
        return static_b * (rest_b * a)
    return None


def _div(graph: Graph, a: Node, b: Node) -> Node | None:
    if a.constant == 0.0 and graph.differentiating:
        return graph.const(0.0)
    if b.constant == 1.0:
        return a
    if a.op == "neg":
        return -(a.args[0] / b)
    if b.static and not a.static:
        return a * (1.0 / b)
    if b.op == "const" and a.op != "const" and b.value not in (0.0,):
        return a * (1.0 / b)
    return None


def _neg(graph: Graph, a: Node) -> Node | None:
    if a.op == "neg":
        return a.args[0]
    if a.op == "sub":
        return a.args[1] - a.args[0]
    static, rest = _factors(a)
    return (-static) * rest if static is not None and static.op == "const" else None


def _select(graph: Graph, condition: Node, then: Node, otherwise: Node) -> Node | None:
    if condition.op == "const" and then.shape == otherwise.shape:
        return then if condition.value else otherwise
    return then if then is otherwise and _covers(then, condition) else None


def _pow(graph: Graph, base: Node, exponent: Node) -> Node | None:
    power = exponent.constant
    if power is None:
        return None
    if power == 0.5:
        return graph.apply("sqrt", base)
    if power != int(power) or abs(power) > 16:
        return None
    result, square, count = graph.const(1.0), base, abs(int(power))
    while count:
        result = result * square if count % 2 else result
        count //= 2
        square = square * square if count else square
    return result if power >= 0 else 1.0 / result


def _finite(graph: Graph, node: Node) -> bool:
    """Whether zero times it is zero: inputs are finite, since the solver looks at them."""
    return graph.differentiating or node.op in ("leaf", "const", "param")


def _covers(node: Node, other: Node) -> bool:
    return not other.shape or node.shape == other.shape


_SIMPLIFY: dict[str, Callable[..., Node | None]] = {
    "add": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "select": _select,
    "pow": _pow,
    "stop": lambda graph, a: a if a.op == "const" else None,
}
