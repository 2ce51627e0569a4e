"""What the learners' tests share: demonstrations of a pendulum, and tiny settings of every learner."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dilqr_rl.agents import Demonstrations
from dilqr_rl.agents.learners import LEARNERS, FitOptions, Learner, PhysicsLearner

ENV = "dilqr_rl/Pendulum-v0"
HORIZON = 6
WRONG = {"mass": 1.3, "length": 0.8}
# Of every learner, for `make`: one that is missing here fails the tests that run for all.
TINY: dict[str, dict[str, Any]] = {
    "nn": {"width": 16},
    "mlp": {"hidden": [8]},
    "dx": {"physics": WRONG},
    "cost": {},
    "cost_dx": {"physics": WRONG},
    "sysid": {"physics": WRONG},
    "residual": {"physics": WRONG, "hidden": [3]},
    "lqr": {"seed": 3},
}
# Other than the defaults, so that what is lost on the way to a file is missed.
CHANGED: dict[str, dict[str, Any]] = {
    "nn": {"width": 6, "recurrent": False, "seed": 2},
    "mlp": {"hidden": [5, 4], "activation": "relu", "seed": 2},
    "dx": {"gradient": "diffmpc"},
    "cost": {"alternate": 3, "bounded_weights": True, "weights": [0.3, 0.4, 0.5, 0.6], "goal": [0.9, 0.1, 0.0, 0.2]},
    "cost_dx": {"alternate": 2},
    "sysid": {},
    "residual": {"seed": 5},
    "lqr": {"compare": "states_and_controls", "seed": 5},
}


def make(name: str, **settings: Any) -> Learner:
    return LEARNERS[name](settings.pop("task", ENV), **{"horizon": HORIZON, **TINY[name], **settings})


def quick(optimizer: Any = None, **changes: Any) -> FitOptions:
    """A fit of little work, by an optimizer or, if None, by "lm"."""
    name = optimizer or "lm"
    return FitOptions(**{"optimizer": name, "epochs": 6, "batch_size": 4, "learning_rate": 1e-2, "scan_rounds": 1, **changes})


def expert(**settings: Any) -> PhysicsLearner:
    """A learner that has nothing to learn: its physics are the true ones."""
    return PhysicsLearner(ENV, **{"horizon": HORIZON, **settings})


def upright(count: int, seed: int) -> NDArray[np.float64]:
    """Observations (count, 3) near upright, where torques stay off their bounds."""
    angle, rate = np.random.default_rng(seed).uniform(-0.15, 0.15, (2, count))
    return np.stack((np.cos(angle), np.sin(angle), rate), axis=-1)


def moved(learner: Learner, observations: NDArray[np.float64], controls: torch.Tensor) -> NDArray[np.float64]:
    """Observations (B, K+1, 3) on the way from the first ones (B, 3) under controls (B, K, 1)."""
    states = [torch.as_tensor(observations)]
    with torch.no_grad():
        for step in range(controls.shape[1]):
            states.append(learner.task.dynamics(states[-1], controls[:, step]))
    return torch.stack(states, dim=1).numpy()


@cache
def plans(count: int, seed: int = 0, horizon: int = HORIZON, noise: float = 0.0) -> Demonstrations:
    """Plans of the expert near upright, carried out as they were made; with noise, of somebody whom no model explains."""
    planner = expert(horizon=horizon)
    start = upright(count, seed)
    controls = planner.plan(start)
    controls = controls + noise * torch.as_tensor(np.random.default_rng(seed).normal(size=controls.shape))
    controls = controls.clamp(planner.task.u_min, planner.task.u_max)
    actions = (controls / planner.task.control_per_action).numpy()
    return Demonstrations.from_arrays(ENV, moved(planner, start, controls), actions, open_loop=True)


@cache
def episodes(count: int, seed: int = 0, length: int = 8) -> Demonstrations:
    """Episodes near upright in which the expert answers every observation."""
    planner = expert()
    observed, taken = [upright(count, seed)], []
    for _ in range(length):
        taken.append(planner.plan(observed[-1])[:, :1])
        observed.append(moved(planner, observed[-1], taken[-1])[:, 1])
    actions = torch.cat(taken, dim=1) / planner.task.control_per_action
    return Demonstrations.from_arrays(ENV, np.stack(observed, axis=1), actions.numpy())


def tensors(learner: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in learner.state_dict().items()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
