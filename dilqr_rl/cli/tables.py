"""The tables that the commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from rich.table import Table
from torch import Tensor

if TYPE_CHECKING:
    from dilqr_rl.agents import Identifiability
    from dilqr_rl.agents.rollouts import RollOuts

__all__ = ["explain", "parameter_table", "rollout_table", "single_numbers"]


_UNEXPLAINED = 0.01  # share of the demonstrations, root mean square, from which on a fit hasn't reproduced them


def rollout_table(title: str, found: RollOuts, seed: int) -> Table:
    """Returns from the starts of seed, seed + 1, ..., and how the planner fared."""
    table = Table(title=f"{title}, seeds {seed} to {seed + len(found.returns) - 1}", title_justify="left")
    for column in ("episodes", "return", "worst", "ms per decision", "iterations per plan", "converged"):
        table.add_column(column, justify="right")
    returns = found.returns
    table.add_row(
        str(len(returns)),
        f"{returns.mean():.1f} ± {returns.std():.1f}",
        f"{returns.min():.1f}",
        f"{1e3 * found.seconds_per_step:.1f}",
        f"{found.iterations:.2f}",
        f"{100 * found.converged:.1f} %",
    )
    return table


def parameter_table(
    start: Mapping[str, Tensor], learnt: Mapping[str, Tensor], true: Mapping[str, Tensor], found: Identifiability
) -> Table:
    """The learnt numbers, beside the environment's own, and how well the demonstrations determine them.

    Args:
        start: before the fit, by name.
        learnt: after it.
        true: the environment's own; what it hasn't is left open.
        found: of the demonstrations.
    """
    table = Table(title="what was learnt", title_justify="left")
    for column in ("", "start", "learnt", "environment", "standard error"):
        table.add_column(column, justify="left" if not column else "right")
    columns = [single_numbers(values) for values in (start, learnt, true)]
    errors = found.standard_errors()
    for name, relative in zip(found.names, found.relative, strict=True):
        error = "not by itself" if name not in errors else f"{100 * errors[name]:.2g} %" if relative else f"{errors[name]:.2g}"
        table.add_row(_short(name), *(_number(column.get(name)) for column in columns), error)
    for combination in found.combinations():
        known = [column if combination.exponents.keys() <= column.keys() else None for column in columns]
        values = (_number(None if column is None else combination.value(column)) for column in known)
        table.add_row(combination.label, *values, "determined", style="bold")
    return table


def explain(found: Identifiability) -> str:
    """What the demonstrations leave open, and whether they were reproduced at all, in words."""
    if found.unexplained > _UNEXPLAINED:
        return (
            f"The fit leaves {100 * found.unexplained:.2g} % of the demonstrations unexplained (root mean square). Unless that "
            "is noise, it has ended in another valley than the demonstrator's, and these numbers and their errors tell little. "
            "Try another --seed, other starts, the demonstrator's --horizon, more demonstrations, or a learner with another "
            "model."
        )
    loose = [name for name, alone in found.determined_alone().items() if not alone]
    if not loose:
        return "The demonstrations determine every one of these numbers."
    count = len(found.undetermined)
    ways = "is one way" if count == 1 else f"are {count} ways"
    combined = ", ".join(combination.label for combination in found.combinations())
    held = f" They do determine {combined}." if combined else ""
    return (
        f"There {ways} to change {', '.join(map(_short, loose))} together without a trace in the demonstrations, so each of "
        f"them by itself may be far from the truth and act as well.{held}"
    )


def single_numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Every number of some tensors by a name of its own, such as "stage_cost.weights[2]"."""
    found = {}
    for name, value in values.items():
        for place, number in enumerate(value.reshape(-1).tolist()):
            found[f"{name}[{place}]" if value.ndim else name] = number
    return found


def _short(name: str) -> str:
    return name.rpartition(".")[2]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
