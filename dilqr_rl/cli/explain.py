"""`dilqr explain`: which path a model takes, and why."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from dilqr_rl.cli.console import console
from dilqr_rl.cli.modules import WithModules


@dataclass(frozen=True)
class Explain(WithModules):
    """Which path an environment's model takes, native code or PyTorch, its size, and what stands in the way."""

    env: tyro.conf.Positional[str]
    """Gymnasium id of an environment whose model is known."""

    def run(self) -> None:
        """Tell it, without compiling."""
        from dilqr_rl import explain
        from dilqr_rl.agents.environments import as_task

        told = explain(as_task(self.env).problem())
        console.print(f"{self.env}: {told}", markup=False, highlight=False, soft_wrap=True)
