"""A network that writes parameters of the control problem from the observation, for each problem and step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dilqr_rl.agents.learnable import LEARNABLE, own_parameters, parameter_values
from dilqr_rl.agents.networks import perceptron, widths
from dilqr_rl.problem import ControlProblem

__all__ = ["CostMap", "CostMapNetwork"]

_LARGEST_FACTOR = 20.0  # by which a network multiplies what must stay positive, or divides it


@dataclass(frozen=True)
class CostMap:
    """What a network is to write, and how (Romero et al. 2024, "Actor-Critic Model Predictive Control").

    Attributes:
        writes: "weights", "goal", or parameters of the problem by their name, such as "stage_cost.goal".
        per_step: one value for each step of the plan, else one for the whole plan. A terminal cost has no steps.
        hidden: widths of the hidden layers, with tanh.

    Raises:
        ValueError: nothing to write, a width that isn't a positive integer, or something else in the place of a sequence.
    """

    writes: Sequence[str] = ("weights", "goal")
    per_step: bool = True
    hidden: Sequence[int] = (64, 64)

    def __post_init__(self) -> None:
        if isinstance(self.writes, str) or not isinstance(self.writes, Sequence) or not self.writes:
            raise ValueError(f'writes: expected a sequence of names, such as ("weights", "goal"), got {self.writes!r}.')
        if isinstance(self.hidden, str) or not isinstance(self.hidden, Sequence):
            raise ValueError(f"hidden: expected widths of layers, such as (64, 64), got {self.hidden!r}.")
        object.__setattr__(self, "writes", tuple(self.writes))
        object.__setattr__(self, "hidden", tuple(widths("hidden", self.hidden)))


@dataclass(frozen=True)
class _Target:
    """A parameter that is written: its name in the problem, how many steps it has (1: none) and how large a change is."""

    name: str
    steps: int
    scale: Tensor
    positive: bool


class CostMapNetwork(nn.Module):
    """Features (B, F) -> values for `ILQR`'s `params`.

    What must be positive is multiplied by a factor between 1/20 and 20, other numbers are moved by some of their own size
    (controls: of their bound). The last layer starts at zero: at first the plans are those of the problem as it is.

    Args:
        settings: what to write.
        problem: whose parameters are written; what is learnt of them beside, is.
        features: F.

    Raises:
        ValueError: a name that the problem doesn't have, or given twice, or a weight of zero, which no factor changes.
    """

    def __init__(self, settings: CostMap, problem: ControlProblem, features: int) -> None:
        super().__init__()
        self._problem = (problem,)  # not a submodule: its parameters are the planner's
        self._targets = [_target(problem, name, settings.per_step) for name in settings.writes]
        if len({target.name for target in self._targets}) < len(self._targets):
            raise ValueError(f"cost_map: expected every parameter once, got writes={settings.writes}.")
        count = sum(target.steps * target.scale.numel() for target in self._targets)
        self.network = perceptron((features, *settings.hidden, count), "tanh", generator=None)
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        """The values by name, (B, ...) or (B, T, ...), from features (B, F)."""
        written = self.network(features.to(torch.float64))
        own = own_parameters(self._problem[0])
        values, start = {}, 0
        for target in self._targets:
            size = target.steps * target.scale.numel()
            shape = (features.shape[0], *([target.steps] if target.steps > 1 else []), *target.scale.shape)
            part = written[:, start : start + size].reshape(shape)
            values[target.name] = _changed(own[target.name], part, target)
            start += size
        return values


def _changed(own: Tensor, part: Tensor, target: _Target) -> Tensor:
    if not target.positive:
        return own + target.scale.to(part.device) * part
    limit = math.log(_LARGEST_FACTOR)
    exponent = limit * (part / limit).tanh()
    return own + exponent if target.name.endswith(".original") else own * exponent.exp()


def _target(problem: ControlProblem, name: str, per_step: bool) -> _Target:
    full = LEARNABLE.get(name, name)
    owner_name, _, leaf = full.rpartition(".")
    named = own_parameters(problem)
    raw = f"{owner_name}.parametrizations.{leaf}.original"
    if full not in named and raw not in named:
        raise ValueError(f"cost_map: the problem has no parameter {name!r} to write; it has {[*parameter_values(problem)]}.")
    owner = problem.get_submodule(owner_name)
    value = getattr(owner, leaf).detach()
    positive = leaf in getattr(owner, "positive", ()) or full == LEARNABLE["weights"]
    if positive and not (value > 0).all():
        raise ValueError(f"cost_map: {name} is multiplied by a factor, so it can't be {value.min().item():g}.")
    if parametrize.is_parametrized(owner, leaf) and not positive:
        full, scale = raw, torch.ones_like(value)
    else:
        full, scale = (raw if raw in named else full), _scale(problem, full, value)
    steps = problem.horizon if per_step and not owner_name.startswith("terminal_cost") else 1
    return _Target(full, steps, scale, positive)


def _scale(problem: ControlProblem, name: str, value: Tensor) -> Tensor:
    """By how much a one of the network moves a number: by its own size, and where it is zero by one, or a control's bound."""
    scale = torch.where(value == 0, 1.0, value.abs())
    if name == LEARNABLE["goal"] and problem.u_max.isfinite().all():
        scale[-problem.control_size :] = torch.as_tensor(problem.u_max).expand(problem.control_size).to(scale.dtype)
    return scale
