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
Integers = NDArray[np.int64]


def evaluate(outputs: Sequence[Node], inputs: Mapping[str, float], values: Sequence[Floats]) -> list[Any]:
    """The outputs: numbers, and arrays (rows, columns).

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


def places_of(matrix: Matrix) -> Integers:
    """Where each element of a matrix lies among the numbers of its value (rows, columns)."""
    rows, columns = np.arange(matrix.rows)[:, None], np.arange(matrix.columns)
    found: Integers = matrix.offset + rows * matrix.row_stride + columns * matrix.column_stride
    return found


def _matrix(matrix: Any, values: Sequence[Floats]) -> Floats:
    found: Floats = values[matrix.value][places_of(matrix)]
    return found
