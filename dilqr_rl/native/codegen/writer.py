"""Writes functions of a model as Python source for Numba: a line per number, a loop per array.

Inputs, parameters and results are pointers to float64. An expression that is used once stands where it is used; one that is
used again gets a name. Static numbers are read from `c`, arrays live in `work`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dilqr_rl.native.codegen.derivatives import Cotangents, ordered
from dilqr_rl.native.codegen.graph import Matrix, Node
from dilqr_rl.native.codegen.operations import OPERATIONS

_LONGEST = 100  # characters of an expression that is written in place
_LONGEST_ELEMENT = 300  # the same of an array's elements
_LOOP = 4  # zeros or copies that are written as a loop
_ELEMENT = re.compile(r"(\w+)\[(\d+)\]")


@dataclass(frozen=True)
class Signature:
    """A function's name, its arguments in order with their Numba types, and its result's type."""

    name: str
    arguments: dict[str, str]
    result: str = "void"


@dataclass
class Body:
    """What a function does.

    Attributes:
        arrays: what it writes, array by array, in order.
        additions: (target, expression), added to what is there.
        gradients: derivatives with respect to parameter arrays, added to G.
        result: what it returns, if anything.
    """

    arrays: dict[str, list[Node]] = field(default_factory=dict)
    additions: list[tuple[str, Node]] = field(default_factory=list)
    gradients: Cotangents = field(default_factory=Cotangents)
    result: Node | None = None

    @property
    def needed(self) -> list[Node]:
        """All expressions that it computes, as often as it evaluates them."""
        nodes = [node for array in self.arrays.values() for node in array]
        nodes += [node for _, node in self.additions]
        nodes += [node for _, node in self.gradients.arrays]
        nodes += [node for _, left, right in self.gradients.matrices for node in (left, right, right)]  # right: in a loop
        return nodes if self.result is None else [*nodes, self.result]


class Writer:
    """Writes one function after the other.

    Args:
        leaf: the text of an input or parameter, from its name.
        places: where each static number lies in `c`; it grows as they are met.

    Attributes:
        work_size: numbers in `work` that the functions written so far need.
    """

    def __init__(self, leaf: Callable[[Any], str], places: dict[Node, int]) -> None:
        self._leaf, self._places = leaf, places
        self.work_size = 1

    def function(self, signature: Signature, body: Body, read_constants: bool = True) -> str:
        """The source of a function; with `read_constants` false, static numbers are computed rather than read."""
        return "\n".join(_Function(self._leaf, self._places if read_constants else None).lines(signature, body, self))


class _Function:
    def __init__(self, leaf: Callable[[Any], str], places: dict[Node, int] | None) -> None:
        self._leaf, self._places = leaf, places
        self._text: dict[Node, str] = {}
        self._offsets: dict[Node, int] = {}
        self._uses: dict[Node, int] = {}
        self._lines: list[str] = []
        self._work = 0

    def lines(self, signature: Signature, body: Body, writer: Writer) -> list[str]:
        types = ", ".join(signature.arguments.values())
        self._lines = [
            f"@cfunc({signature.result}({types}), **OPTIONS)",
            f"def {signature.name}({', '.join(signature.arguments)}):",
        ]
        needed = body.needed
        nodes = ordered(needed, stop_at_static=self._places is not None)
        for node in needed:
            self._uses[node] = self._uses.get(node, 0) + 1
        for node in nodes:
            self._count_arguments(node)
        for node in nodes:
            self._define(node)
        for array, results in body.arrays.items():
            self._fill(array, 0, [self._text[node] for node in results])
        self._lines += [f"    {target} += {_bare(self._text[node])}" for target, node in body.additions]
        self._write_gradients(body.gradients)
        if body.result is not None:
            self._lines.append(f"    return {_bare(self._text[body.result])}")
        if len(self._lines) == 2:
            self._lines.append("    pass")
        writer.work_size = max(writer.work_size, self._work)
        return self._lines

    def _is_read(self, node: Node) -> bool:
        return self._places is not None and node.kept

    def _count_arguments(self, node: Node) -> None:
        """How often a node's code evaluates each argument, so that what is evaluated once can be written in its place."""
        if self._is_read(node):
            return
        code = OPERATIONS[node.op].code if node.op in OPERATIONS else ""
        for place, argument in enumerate(node.args):
            in_loop = node.op in ("matmul", "elem") or (node.op not in ("pack", "total") and argument.shape != node.shape)
            times = max(1, code.count(f"{{{place}}}")) * (2 if in_loop and (node.shape or argument.shape) else 1)
            self._uses[argument] = self._uses.get(argument, 0) + times

    def _define(self, node: Node) -> None:
        if node.op == "const":
            self._text[node] = _number(node.value)
        elif self._places is not None and self._is_read(node):
            self._text[node] = f"c[{self._places.setdefault(node, len(self._places))}]"
        elif node.op == "leaf":
            self._text[node] = self._leaf(node.value)
        elif node.shape:
            self._define_array(node)
        elif node.op == "elem":
            row, column = node.value
            self._text[node] = self._at(node.args[0], str(row), str(column))
            if self._uses[node] > 2:
                self._name(node, self._text[node])
        else:
            code = OPERATIONS[node.op].code.format(*(self._text[a] for a in node.args))
            if self._uses[node] == 1 and len(code) <= _LONGEST:
                self._text[node] = code
            else:
                self._name(node, code)

    def _name(self, node: Node, code: str) -> None:
        self._text[node] = f"v{node.index}"
        self._lines.append(f"    v{node.index} = {_bare(code)}")

    def _define_array(self, node: Node) -> None:
        once = node.op in OPERATIONS and self._uses[node] == 1
        if node.op == "param" or (once and len(self._element(node, "i", "j")) <= _LONGEST_ELEMENT):
            return  # read, or computed, where it is used
        rows, columns = node.shape
        self._offsets[node] = self._work
        self._work += rows * columns
        place = self._slot(node, "i", "j")
        if node.op == "pack":
            self._fill("work", self._offsets[node], [self._text[a] for a in node.args])
            return
        if node.op == "matmul":
            self._lines += self._matmul(node)
            return
        if node.op == "total":
            source = node.args[0]
            self._lines += [f"    for j in range({columns}):", "        s = 0.0", f"        for i in range({source.shape[0]}):"]
            self._lines += [f"            s += {self._at(source, 'i', 'j')}", f"        {self._at(node, '0', 'j')} = s"]
            return
        self._lines.append(f"    for i in range({rows}):")
        indent = "        "
        if columns > 1:
            self._lines.append(f"        for j in range({columns}):")
            indent += "    "
        self._lines.append(f"{indent}{place} = {_bare(self._element(node, 'i', 'j'))}")

    def _element(self, node: Node, row: str, column: str) -> str:
        """An element of an elementwise operation's result, computed."""
        return OPERATIONS[node.op].code.format(*(self._at(a, row, column) if a.shape else self._text[a] for a in node.args))

    def _fill(self, array: str, first: int, texts: list[str]) -> None:
        """Write numbers into an array from a place on: zeros, and runs that are copied, in loops."""
        if texts.count("0.0") >= _LOOP:
            self._lines += [f"    for i in range({len(texts)}):", f"        {array}[{_place(first, ('i', 1))}] = 0.0"]
            texts = ["" if text == "0.0" else text for text in texts]
        place = 0
        while place < len(texts):
            length = _run(texts, place)
            source = _ELEMENT.fullmatch(texts[place])
            if length >= _LOOP and source:
                copied = f"{source[1]}[{_place(int(source[2]), ('i', 1))}]"
                self._lines += [
                    f"    for i in range({length}):",
                    f"        {array}[{_place(first + place, ('i', 1))}] = {copied}",
                ]
            else:
                length = 1
                if texts[place]:
                    self._lines.append(f"    {array}[{first + place}] = {_bare(texts[place])}")
            place += length

    def _matmul(self, node: Node) -> list[str]:
        matrix, source = node.value, node.args[0]
        rows, columns = node.shape
        number = _parameter(matrix, "i", "l", "P", "offs")
        inner = matrix.columns
        if columns == 1 and matrix.column_stride == 1:
            return [
                f"    for i in range({rows}):",
                "        s = 0.0",
                f"        for l in range({inner}):",
                f"            s += {number} * {self._at(source, 'l', '0')}",
                f"        {self._at(node, 'i', '0')} = s",
            ]
        loops = ("l", inner, "i", rows) if matrix.row_stride == 1 else ("i", rows, "l", inner)
        inner_loop = [f"            for j in range({columns}):"] if columns > 1 else []
        indent = "                " if columns > 1 else "            "
        return [
            f"    for i in range({rows * columns}):",
            f"        work[{_place(self._offsets[node], ('i', 1))}] = 0.0",
            f"    for {loops[0]} in range({loops[1]}):",
            f"        for {loops[2]} in range({loops[3]}):",
            f"            a = {number}",
            *inner_loop,
            f"{indent}{self._at(node, 'i', 'j')} += a * {self._at(source, 'l', 'j')}",
        ]

    def _at(self, array: Node, row: str, column: str) -> str:
        """An element of an array; its single row or column stands for all."""
        if array.op == "param":
            return _parameter(array.value, row, "0", "P", "offs")
        if array not in self._offsets:
            return self._element(array, row, column)
        return f"({self._slot(array, row, column)} != 0.0)" if array.logical else self._slot(array, row, column)

    def _slot(self, array: Node, row: str, column: str) -> str:
        """Where an element of an array is kept."""
        rows, columns = array.shape
        place = _place(self._offsets[array], (row if rows > 1 else "0", columns), (column if columns > 1 else "0", 1))
        return f"work[{place}]"

    def _write_gradients(self, gradients: Cotangents) -> None:
        for matrix, cotangent in gradients.arrays:
            place = _parameter(matrix, "i", "0", "G", "goffs")
            self._lines += [f"    for i in range({matrix.rows}):", f"        {place} += {self._at(cotangent, 'i', '0')}"]
        for matrix, left, right in gradients.matrices:
            place = _parameter(matrix, "i", "l", "G", "goffs")
            self._lines += [
                f"    for i in range({matrix.rows}):",
                f"        a = {self._at(left, 'i', '0')}",
                f"        for l in range({matrix.columns}):",
                f"            {place} += a * {self._at(right, 'l', '0')}",
            ]


