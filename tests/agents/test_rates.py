"""The model's own numbers step further than the networks beside them, by a factor."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from policy_data import policy
from torch import Tensor

from dilqr_rl.agents import MPCPolicy, MPCSACPolicy, MPCTD3Policy

each_class = pytest.mark.parametrize("kind", [MPCPolicy, MPCSACPolicy, MPCTD3Policy])


def moved(one: Any) -> dict[str, float]:
    """How far a step of SGD moves each of the actor's parameters that gets a gradient of one."""
    owner = one if isinstance(one, MPCPolicy) else one.actor
    before: dict[str, Tensor] = {}
    for name, parameter in owner.named_parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
            before[name] = parameter.detach().clone()
    owner.optimizer.step()
    after = dict(owner.named_parameters())
    return {name: (value - after[name].detach()).abs().max().item() for name, value in before.items()}


@each_class
def test_the_model_s_numbers_step_further(kind: Any) -> None:
    made = policy(kind, model_rate=3.0, terminal_value=(4,), learn=("physics", "terminal"), optimizer_class=torch.optim.SGD)
    for one in (made, copy.deepcopy(made)):
        owner = one if isinstance(one, MPCPolicy) else one.actor
        for group in owner.optimizer.param_groups:
            group["lr"] = 0.25  # as Stable-Baselines3 writes it
        steps = moved(one)
        assert any("dynamics" in name for name in steps)
        for name, size in steps.items():
            assert size == pytest.approx(0.75 if "dynamics" in name else 0.25, rel=1e-5), name
        assert {group["lr"] for group in owner.optimizer.param_groups} == {0.25}


def test_a_rate_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model_rate: expected a number above 0, got 0\.0"):
        policy(MPCPolicy, model_rate=0.0)
