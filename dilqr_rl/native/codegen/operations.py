"""The elementwise operations that a model may consist of: how each is written, what it gives, and its derivative.

Everything is smooth or piecewise smooth; at a kink the derivative is the one that torch chooses (abs: 0 at 0; clamp: 1 at the
bound; minimum and maximum: a half each where equal).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from dilqr_rl.native.codegen.graph import Node

Partials = tuple["Node | float | None", ...]


@dataclass(frozen=True)
class Operation:
    """An elementwise operation.

    Attributes:
        code: the expression in generated code, with {0}, {1}, ... for the arguments.
        partials: (result, *arguments) -> derivative with respect to each argument; None or 0 where there is none.
    """

    code: str
    partials: Callable[..., Partials]

    def evaluate(self, *numbers: Any) -> Any:
        """The result for plain numbers."""
        arguments = [np.bool_(v) if isinstance(v, bool | np.bool_) else np.float64(v) for v in numbers]
        with np.errstate(all="ignore"):
            result = _function(self.code, len(numbers))(*arguments)
        return bool(result) if isinstance(result, bool | np.bool_) else float(result)


@cache
def _function(code: str, count: int) -> Callable[..., Any]:
    names = [f"a{i}" for i in range(count)]
    found: Callable[..., Any] = eval(
        f"lambda {', '.join(names)}: {code.format(*names)}", {"math": _CAREFUL, "np": np, "select": _select}
    )
    return found


class _CarefulMath:
    """`math` with NaN and infinity in the place of exceptions, as in generated code."""

    def __getattr__(self, name: str) -> Callable[..., float]:
        function = getattr(math, name)

        def careful(*arguments: float) -> float:
            try:
                return float(function(*arguments))
            except OverflowError:
                return math.inf
            except ValueError:
                return {"log": -math.inf, "log1p": -math.inf}.get(name, math.nan) if arguments[0] in (0.0, -1.0) else math.nan

        return careful


_CAREFUL = _CarefulMath()


def _select(condition: Any, then: Any, otherwise: Any) -> Any:
    return then if condition else otherwise


def _fn(op: str, *arguments: Any) -> Any:
    return arguments[0].graph.apply(op, *arguments)


def _half_where_equal(first: Any, second: Any, op: str) -> Any:
    """1 where first `op` second, a half where they are equal, else 0."""
    graph = first.graph
    return graph.select(_fn(op, first, second), 1.0, graph.select(_fn("eq", first, second), 0.5, graph.const(0.0)))


def _share(condition: Any) -> Any:
    """1 where the condition holds, else 0."""
    return condition.graph.select(condition, 1.0, 0.0)


def _nothing(*arguments: Any) -> Partials:
    return (None,) * (len(arguments) - 1)


def _power(y: Any, a: Any, b: Any) -> Partials:
    graph = a.graph
    by_base = b * _fn("pow", a, b - 1.0)
    if b.op == "const":
        return by_base, None
    zeros = _fn("and", *(_fn("eq", part, graph.const(0.0)) for part in (a, b)))
    by_base = graph.select(zeros, 0.0, by_base)
    return by_base, graph.select(_fn("eq", a, graph.const(0.0)), 0.0, y * _fn("log", a))


def _xlogy(y: Any, a: Any, b: Any) -> Partials:
    graph = a.graph
    nothing = _fn("and", _fn("eq", a, graph.const(0.0)), _fn("le", b, graph.const(0.0)))
    return _fn("log", graph.select(nothing, 1.0, b)), a / b


def _atan2(y: Any, a: Any, b: Any) -> Partials:
    """Zero where both are, as torch has it, since no derivative is right there."""
    squares = a * a + b * b
    zero = _fn("eq", squares, a.graph.const(0.0))
    inverse = a.graph.select(zero, 0.0, 1.0 / a.graph.select(zero, 1.0, squares))
    return b * inverse, -a * inverse


OPERATIONS: dict[str, Operation] = {
    "add": Operation("({0} + {1})", lambda y, a, b: (1.0, 1.0)),
    "sub": Operation("({0} - {1})", lambda y, a, b: (1.0, -1.0)),
    "mul": Operation("({0} * {1})", lambda y, a, b: (b, a)),
    "div": Operation("({0} / {1})", lambda y, a, b: (1.0 / b, -y / b)),
    "neg": Operation("(-{0})", lambda y, a: (-1.0,)),
    "pow": Operation("({0} ** {1})", _power),
    "sqrt": Operation("math.sqrt({0})", lambda y, a: (0.5 / y,)),
    "exp": Operation("math.exp({0})", lambda y, a: (y,)),
    "expm1": Operation("math.expm1({0})", lambda y, a: (y + 1.0,)),
    "log": Operation("math.log({0})", lambda y, a: (1.0 / a,)),
    "log1p": Operation("math.log1p({0})", lambda y, a: (1.0 / (1.0 + a),)),
    "sin": Operation("math.sin({0})", lambda y, a: (_fn("cos", a),)),
    "cos": Operation("math.cos({0})", lambda y, a: (-_fn("sin", a),)),
    "tan": Operation("math.tan({0})", lambda y, a: (1.0 + y * y,)),
    "asin": Operation("math.asin({0})", lambda y, a: (1.0 / _fn("sqrt", 1.0 - a * a),)),
    "acos": Operation("math.acos({0})", lambda y, a: (-1.0 / _fn("sqrt", 1.0 - a * a),)),
    "atan": Operation("math.atan({0})", lambda y, a: (1.0 / (1.0 + a * a),)),
    "sinh": Operation("math.sinh({0})", lambda y, a: (_fn("cosh", a),)),
    "cosh": Operation("math.cosh({0})", lambda y, a: (_fn("sinh", a),)),
    "tanh": Operation("math.tanh({0})", lambda y, a: (1.0 - y * y,)),
    "asinh": Operation("math.asinh({0})", lambda y, a: (1.0 / _fn("sqrt", 1.0 + a * a),)),
    "acosh": Operation("math.acosh({0})", lambda y, a: (1.0 / _fn("sqrt", a * a - 1.0),)),
    "atanh": Operation("math.atanh({0})", lambda y, a: (1.0 / (1.0 - a * a),)),
    "sigmoid": Operation("(1.0 / (1.0 + math.exp(-{0})))", lambda y, a: (y * (1.0 - y),)),
    "erf": Operation("math.erf({0})", lambda y, a: (2.0 / math.sqrt(math.pi) * _fn("exp", -(a * a)),)),
    "erfc": Operation("math.erfc({0})", lambda y, a: (-2.0 / math.sqrt(math.pi) * _fn("exp", -(a * a)),)),
    "hypot": Operation("math.sqrt({0} * {0} + {1} * {1})", lambda y, a, b: (a / y, b / y)),
    "atan2": Operation("math.atan2({0}, {1})", _atan2),
    "xlogy": Operation("select(({0} == 0.0) & ({1} == {1}), 0.0, {0} * math.log({1}))", _xlogy),
    "abs": Operation("abs({0})", lambda y, a: (_fn("sign", a),)),
    "sign": Operation("select({0} > 0.0, 1.0, select({0} < 0.0, -1.0, {0}))", _nothing),
    "floor": Operation("np.floor({0})", _nothing),
    "ceil": Operation("np.ceil({0})", _nothing),
    "trunc": Operation("np.trunc({0})", _nothing),
    "round": Operation("np.rint({0})", _nothing),
    "single": Operation("np.float64(np.float32({0}))", lambda y, a: (1.0,)),  # rounded to float32
    "stop": Operation("{0}", _nothing),  # detach: the value without its derivative
    "min": Operation(
        "select(({0} < {1}) | ({0} != {0}), {0}, {1})",
        lambda y, a, b: (_half_where_equal(a, b, "lt"), _half_where_equal(b, a, "lt")),
    ),
    "max": Operation(
        "select(({1} < {0}) | ({0} != {0}), {0}, {1})",
        lambda y, a, b: (_half_where_equal(b, a, "lt"), _half_where_equal(a, b, "lt")),
    ),
    # Over a dimension: the first of equal ones has the derivative.
    "first min": Operation(
        "select(({0} <= {1}) | ({0} != {0}), {0}, {1})",
        lambda y, a, b: (_share(_fn("le", a, b)), _share(_fn("lt", b, a))),
    ),
    "first max": Operation(
        "select(({1} <= {0}) | ({0} != {0}), {0}, {1})",
        lambda y, a, b: (_share(_fn("le", b, a)), _share(_fn("lt", a, b))),
    ),
    "lt": Operation("({0} < {1})", _nothing),
    "le": Operation("({0} <= {1})", _nothing),
    "eq": Operation("({0} == {1})", _nothing),
    "ne": Operation("({0} != {1})", _nothing),
    "and": Operation("({0} & {1})", _nothing),
    "or": Operation("({0} | {1})", _nothing),
    "not": Operation("({0} ^ True)", _nothing),
    # Its derivative is a selection too (derivatives.py): a product with 0 would spread NaN from the branch not taken.
    "select": Operation("select({0}, {1}, {2})", _nothing),
}
