"""Policies that plan, and the learners that train them, on Stable-Baselines3."""

from dilqr_rl.agents.checkpoints import CheckpointError
from dilqr_rl.agents.cloning import CloningOptions, CloningResult, clone, imitation_loss
from dilqr_rl.agents.demonstrations import Demonstrations, DemonstrationsError, Episode
from dilqr_rl.agents.network import network_policy
from dilqr_rl.agents.policy import MPCPolicy
from dilqr_rl.agents.rollouts import roll_out
from dilqr_rl.agents.vector_env import SB3VecEnv

__all__ = [
    "CheckpointError",
    "CloningOptions",
    "CloningResult",
    "Demonstrations",
    "DemonstrationsError",
    "Episode",
    "MPCPolicy",
    "SB3VecEnv",
    "clone",
    "imitation_loss",
    "network_policy",
    "roll_out",
]
