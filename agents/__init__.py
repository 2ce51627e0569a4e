"""Policies that plan, and the learners that train them, on Stable-Baselines3."""

from stable_baselines3 import A2C, DQN, PPO, SAC, TD3

from dilqr_rl.agents.callbacks import SolverHealthCallback
from dilqr_rl.agents.checkpoints import CheckpointError
from dilqr_rl.agents.cost_map import CostMap
from dilqr_rl.agents.demonstrations import Demonstrations, DemonstrationsError, Episode, check_disjoint
from dilqr_rl.agents.distillation import TerminalFit, fit_terminal_value
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
from dilqr_rl.agents.off_policy import MPCSACPolicy, MPCTD3Policy
from dilqr_rl.agents.plan_state import PlanState
from dilqr_rl.agents.planning_policy import PlanningPolicy
from dilqr_rl.agents.policy import MPCPolicy
from dilqr_rl.agents.q_values import NoActor
from dilqr_rl.agents.rollouts import record, record_plans, roll_out
from dilqr_rl.agents.vector_env import SB3VecEnv

# So that PPO("MPCPolicy", env) and the like know the name; each algorithm has a table of its own (DDPG has TD3's).
for _algorithm in (PPO, A2C):
    _algorithm.policy_aliases["MPCPolicy"] = MPCPolicy
SAC.policy_aliases["MPCPolicy"] = MPCSACPolicy
TD3.policy_aliases["MPCPolicy"] = MPCTD3Policy
DQN.policy_aliases["MPCPolicy"] = NoActor

__all__ = [
    "LEARNERS",
    "CheckpointError",
    "CostMap",
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
    "MPCSACPolicy",
    "MPCTD3Policy",
    "NetworkLearner",
    "PhysicsLearner",
    "PlanState",
    "PlanningLearner",
    "PlanningPolicy",
    "RecurrentLearner",
    "ResidualDynamics",
    "ResidualLearner",
    "SB3VecEnv",
    "SolverHealthCallback",
    "SystemIdentification",
    "TerminalFit",
    "check_disjoint",
    "fit_terminal_value",
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
