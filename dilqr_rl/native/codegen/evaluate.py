"""A graph's value at a point, computed by Python: to compare what was traced with the functions themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dilqr_rl.native.codegen.derivatives import ordered
from dilqr_rl.native.codegen.graph import Matrix, Node
from dilqr_rl.native.codegen.operations import OPERATIONS

Floats = NDArray[np.float64]


def evaluate(outputs: Sequence[Node], inputs: Mapping[str, float], values: Sequence[Floats]) -> list[float]:
    """The outputs, all numbers.

    Args:
        outputs: what to evaluate.
        inputs: the numbers of the leaves, by name.
        values: the parameter tensors, flat, by place.
    """
    known: dict[Node, Any] = {}
    for node in ordered(outputs):
        known[node] = _evaluate(node, [known[a] for a in node.args], inputs, values)
    return [known[node] for node in outputs]


def _evaluate(node: Node, args: list[Any], inputs: Mapping[str, float], values: Sequence[Floats]) -> Any:
    if node.op == "const":
        return node.value
    if node.op == "leaf":
        return values[node.value[0]][node.value[1]] if node.static else inputs[node.value]
    if node.op == "param":
        return _matrix(node.value, values)
    if node.op == "pack":
        return np.array(args, dtype=np.float64).reshape(node.shape)
    if node.op == "elem":
        return args[0][node.value]
    if node.op == "matmul":
        return _matrix(node.value, values) @ args[0]
    if node.op == "total":
        return args[0].sum(0, keepdims=True)
    operation = OPERATIONS[node.op]
    return np.vectorize(operation.evaluate)(*args) if node.shape else operation.evaluate(*args)


def _matrix(matrix: Any, values: Sequence[Floats]) -> Floats:
    place: Matrix = matrix
    rows, columns = np.arange(place.rows)[:, None], np.arange(place.columns)
    found: Floats = values[place.value][place.offset + rows * place.row_stride + columns * place.column_stride]
    return found
