"""`dilqr evaluate`: run a checkpoint in its environment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dilqr_rl.cli.console import console, progress
from dilqr_rl.cli.modules import WithModules

if TYPE_CHECKING:
    from dilqr_rl.agents import Learner, PlanningPolicy


@dataclass(frozen=True)
class Evaluate(WithModules):
    """Run a checkpoint in its environment: return, time of a decision, share of plans that converged."""

    checkpoint: tyro.conf.Positional[Path]
    """A .safetensors file of `dilqr train`, or of MPCPolicy.save."""
    episodes: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 10
    """How many episodes; they run side by side."""
    seed: int = 1000
    """Of the first episode; the next has the next seed."""

    def run(self) -> None:
        """Load, run and tell."""
        from dilqr_rl.agents import roll_out
        from dilqr_rl.cli.tables import rollout_table

        policy = _load(self.checkpoint)
        task = policy.task
        with progress(f"{self.episodes} episodes of {task.name}", self.episodes * 200) as bar:
            found = roll_out(policy, task.name, task.env_kwargs, episodes=self.episodes, seed=self.seed, on_step=bar.advance)
        console.print(rollout_table(f"{self.checkpoint.name} on {task.name}", found, self.seed))


def _load(path: Path) -> Learner | PlanningPolicy:
    """A policy, or a learner: those that plan as policies, which tell how the planner fared."""
    from dilqr_rl.agents import MPCPolicy, MPCSACPolicy, MPCTD3Policy, PlanningLearner, load_learner
    from dilqr_rl.agents.checkpoints import checkpoint_format

    found = checkpoint_format(path)
    policies: tuple[type[PlanningPolicy], ...] = (MPCPolicy, MPCSACPolicy, MPCTD3Policy)
    for policy_class in policies:
        if policy_class.checkpoint_format == found:
            return policy_class.load(path)
    learner = load_learner(path)
    return learner.policy() if isinstance(learner, PlanningLearner) else learner
