"""What experiments E4 to E6 share: the expert's plans, learners as published, and what is kept of a fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dilqr_rl import ILQR, ILQROptions, QuadraticCost
from dilqr_rl.agents import LEARNERS, Demonstrations, FitOptions, FitResult, Learner, PlanningLearner
from dilqr_rl.agents.learners.segments import cut
from dilqr_rl.experiments.systems import SYSTEMS, problem, starts
from dilqr_rl.tasks import ControlTask

__all__ = [
    "HORIZON",
    "MODEL",
    "expert_plans",
    "fit_options",
    "fit_summary",
    "make_learner",
    "model_losses",
    "prediction_loss",
    "published_task",
]

HORIZON = 20
_EXPERT = ILQROptions(max_iterations=500, tolerance=1e-9)
MODEL = {"pendulum": "pendulum", "cartpole": "cartpole", "pendulum-complex": "pendulum"}  # whose model learners have
_IDS = {"pendulum": "dilqr_rl/Pendulum-v0", "cartpole": "dilqr_rl/CartPole-v0"}
_POINTS = 200  # of a learning curve that are kept, about


def published_task(system: str) -> ControlTask:
    """The model that learners of a system have, with the true physics and cost."""
    found = SYSTEMS[MODEL[system]]
    return ControlTask(
        name=_IDS[MODEL[system]],
        dynamics=found.dynamics.from_physics(),
        stage_cost=QuadraticCost(found.weights, found.goal),
        observation_to_state=_itself,
        horizon=HORIZON,
        state_size=found.dynamics.state_size,
        control_size=1,
        u_min=-found.bound,
        u_max=found.bound,
    )


def _itself(observation: Tensor) -> Tensor:
    return observation


def expert_plans(system: str, sizes: Sequence[int], seed: int) -> list[Demonstrations]:
    """Disjoint sets of the expert's plans of HORIZON steps, from starts drawn by the seed; all of them have converged.

    Args:
        system: one of MODEL.
        sizes: of the sets. The last ones are the same whatever the first is.
        seed: of the starts.
    """
    train, *others = sizes
    x0 = starts(system, 2 * max(sum(sizes), 120), seed)  # some in reserve, should a plan not converge
    with torch.no_grad():
        solution = ILQR(problem(system, HORIZON), _EXPERT)(x0)
    good = solution.converged.nonzero().squeeze(1)
    x, u = solution.states[good].numpy(), solution.controls[good].numpy()
    sets, place = [], 0
    for size in (*others, train):
        chosen = slice(place, place + size)
        sets.append(Demonstrations.from_arrays(_IDS[MODEL[system]], x[chosen], u[chosen], open_loop=True))
        place += size
    return [sets[-1], *sets[:-1]]


def make_learner(
    system: str, method: str, gradient: str, physics: Mapping[str, float], *, published: bool, seed: int
) -> Learner:
    """A learner as published: physics from a wrong start, weights through a sigmoid from 0.5, the goal from 0.

    Args:
        system: one of MODEL.
        method: nn, sysid, dx, cost or cost_dx.
        gradient: "implicit" or "diffmpc"; networks have none.
        physics: where learnt physics start.
        published: weights through a sigmoid that take turns with the goal; else as this library's defaults have it.
        seed: of a network's first weights.
    """
    settings: dict[str, Any] = {"horizon": HORIZON}
    if method == "nn":
        return LEARNERS["nn"](published_task(system), **settings, recurrent=False, seed=seed)
    settings["gradient"] = gradient
    if method in ("sysid", "dx", "cost_dx"):
        settings["physics"] = dict(physics)
    if method in ("cost", "cost_dx") and published:
        settings |= {"bounded_weights": True, "alternate": 10}
    return LEARNERS[method](published_task(system), **settings)


def fit_options(learner: Learner, optimizer: str, epochs: int, seed: int) -> FitOptions:
    """The published optimiser (RMSprop 1e-2 with a smoothing of 0.5, Adam 1e-4 for the network), or Levenberg-Marquardt.

    No patience: all take the epochs that they are given, and the best of them on validation is kept.
    """
    if optimizer == "lm":
        return replace(learner.defaults, epochs=epochs, seed=seed)
    steps = HORIZON if learner.name == "sysid" else 1  # its segments are single steps
    published = FitOptions(batch_size=32 * steps, epochs=epochs, seed=seed, validate_every=max(1, epochs // _POINTS))
    if optimizer == "rmsprop":
        return replace(published, optimizer="rmsprop", learning_rate=1e-2, smoothing=0.5)
    return replace(published, optimizer="adam", learning_rate=1e-4, validate_every=5)


def model_losses(learner: Learner) -> dict[str, float]:
    """Mean squared error of the learnt physics and of the learnt cost (weights and weights times goal), as published."""
    if not isinstance(learner, PlanningLearner):
        return {}
    true = learner.task.problem()
    learnt, found = learner.readable_parameters(), {}
    physics = [name for name in learnt if name.startswith("dynamics.")]
    if physics:
        found["physics_loss"] = _mean_square(learnt[name] - true.get_parameter(name).detach() for name in physics)
    if "stage_cost.weights" in learnt:
        parts = [
            torch.cat((weights, weights * goal))
            for weights, goal in (
                (learnt["stage_cost.weights"], learnt["stage_cost.goal"]),
                (true.get_parameter("stage_cost.weights").detach(), true.get_parameter("stage_cost.goal").detach()),
            )
        ]
        found["cost_loss"] = _mean_square([parts[0] - parts[1]])
    return found


def _mean_square(errors: Any) -> float:
    return float(torch.cat([error.reshape(-1) for error in errors]).square().mean())


@torch.no_grad()
def prediction_loss(learner: Learner, data: Demonstrations) -> float | None:
    """Mean squared error of the learnt model's next states; None without a model."""
    if not isinstance(learner, PlanningLearner):
        return None
    steps = cut(learner.task, data, 1, learner.device)
    predicted = learner.problem.dynamics(steps.states[:, 0], steps.controls[:, 0])
    return float((predicted - steps.states[:, 1]).square().mean())


def fit_summary(learner: Learner, result: FitResult, test: Demonstrations) -> dict[str, Any]:
    """What is kept of a fit: losses, learnt numbers and the learning curve."""
    learnt = {name: value.reshape(-1).tolist() for name, value in learner.readable_parameters().items()}
    positive = [n for name, values in learnt.items() if name.rpartition(".")[2] in _POSITIVE for n in values]
    return {
        "test_loss": _finite(learner.imitation_loss(test)),
        "prediction_loss": prediction_loss(learner, test),
        "validation_loss": _finite(result.best_validation_loss),
        "start_loss": _finite(result.start_loss),
        "best_epoch": result.best_epoch,
        "epochs": int(result.history[-1]["epoch"]),
        "stopped": result.stopped,
        "fit_seconds": result.seconds,
        "parameters": learnt,
        "impossible": any(not number > 0 for number in positive),
        **model_losses(learner),
        "curve": _curve(result),
    }


_POSITIVE = ("mass", "length", "cart_mass", "pole_mass", "weights")


def _curve(result: FitResult) -> dict[str, list[float]]:
    """Every figure that was taken at each look at the validation loss."""
    rows = [row for row in result.history if "validation_loss" in row]
    names = [name for name in rows[0] if name != "epoch"]
    kept = {"epoch": [float(row["epoch"]) for row in rows]}
    return kept | {name: [_finite(row[name]) for row in rows] for name in names}


def _finite(number: float) -> float:
    return number if math.isfinite(number) else 1e300
