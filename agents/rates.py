"""One optimiser with two rates: a model's few numbers may want longer steps than the networks beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dilqr_rl.agents.actor import PlanningActor
from dilqr_rl.agents.soundness import Guard

__all__ = ["make_optimiser"]


def make_optimiser(
    optimiser: type[torch.optim.Optimizer],
    settings: Mapping[str, Any],
    module: nn.Module,
    planning: PlanningActor,
    learning_rate: float,
    model_rate: float,
) -> torch.optim.Optimizer:
    """An optimiser of all of a module's parameters, which steps `model_rate` times as far in the model's own numbers.

    Stable-Baselines3 writes the scheduled learning rate into every group of an optimiser, so the factor comes at each step. One
    that leads to numbers with which nothing can be planned is taken back, and raises a FloatingPointError (`Guard`).

    Args:
        optimiser: its class.
        settings: of the optimiser, but for the learning rate.
        module: whose parameters are trained.
        planning: the planner among them; the weights of layers inside its model aren't numbers of the model.
        learning_rate: at first.
        model_rate: the factor.
    """
    problem = planning.planner.problem
    layers = {id(p) for layer in problem.modules() if _is_layer(layer) for p in layer.parameters(recurse=False)}
    numbers = {id(p) for p in problem.parameters()} - layers
    groups = [
        {"params": [p for p in module.parameters() if (id(p) in numbers) == chosen], "rate": rate}
        for chosen, rate in ((False, 1.0), (True, model_rate))
    ]
    made = optimiser([group for group in groups if group["params"]], lr=learning_rate, **settings)  # type: ignore[call-arg]
    guard = Guard(made, module)
    made.register_step_pre_hook(guard.before)  # first and last, so that the rates are as they were when it raises
    made.register_step_pre_hook(lambda own, *_: _multiply(own, 1.0))
    made.register_step_post_hook(lambda own, *_: _multiply(own, -1.0))
    made.register_step_post_hook(guard.after)
    return made


def _is_layer(module: nn.Module) -> bool:
    """One of torch's own, such as Linear."""
    return type(module).__module__.startswith("torch.nn.modules.")


def _multiply(optimiser: torch.optim.Optimizer, power: float) -> None:
    for group in optimiser.param_groups:
        if group["rate"] != 1.0:
            group["lr"] *= group["rate"] ** power
