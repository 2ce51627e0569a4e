"""`dilqr expert`: roll out the expert planner and keep its episodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from dilqr_rl.cli.console import console, progress
from dilqr_rl.cli.modules import WithModules

if TYPE_CHECKING:
    import gymnasium as gym


@dataclass(frozen=True)
class Expert(WithModules):
    """Roll out the planner with the environment's own model, and write the episodes to an .npz file."""

    env: tyro.conf.Positional[str]
    """Id of an environment whose model is known and whose actions are real numbers, e.g. dilqr_rl/Pendulum-v0."""
    out: Path
    """The file to write."""
    episodes: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 12
    """How many episodes; they run side by side."""
    horizon: int = 20
    """Steps that a plan looks ahead. The cart-pole wants --horizon 40 --warm-start."""
    warm_start: bool = False
    """Start each plan from the last one. Better control with long horizons, but such an expert's actions depend on more
    than the observation, so that they can't be cloned exactly."""
    plans: bool = False
    """Record plans instead, each made from its episode's start and carried out for --horizon steps as it was made: what the
    published experiments learn from."""
    physics: dict[str, float] = field(default_factory=dict)
    """Physics of the environment that differ from its defaults, e.g. --physics mass 2 length 0.5."""
    seed: int = 0
    """Of the first episode; the next has the next seed."""
    overwrite: bool = False
    """Overwrite the file if it exists."""

    def run(self) -> None:
        """Roll out, write, and tell."""
        from dilqr_rl.agents import MPCPolicy, roll_out
        from dilqr_rl.agents.environments import make_env
        from dilqr_rl.agents.files import check_can_write
        from dilqr_rl.cli.tables import rollout_table
        from dilqr_rl.tasks import find_task

        check_can_write(self.out, overwrite=self.overwrite)
        env_kwargs = {"physics": self.physics} if self.physics else {}
        env = make_env(self.env, env_kwargs)
        if find_task(env).discrete_controls is not None:
            raise ValueError(
                f"{self.env}: expected actions that are real numbers, as learners take them from a file, got "
                f"{env.action_space}. From Python, roll_out(MPCPolicy.for_env(env), ...) runs its controller; docs/learning.md "
                "says what learns from it."
            )
        if self.plans:
            self._record_plans(env)
            return
        policy = MPCPolicy.for_env(env, horizon=self.horizon, warm_start=self.warm_start)
        limit = env.spec.max_episode_steps if env.spec is not None else None
        env.close()
        with progress(f"{self.episodes} episodes of {self.env}", self.episodes * (limit or 0)) as bar:
            found = roll_out(policy, self.env, env_kwargs, episodes=self.episodes, seed=self.seed, on_step=bar.advance)
        found.demonstrations.save(self.out, overwrite=self.overwrite)
        console.print(rollout_table(f"expert on {self.env}", found, self.seed))
        console.print(f"{found.demonstrations.num_steps} steps written to {self.out}")

    def _record_plans(self, env: gym.Env[Any, Any]) -> None:
        from dilqr_rl.agents import PhysicsLearner, record_plans

        try:
            found = record_plans(env, PhysicsLearner.for_env(env, horizon=self.horizon), episodes=self.episodes, seed=self.seed)
        finally:
            env.close()
        found.save(self.out, overwrite=self.overwrite)
        console.print(f"{len(found)} plans of {self.horizon} steps written to {self.out}")
