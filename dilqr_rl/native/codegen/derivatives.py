"""Derivatives of a graph, as further nodes of the same graph: forward in several directions at once, and backward.

Forward, an array (rows, 1) gets an array (rows, D), one column per direction, so that a layer of a network stays one loop.
Backward, arrays have one column. Both stop at static nodes, whose derivatives are taken once per problem (see model.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dilqr_rl.native.codegen.graph import Graph, Matrix, Node
from dilqr_rl.native.codegen.operations import OPERATIONS

Tangent = Any  # of a number a list of numbers, one for each direction; of an array an array (rows, D)


def tangents(graph: Graph, outputs: Sequence[Node], seeds: Mapping[Node, Sequence[Node]], directions: int) -> list[list[Node]]:
    """Derivatives of numbers in some directions.

    Args:
        graph: where they lie.
        outputs: numbers.
        seeds: the derivative of each input in each direction.
        directions: D.

    Returns:
        For each output its D derivatives.
    """
    known: dict[Node, Tangent | None] = {leaf: list(seed) for leaf, seed in seeds.items()}
    for node in ordered(outputs, stop_at_static=True):
        if node not in known:
            known[node] = None if node.static else _tangent(graph, node, known, directions)
    zero = graph.const(0.0)
    results = []
    for output in outputs:
        tangent = known.get(output)
        results.append([zero] * directions if tangent is None else list(tangent))
    return results


def _tangent(graph: Graph, node: Node, known: Mapping[Node, Tangent | None], directions: int) -> Tangent | None:
    incoming: list[Any] = [known.get(a) for a in node.args]
    if all(t is None for t in incoming):
        return None
    zero = graph.const(0.0)
    if node.op == "pack":
        rows: list[Node] = []
        for tangent in incoming:
            rows += [zero] * directions if tangent is None else tangent
        return graph.pack(rows, directions)
    if node.op == "elem":
        row, _ = node.value
        return [graph.elem(incoming[0], row, d) for d in range(directions)]
    if node.op == "matmul":
        return graph.matmul(node.value, incoming[0])
    if node.op == "total":
        return graph.total(incoming[0])
    if node.op == "select":
        condition, *_ = node.args
        parts = [_as_operands(graph, incoming[i], node, directions) for i in (1, 2)]
        chosen = [graph.select(condition, a, b) for a, b in zip(*parts, strict=True)]
        return chosen[0] if node.shape else chosen
    partials = OPERATIONS[node.op].partials(node, *node.args)
    sums = [zero] * (1 if node.shape else directions)
    for partial, tangent in zip(partials, incoming, strict=True):
        if partial is not None and tangent is not None:
            operands = _as_operands(graph, tangent, node, directions)
            sums = [s + graph.apply("mul", partial, t) for s, t in zip(sums, operands, strict=True)]
    if all(s.constant == 0.0 for s in sums):
        return None
    return sums[0] if node.shape else sums


def _as_operands(graph: Graph, tangent: Tangent | None, node: Node, directions: int) -> list[Node]:
    """A tangent in the form that `node` computes with: D numbers, or one array (1 or rows, D)."""
    zero = graph.const(0.0)
    if not node.shape:
        return [zero] * directions if tangent is None else tangent
    if tangent is None:
        return [zero]
    return [tangent if isinstance(tangent, Node) else graph.pack(tangent, directions)]


@dataclass
class Cotangents:
    """What a backward pass finds.

    Attributes:
        numbers: the derivative with respect to each leaf and each static number that the result depends on.
        arrays: (parameters (rows, 1), derivative (rows, 1)) pairs.
        matrices: (matrix, left, right): the derivative with respect to the matrix is left right^T.
    """

    numbers: dict[Node, Node] = field(default_factory=dict)
    arrays: list[tuple[Matrix, Node]] = field(default_factory=list)
    matrices: list[tuple[Matrix, Node, Node]] = field(default_factory=list)


def cotangents(graph: Graph, results: Sequence[tuple[Node, Node]], stop_at_static: bool = True) -> Cotangents:
    """The derivative of sum_i weight_i result_i, numbers all, with respect to everything it depends on.

    Args:
        graph: where they lie.
        results: (result, weight) pairs.
        stop_at_static: take static numbers for inputs.
    """
    backward = _Backward(graph, stop_at_static)
    for result, weight in results:
        backward.add(result, weight)
    for node in reversed(ordered([result for result, _ in results], stop_at_static)):
        cotangent = backward.take(node)
        if cotangent is not None and not backward.keep(node, cotangent):
            backward.pass_on(node, cotangent)
    return backward.found


class _Backward:
    """One backward pass: what has come to each node so far."""

    def __init__(self, graph: Graph, stop_at_static: bool) -> None:
        self.found = Cotangents()
        self._graph, self._stop = graph, stop_at_static
        self._collected: dict[Node, Node] = {}
        self._elements: dict[Node, dict[int, Node]] = {}  # of arrays, by row

    def add(self, node: Node, cotangent: Node) -> None:
        """Something more for a node; for a number, or a single one in an array, all rows are summed up."""
        if node.op == "const" or cotangent.constant == 0.0:
            return
        if cotangent.shape and not node.shape:
            cotangent = self._graph.elem(self._graph.total(cotangent), 0)
        elif cotangent.shape and node.shape == (1, 1) and cotangent.shape != (1, 1):
            cotangent = self._graph.total(cotangent)
        self._collected[node] = self._collected[node] + cotangent if node in self._collected else cotangent

    def take(self, node: Node) -> Node | None:
        """All that has come to a node."""
        if node in self._elements:
            zero, rows = self._graph.const(0.0), self._elements.pop(node)
            self.add(node, self._graph.pack([rows.get(row, zero) for row in range(node.shape[0])]))
        return self._collected.pop(node, None)

    def keep(self, node: Node, cotangent: Node) -> bool:
        """Note the derivative where the pass ends."""
        if node.op == "leaf" or (self._stop and node.kept):
            self.found.numbers[node] = cotangent
        elif node.op == "param":
            self.found.arrays.append((node.value, _whole(self._graph, cotangent, node)))
        else:
            return False
        return True

    def pass_on(self, node: Node, cotangent: Node) -> None:
        """To the arguments of a node."""
        graph = self._graph
        if node.op == "elem":
            row, _ = node.value
            rows = self._elements.setdefault(node.args[0], {})
            rows[row] = rows[row] + cotangent if row in rows else cotangent
        elif node.op == "pack":
            for row, arg in enumerate(node.args):
                self.add(arg, cotangent if not cotangent.shape else graph.elem(cotangent, row))
        elif node.op == "matmul":
            whole = _whole(graph, cotangent, node)
            self.found.matrices.append((node.value, whole, node.args[0]))
            self.add(node.args[0], graph.matmul(node.value.transposed, whole))
        elif node.op == "total":
            self.add(node.args[0], _whole(graph, cotangent, node.args[0]))
        elif node.op == "select":
            condition, then, otherwise = node.args
            self.add(then, _for(graph, then, node, graph.select(condition, cotangent, 0.0)))
            self.add(otherwise, _for(graph, otherwise, node, graph.select(condition, 0.0, cotangent)))
        else:
            for arg, partial in zip(node.args, OPERATIONS[node.op].partials(node, *node.args), strict=True):
                if partial is not None and arg.op != "const":
                    self.add(arg, _for(graph, arg, node, graph.apply("mul", partial, cotangent)))


def _for(graph: Graph, arg: Node, node: Node, cotangent: Node) -> Node:
    """The cotangent of an argument: with all rows of `node` where the argument stands for several of them."""
    return _whole(graph, cotangent, node) if node.shape and arg.shape != node.shape else cotangent


def _whole(graph: Graph, cotangent: Node, node: Node) -> Node:
    """A cotangent with the rows of `node`: one that is the same for all rows may have come as a number or a single row."""
    rows = node.shape[0]
    if not cotangent.shape:
        return graph.pack([cotangent] * rows)
    return graph.pack([graph.elem(cotangent, 0)] * rows) if cotangent.shape[0] != rows else cotangent


def ordered(outputs: Iterable[Node], stop_at_static: bool = False) -> list[Node]:
    """The outputs and all they depend on, arguments first; with `stop_at_static`, nothing behind static numbers."""
    seen: set[Node] = set()
    stack = list(outputs)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            if not (stop_at_static and node.kept):
                stack.extend(node.args)
    return sorted(seen, key=lambda node: node.index)
