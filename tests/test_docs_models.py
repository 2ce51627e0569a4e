"""The page on what models may contain: each of its lines of code takes the path that it says, and is told in its words."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, explain
from dilqr_rl.native.codegen.derivatives import cotangents, tangents
from dilqr_rl.native.codegen.evaluate import evaluate
from dilqr_rl.native.model import Functions, write_model

PAGE = Path(__file__).parents[1] / "docs" / "models.md"

if not PAGE.exists():
    pytest.skip("not in a checkout", allow_module_level=True)

X0 = torch.tensor([0.3, 0.4, -0.2], dtype=torch.float64)
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL))


class Row(NamedTuple):
    """A line of a table: what is meant, its code, and the columns after it."""

    what: str
    code: str
    rest: tuple[str, ...]


def rows(section: str) -> list[Row]:
    found = []
    for line in re.findall(r"^\|(.*)\|$", SECTIONS[section], flags=re.MULTILINE)[2:]:
        what, code, *rest = (part.strip() for part in line.split("|"))
        found.append(Row(what, code.strip("`"), tuple(rest)))
    return found


NATIVE, PYTORCH, REFUSED, ENDS = map(rows, ("Native", "The PyTorch path", "Refused", "Where derivatives end"))
FREE = ILQROptions(backend="torch", max_iterations=10)


@cache
def names() -> dict[str, Any]:
    """What the page's code defines."""
    scope: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL):
        exec(block, scope)
    return scope


def function(code: str) -> Callable[[Tensor, Tensor], Any]:
    return eval(f"lambda x, u: {code}", names())


def problem(dynamics: Callable[[Tensor, Tensor], Any]) -> ControlProblem:
    cost = QuadraticCost([1.0] * 3 + [0.1] * 3, [0.5] * 3 + [0.0] * 3)
    return ControlProblem(dynamics, cost, horizon=2, state_size=3, control_size=3, u_min=-1.0, u_max=1.0)


def with_parts(*codes: str) -> ControlProblem:
    """A problem of whose next state all these are parts."""
    parts = [function(code) for code in codes]
    return problem(lambda x, u: 0.9 * x + u + 0.1 * sum(part(x, u) for part in parts))


def reason(code: str) -> str:
    told = explain(with_parts(code), X0)
    return "" if told.native else told.reason


def test_the_code_of_the_page_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    names.__wrapped__()
    (expected,) = re.findall(r"^# (native: .*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == [expected]


def test_what_is_said_to_be_native_is() -> None:
    """All at once; the line that isn't is looked for if they aren't."""
    codes = [*(row.code for row in NATIVE), *(row.rest[1].strip("`") for row in PYTORCH if row.rest[1])]
    assert len(NATIVE) > 25
    told = explain(with_parts(*codes), X0)
    assert told.native, {code: reason(code) for code in codes if reason(code)}


@pytest.mark.parametrize("row", PYTORCH, ids=lambda row: row.what)
def test_what_is_said_to_take_the_pytorch_path_does_and_is_named(row: Row) -> None:
    assert row.rest[0] in reason(row.code)
    if row.rest[1]:
        x, u = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        written, instead = function(row.code)(x, u), function(row.rest[1].strip("`"))(x, u)
        torch.testing.assert_close(written.expand_as(x), instead.expand_as(x))


def explained_and_solved(asked: ControlProblem) -> None:
    explain(asked, X0)
    ILQR(asked, FREE)(X0)


@pytest.mark.parametrize("row", REFUSED, ids=lambda row: row.what)
def test_what_is_said_to_be_refused_is_in_these_words(row: Row) -> None:
    with pytest.raises(ValueError, match=re.escape(row.rest[0])):
        explained_and_solved(problem(function(row.code)))


def natively(code: str) -> tuple[Tensor, Tensor]:
    """Gradient (3,) and Hessian (3, 3) at 0 of a number of x."""
    of_x = function(code)
    model = write_model(
        Functions(lambda x, u: of_x(x, u)[..., None] + 0.0 * x, None, None, 3, 3), [], only=("constants", "advance")
    )
    output, graph = model.outputs[0], model.outputs[0].graph
    x, (zero, one) = [graph.leaf(f"x[{i}]") for i in range(3)], map(graph.const, (0.0, 1.0))
    found = cotangents(graph, [(output, one)]).numbers
    gradient = [found.get(leaf, zero) for leaf in x]
    rows = tangents(graph, gradient, {leaf: [one if leaf is other else zero for other in x] for leaf in x}, 3)
    numbers = evaluate([*gradient, *(node for row in rows for node in row)], {f"x[{i}]": 0.0 for i in range(3)}, [])
    derivatives = torch.tensor(numbers, dtype=torch.float64)
    return derivatives[:3], derivatives[3:].reshape(3, 3)


def is_as_said(found: Tensor, said: str) -> bool:
    """Whether derivatives are zero, or one of them NaN or the number that is said."""
    if said == "NaN":
        return bool(found.isnan().any())
    number = -(torch.pi**2) / 3 if said.startswith("-π²/3") else float(said)
    return bool(found.isfinite().all()) and found.flatten()[0].item() == pytest.approx(number) and found.count_nonzero() <= 1


@pytest.mark.parametrize("row", ENDS, ids=lambda row: row.what)
def test_derivatives_end_where_and_how_it_is_said(row: Row) -> None:
    gradient, by_torch, native = (row.code, *row.rest)
    code = row.what.strip("`")

    def value(x: Tensor) -> Tensor:
        return function(code)(x, x)

    zero = torch.zeros(3, dtype=torch.float64)
    slope, curvature = natively(code)
    assert is_as_said(slope, gradient)
    assert is_as_said(curvature, native)
    assert is_as_said(torch.autograd.functional.jacobian(value, zero), gradient)
    assert is_as_said(torch.autograd.functional.hessian(value, zero), by_torch)


def test_plans_at_rest_end_as_it_is_said_with_pytorch() -> None:
    """What they are natively is in tests/native: test_a_norm_at_rest, and the derivatives of sinc above."""
    zero = torch.zeros(3, dtype=torch.float64)
    norm = lambda x, u: torch.linalg.vector_norm(x, dim=-1) + u.square().sum(-1)  # noqa: E731
    at_rest = ControlProblem(lambda x, u: 0.9 * x + u, norm, horizon=2, state_size=3, control_size=3)
    assert ILQR(at_rest, FREE)(zero).singular
    assert not ILQR(problem(lambda x, u: torch.sinc(x) + u), FREE)(zero).converged