def _parameter(matrix: Matrix, row: str, column: str, array: str, offsets: str) -> str:
    place = _place(matrix.offset, (row, matrix.row_stride), (column, matrix.column_stride))
    return f"{array}[{offsets}[{matrix.value}] + {place}]"


def _place(offset: int, *parts: tuple[str, int]) -> str:
    """offset + index stride + ..., with numbers added up."""
    terms = []
    for index, stride in parts:
        if index.isdigit():
            offset += int(index) * stride
        elif stride:
            terms.append(index if stride == 1 else f"{stride} * {index}")
    return " + ".join([*terms, str(offset)] if offset or not terms else terms)


def _run(texts: list[str], start: int) -> int:
    """How many of the texts from `start` on are consecutive elements of one array."""
    first = _ELEMENT.fullmatch(texts[start])
    if not first:
        return 1
    length = 1
    while start + length < len(texts) and texts[start + length] == f"{first[1]}[{int(first[2]) + length}]":
        length += 1
    return length


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return str(value)
    text = repr(float(value))
    special = {"inf": "np.inf", "-inf": "(-np.inf)", "nan": "np.nan"}
    return special.get(text, f"({text})" if text.startswith("-") else text)


def _bare(code: str) -> str:
    """Without the outer parentheses that an operator's code brings."""
    if not (code.startswith("(") and code.endswith(")")):
        return code
    depth = 0
    for place, character in enumerate(code):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0 and place < len(code) - 1:
            return code
    return code[1:-1]
