"""Policies that plan, and the learners that train them, on Stable-Baselines3."""

from dilqr_rl.agents.checkpoints import CheckpointError
from dilqr_rl.agents.demonstrations import Demonstrations, DemonstrationsError, Episode, check_disjoint
from dilqr_rl.agents.exchange import from_imitation, from_minari, to_imitation, to_minari
from dilqr_rl.agents.learners import (
    LEARNERS,
    CostAndPhysicsLearner,
    CostLearner,
    Damping,
    FitOptions,
    FitResult,
    Identifiability,
    Learner,
    LinearDynamics,
    LinearLearner,
    NetworkLearner,
    PhysicsLearner,
    PlanningLearner,
    RecurrentLearner,
    ResidualDynamics,
    ResidualLearner,
    SystemIdentification,
    identifiability,
    load_learner,
)
from dilqr_rl.agents.policy import MPCPolicy
from dilqr_rl.agents.rollouts import record, record_plans, roll_out
from dilqr_rl.agents.vector_env import SB3VecEnv

__all__ = [
    "LEARNERS",
    "CheckpointError",
    "CostAndPhysicsLearner",
    "CostLearner",
    "Damping",
    "Demonstrations",
    "DemonstrationsError",
    "Episode",
    "FitOptions",
    "FitResult",
    "Identifiability",
    "Learner",
    "LinearDynamics",
    "LinearLearner",
    "MPCPolicy",
    "NetworkLearner",
    "PhysicsLearner",
    "PlanningLearner",
    "RecurrentLearner",
    "ResidualDynamics",
    "ResidualLearner",
    "SB3VecEnv",
    "SystemIdentification",
    "check_disjoint",
    "from_imitation",
    "from_minari",
    "identifiability",
    "load_learner",
    "record",
    "record_plans",
    "roll_out",
    "to_imitation",
    "to_minari",
]
