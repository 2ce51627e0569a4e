"""`dilqr evaluate`: run a checkpoint in its environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from dilqr_rl.cli.console import console, progress


@dataclass(frozen=True)
class Evaluate:
    """Run a checkpoint in its environment: return, time of a decision, share of plans that converged."""

    checkpoint: tyro.conf.Positional[Path]
    """A .safetensors file of `dilqr train`."""
    episodes: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 10
    """How many episodes; they run side by side."""
    seed: int = 1000
    """Of the first episode; the next has the next seed."""

    def run(self) -> None:
        """Load, run and tell."""
        from dilqr_rl.agents import MPCPolicy, roll_out
        from dilqr_rl.cli.tables import rollout_table

        policy = MPCPolicy.load(self.checkpoint)
        task = policy.task
        with progress(f"{self.episodes} episodes of {task.name}", self.episodes * 200) as bar:
            found = roll_out(policy, task.name, task.env_kwargs, episodes=self.episodes, seed=self.seed, on_step=bar.advance)
        console.print(rollout_table(f"{self.checkpoint} on {task.name}", found, self.seed))
