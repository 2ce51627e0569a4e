"""Numbers with which nothing can be planned: found where they arise, when they are kept, and when they are read.

What is optimised can be finite and mean nothing: a mass is learnt as its logarithm, and exp(800) is infinite, exp(-800) is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dilqr_rl.agents.learnable import Positive, Share, frozen_in

__all__ = ["Guard", "guard", "told", "unsound_values"]

_Place = tuple[str, Callable[[], Tensor], bool]  # a name, the value as it is now, and whether it must be above 0


def unsound_values(module: nn.Module) -> dict[str, float]:
    """A module's values that are NaN or infinite, or not above 0 where they must be, by name, each with one such number.

    Only values that something stands behind are looked at: parametrised ones, those that a module calls `positive`, and the
    deviation of a policy's noise. Whether the tensors themselves are finite is seen more quickly at once.
    """
    return _unsound(_places(module))


def told(values: dict[str, float]) -> str:
    """What to say of them."""
    found = ", ".join(f"{name.rpartition('problem.')[2]} = {value:g}" for name, value in values.items())
    return f"{found}: expected finite numbers, and above 0 what must be"


def _places(module: nn.Module) -> list[_Place]:
    found: list[_Place] = []
    for prefix, owner in module.named_modules():
        behind: Any = owner.parametrizations if parametrize.is_parametrized(owner) else {}
        own = {*behind, *(name for name, _ in owner.named_parameters(recurse=False)), *frozen_in(owner)}
        positive = own.intersection(getattr(owner, "positive", ()))
        positive |= {name for name in behind if isinstance(behind[name][0], Positive | Share)}
        for leaf in sorted(positive.union(behind)):
            name = f"{prefix}.{leaf}" if prefix else leaf
            found.append((name, partial(getattr, owner, leaf), leaf in positive))
    noise = module._parameters.get("log_std") if isinstance(module, BasePolicy) else None
    if noise is not None:
        found.append(("exp(log_std)", noise.exp, True))
    return found


@torch.no_grad()
def _unsound(places: list[_Place]) -> dict[str, float]:
    found = {}
    for name, read, positive in places:
        value = read()
        right = value.isfinite() & (value > 0) if positive else value.isfinite()
        if not right.all():
            found[name] = float(value[~right].reshape(-1)[0])
    return found


class Guard:
    """Keeps an optimiser within the numbers: a step that would leave them is taken back, and ends the training.

    Args:
        optimiser: `before` and `after` are for its hooks around a step.
        module: whose parameters it moves.
    """

    def __init__(self, optimiser: torch.optim.Optimizer, module: nn.Module) -> None:
        self._parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        self._places = _places(module)
        self._kept: list[Tensor] = []

    @torch.no_grad()
    def before(self, *_: Any) -> None:
        """Refuse a gradient that isn't finite, which would spoil the optimiser's own numbers; keep the parameters.

        Raises:
            FloatingPointError: the gradient holds NaN or infinity.
        """
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if gradients and not _finite(gradients):
            raise FloatingPointError(_message("the gradient holds NaN or infinity"))
        if not self._kept:
            self._kept = [torch.empty_like(parameter) for parameter in self._parameters]
        for kept, parameter in zip(self._kept, self._parameters, strict=True):
            kept.copy_(parameter)

    @torch.no_grad()
    def after(self, *_: Any) -> None:
        """Take the step back if it has led to numbers with which nothing can be planned.

        Raises:
            FloatingPointError: it has.
        """
        wrong = _unsound(self._places)
        if not wrong and _finite(self._parameters):
            return
        for kept, parameter in zip(self._kept, self._parameters, strict=True):
            parameter.copy_(kept)
        raise FloatingPointError(_message(told(wrong) if wrong else "a step leads to NaN or infinity"))


def guard(optimiser: torch.optim.Optimizer, module: nn.Module) -> None:
    """Have a `Guard` look at every step of an optimiser."""
    watching = Guard(optimiser, module)
    optimiser.register_step_pre_hook(watching.before)
    optimiser.register_step_post_hook(watching.after)


def _finite(tensors: list[Tensor]) -> bool:
    """Whether all of their numbers are; a sum that is finite says so soonest."""
    return all(math.isfinite(tensor.sum().item()) or bool(tensor.isfinite().all()) for tensor in tensors)


def _message(why: str) -> str:
    return (
        f"training: {why}. The step was not taken: the policy is as it was before it, and can be saved. Lower the "
        "learning rate (learning_rate, or model_rate, by which the model's own numbers move faster)."
    )
