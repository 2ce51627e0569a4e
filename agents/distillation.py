"""A terminal value learnt from longer plans, without a step in the environment."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from dilqr_rl.agents.learnable import freeze, thaw
from dilqr_rl.agents.planning_policy import PlanningPolicy
from dilqr_rl.agents.soundness import guard
from dilqr_rl.agents.terminal_value import TerminalValue
from dilqr_rl.checks import number, whole
from dilqr_rl.planner import ILQR
from dilqr_rl.problem import ControlProblem

__all__ = ["TerminalFit", "fit_terminal_value"]


@dataclass(frozen=True)
class TerminalFit:
    """How `fit_terminal_value` fits, by Adam with a cosine decay.

    Attributes:
        steps: of the optimiser.
        batch_size: states in each.
        learning_rate: at first.
        seed: of the batches.

    Raises:
        ValueError: a number that isn't above 0, or counts and isn't whole.
    """

    steps: int = 4000
    batch_size: int = 256
    learning_rate: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            object.__setattr__(self, name, whole(name, getattr(self, name), "a whole number above 0"))
        rate = number("learning_rate", self.learning_rate, "a number above 0", lambda value: 0 < value < math.inf)
        object.__setattr__(self, "learning_rate", rate)
        object.__setattr__(self, "seed", whole("seed", self.seed, "a whole number from 0 on", 0))


def fit_terminal_value(
    policy: PlanningPolicy, observations: Tensor | NDArray[Any], horizon: int, fit: TerminalFit | None = None
) -> float:
    """Teach a policy's terminal value what a plan of `horizon` further steps costs.

    By the principle of optimality, a plan of T steps that ends with the cost of the best `horizon` further ones is a plan of
    T + horizon steps. The network is fitted to these costs and to their gradients with respect to the state, which the planner
    has exactly (Czarnecki et al. 2017, "Sobolev Training for Neural Networks"): it is by its gradient that a terminal value
    acts on a plan.

    Args:
        policy: one with a terminal_value, whether it is among what is learnt or not, and without a cost map.
        observations: (N, k), all over the states that plans may end in; some thousand.
        horizon: of the plans to learn from, which have the policy's physics and costs, but no terminal value.
        fit: settings of the fit.

    Returns:
        The mean squared errors of costs and gradients in the last batch, each relative to its variance, added up.

    Raises:
        ValueError: the policy has no terminal value, or a cost map, for which further steps have no observation; no plan
            converged.
        FloatingPointError: a step of the fit leads to NaN or infinity; it is not taken.
    """
    terminal = policy.problem.terminal_cost
    if not isinstance(terminal, TerminalValue):
        raise ValueError("policy: expected one with a terminal value, got none. Make it with terminal_value=(32, 32), say.")
    if policy.planning.cost_map is not None:
        raise ValueError("policy: expected one without a cost map, which writes costs from observations that plans don't have.")
    targets = _targets(policy, torch.as_tensor(observations), horizon)
    if len(targets[0]) == 0:
        raise ValueError(f"horizon: no plan of {horizon} steps converged from these observations. Try a shorter horizon.")
    loss = _fit(terminal, targets, fit or TerminalFit())
    policy.follow_actor()
    return loss


def _fit(terminal: TerminalValue, targets: tuple[Tensor, Tensor, Tensor], settings: TerminalFit) -> float:
    frozen = thaw(terminal.network)
    parameters = list(terminal.network.parameters())
    rests = [not parameter.requires_grad for parameter in parameters]
    terminal.network.requires_grad_()
    x, cost, slope = (part.to(parameters[0].device) for part in targets)
    spread, spread_of_slopes = cost.std().clamp(min=1e-12), slope.std().clamp(min=1e-12)
    optimiser = torch.optim.Adam(parameters, settings.learning_rate)
    guard(optimiser, terminal.network)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    generator = torch.Generator().manual_seed(settings.seed)
    loss = torch.tensor(0.0)
    try:
        for _ in range(settings.steps):
            chosen = torch.randint(len(x), (settings.batch_size,), generator=generator).to(x.device)
            value, dvalue_dx = _value_and_slope(terminal, x[chosen])
            errors = (value - cost[chosen]) / spread, (dvalue_dx - slope[chosen]) / spread_of_slopes
            loss = errors[0].square().mean() + errors[1].square().mean()
            gradients = torch.autograd.grad(loss, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimiser.step()
            schedule.step()
    finally:
        optimiser.zero_grad()
        for parameter, rested in zip(parameters, rests, strict=True):
            parameter.requires_grad_(not rested)
        if frozen:
            freeze(terminal.network)
    return loss.item()


def _value_and_slope(terminal: TerminalValue, x: Tensor) -> tuple[Tensor, Tensor]:
    """What the network adds to the known terminal cost, and its gradient, which can be differentiated again."""
    states = x.clone().requires_grad_()
    value = terminal.network(states).squeeze(-1)
    (slope,) = torch.autograd.grad(value.sum(), states, create_graph=True)
    return value, slope


def _targets(policy: PlanningPolicy, observations: Tensor, horizon: int) -> tuple[Tensor, Tensor, Tensor]:
    """States (N, n), the costs (N,) of plans from them beyond the known terminal cost, and the costs' gradients (N, n)."""
    x = policy.task.observation_to_state(observations).to(torch.float64).detach().requires_grad_()
    problem = _without_value(policy, horizon)
    solution = ILQR(problem, policy.planner.options)(x)
    cost = solution.cost if problem.terminal_cost is None else solution.cost - problem.terminal_cost(x)
    (slope,) = torch.autograd.grad(cost.sum(), x)
    found = solution.converged
    return x.detach()[found], cost.detach()[found], slope[found]


def _without_value(policy: PlanningPolicy, horizon: int) -> ControlProblem:
    """The policy's problem as it is now, with another horizon and without its terminal value."""
    problem = replace(copy.deepcopy(policy.task), horizon=horizon).problem()
    values = {name.replace("terminal_cost.known.", "terminal_cost."): v for name, v in policy.parameter_values().items()}
    with torch.no_grad():
        for name, parameter in problem.named_parameters():
            parameter.copy_(values[name])
            parameter.requires_grad_(False)
    return problem
