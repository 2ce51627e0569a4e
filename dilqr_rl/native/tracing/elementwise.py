"""Rules of elementwise operations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dilqr_rl.native.tracing.rules import RULES, elementwise, number_type, rule
from dilqr_rl.native.tracing.symbols import Symbol
from dilqr_rl.native.tracing.trace import Trace

_SAME_NAME = (
    "neg pow sqrt exp expm1 log log1p sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh sigmoid erf erfc "
    "hypot abs sign floor ceil trunc xlogy"
)
_OTHER_NAME = {
    "special_erf": "erf",
    "special_erfc": "erfc",
    "special_xlogy": "xlogy",
    "detach": "stop",
    "minimum": "min",
    "maximum": "max",
}
for _name, _op in {**{name: name for name in _SAME_NAME.split()}, **_OTHER_NAME}.items():
    RULES[_name] = lambda trace, *args, _op=_op: elementwise(trace, _op, *args)

for _name, _op, _swapped in (
    ("lt", "lt", False), ("gt", "lt", True), ("le", "le", False), ("ge", "le", True), ("eq", "eq", False), ("ne", "ne", False),
    ("logical_and", "and", False), ("logical_or", "or", False), ("bitwise_and", "and", False), ("bitwise_or", "or", False),
    ("logical_xor", "ne", False), ("bitwise_xor", "ne", False), ("logical_not", "not", False), ("bitwise_not", "not", False),
):  # fmt: skip
    RULES[_name] = lambda trace, *args, _op=_op, _swapped=_swapped: elementwise(
        trace, _op, *(args[::-1] if _swapped else args), dtype=torch.bool
    )


def _are_masks(*arguments: Any) -> bool:
    return all(isinstance(a, bool) or (isinstance(a, Tensor) and a.dtype == torch.bool) for a in arguments)


@rule("mul")
def _mul(trace: Trace, a: Any, b: Any) -> Symbol:
    if _are_masks(a, b):
        return elementwise(trace, "and", a, b, dtype=torch.bool)
    return elementwise(trace, "mul", a, b)


@rule("add")
def _add(trace: Trace, a: Any, b: Any, alpha: float = 1) -> Symbol:
    if _are_masks(a, b):
        return elementwise(trace, "or", a, b, dtype=torch.bool)
    return elementwise(trace, "add", a, b if alpha == 1 else elementwise(trace, "mul", b, alpha))


@rule("sub")
def _sub(trace: Trace, a: Any, b: Any, alpha: float = 1) -> Symbol:
    return elementwise(trace, "sub", a, b if alpha == 1 else elementwise(trace, "mul", b, alpha))


@rule("rsub")
def _rsub(trace: Trace, a: Any, b: Any, alpha: float = 1) -> Symbol:
    return elementwise(trace, "sub", b, a if alpha == 1 else elementwise(trace, "mul", a, alpha))


@rule("div")
def _div(trace: Trace, a: Any, b: Any, rounding_mode: str | None = None) -> Symbol:
    quotient = elementwise(trace, "div", a, b)
    return quotient if rounding_mode is None else elementwise(trace, rounding_mode, quotient)


@rule("reciprocal")
def _reciprocal(trace: Trace, a: Any) -> Symbol:
    return elementwise(trace, "div", 1.0, a)


@rule("round")
def _round(trace: Trace, a: Any, decimals: int = 0) -> Symbol:
    if decimals:
        raise trace.refusal("round", "to decimals has no native form")
    return elementwise(trace, "round", a)


@rule("where")
def where(trace: Trace, condition: Any, a: Any, b: Any) -> Symbol:
    """`a` where the condition holds, else `b`."""
    return elementwise(trace, "select", condition, a, b, dtype=number_type(a, b))


@rule("masked_fill")
def _masked_fill(trace: Trace, a: Any, mask: Any, value: Any) -> Symbol:
    return where(trace, mask, value, a)


@rule("clamp", "clip")
def _clamp(trace: Trace, a: Any, min: Any = None, max: Any = None) -> Symbol:
    if min is not None:
        a = where(trace, elementwise(trace, "lt", a, min, dtype=torch.bool), min, a)
    if max is not None:
        a = where(trace, elementwise(trace, "lt", max, a, dtype=torch.bool), max, a)
    return a


RULES["clamp_min"] = lambda trace, a, min: _clamp(trace, a, min=min)
RULES["clamp_max"] = lambda trace, a, max: _clamp(trace, a, max=max)
