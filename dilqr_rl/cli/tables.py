"""The tables that the commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table
from torch import Tensor

if TYPE_CHECKING:
    from dilqr_rl.agents.rollouts import RollOuts

__all__ = ["combinations", "parameter_table", "rollout_table"]


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


def parameter_table(start: Mapping[str, Tensor], learnt: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> Table:
    """The parameters that training moved, beside the environment's, and the combinations that a pendulum's actions identify."""
    table = Table(title="what was learnt", title_justify="left")
    for column in ("", "start", "learnt", "true"):
        table.add_column(column, justify="left" if not column else "right")
    moved = [name for name in learnt if not np.allclose(start[name], learnt[name], rtol=1e-9)]
    for name in moved:
        table.add_row(name, *(_numbers(values[name]) for values in (start, learnt, true)))
    told = [combinations(values) for values in (start, learnt, true)]
    for name in told[0]:
        table.add_row(name, *(f"{values[name]:.4g}" for values in told), style="bold")
    return table


def combinations(values: Mapping[str, Tensor]) -> dict[str, float]:
    """For a pendulum, what its actions identify: its motion depends on gravity, mass and length through these two alone."""
    mass, length, gravity = (values.get(f"dynamics.{name}") for name in ("mass", "length", "gravity"))
    if mass is None or length is None or gravity is None:
        return {}
    return {"gravity / length": float(gravity / length), "mass · length²": float(mass * length**2)}


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.4g}" for value in values.reshape(-1).tolist())
