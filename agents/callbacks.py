"""What a policy that plans has to tell Stable-Baselines3's logger."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from dilqr_rl.agents.learnable import learnt_physics
from dilqr_rl.agents.planning_policy import PlanningPolicy

__all__ = ["SolverHealthCallback"]


class SolverHealthCallback(BaseCallback):
    """Tells the logger how the solver fares, and what is being learnt, whenever a rollout ends.

        PPO(MPCPolicy, env, policy_kwargs={"task": "Pendulum-v1"}).learn(10_000, callback=SolverHealthCallback())

    The logger gets "mpc/converged" and "mpc/singular", the shares of plans that converged and that are singular,
    "mpc/iterations", their mean number, "mpc/residual", the largest (see `Solution`), each since it last wrote, and under
    "mpc/dynamics.mass" and the like the physics that are being learnt. Off policy, where it writes once in some episodes, all
    but the largest are the means of many small rollouts.
    """

    def _init_callback(self) -> None:
        if not isinstance(self.model.policy, PlanningPolicy):
            raise ValueError(
                f"model: expected one whose policy plans, such as MPCPolicy, got {type(self.model.policy).__name__}."
            )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        policy: Any = self.model.policy
        for name, value in policy.health.summary().items():
            if name == "residual":
                self.logger.record("mpc/residual", max(value, self.logger.name_to_value.get("mpc/residual", 0.0)))
            else:
                self.logger.record_mean(f"mpc/{name}", value)
        policy.health.clear()
        for name, value in learnt_physics(policy.problem).items():
            self.logger.record(f"mpc/dynamics.{name}", value)
