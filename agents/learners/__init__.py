"""Learners from demonstrations, all with one interface: see `Learner`."""

from __future__ import annotations

from pathlib import Path

from dilqr_rl.agents.checkpoints import CheckpointError
from dilqr_rl.agents.learners.base import Learner
from dilqr_rl.agents.learners.cost_and_physics import CostAndPhysicsLearner, CostLearner, PhysicsLearner
from dilqr_rl.agents.learners.files import learner_name
from dilqr_rl.agents.learners.fitting import FitResult
from dilqr_rl.agents.learners.identifiability import Identifiability, identifiability
from dilqr_rl.agents.learners.linear import LinearDynamics, LinearLearner
from dilqr_rl.agents.learners.network import NetworkLearner
from dilqr_rl.agents.learners.options import Damping, FitOptions
from dilqr_rl.agents.learners.planning import PlanningLearner
from dilqr_rl.agents.learners.recurrent import RecurrentLearner
from dilqr_rl.agents.learners.residual import ResidualDynamics, ResidualLearner
from dilqr_rl.agents.learners.sysid import SystemIdentification
from dilqr_rl.tasks import ControlTask

__all__ = [
    "LEARNERS",
    "CostAndPhysicsLearner",
    "CostLearner",
    "Damping",
    "FitOptions",
    "FitResult",
    "Identifiability",
    "Learner",
    "LinearDynamics",
    "LinearLearner",
    "NetworkLearner",
    "PhysicsLearner",
    "PlanningLearner",
    "RecurrentLearner",
    "ResidualDynamics",
    "ResidualLearner",
    "SystemIdentification",
    "identifiability",
    "load_learner",
]

LEARNERS: dict[str, type[Learner]] = {
    learner.name: learner
    for learner in (
        RecurrentLearner,
        NetworkLearner,
        PhysicsLearner,
        CostLearner,
        CostAndPhysicsLearner,
        SystemIdentification,
        LinearLearner,
        ResidualLearner,
    )
}


def load_learner(path: str | Path, task: ControlTask | None = None) -> Learner:
    """Read a checkpoint of any learner; see `Learner.load`.

    Raises:
        CheckpointError: it isn't one, or of a learner that this version doesn't have.
    """
    name = learner_name(path)
    if name not in LEARNERS:
        raise CheckpointError(f"{path}: expected a checkpoint of one of {[*LEARNERS]}, got one of {name!r}.")
    return LEARNERS[name].load(path, task)
