"""Policies, copied and pickled: rebuilt from their constructor's arguments, with the weights and optimisers that they had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.policies import BasePolicy

__all__ = ["reduced"]


def reduced(policy: BasePolicy, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a policy's `__reduce__` returns."""
    trained = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    optimisers = {name: optimiser.state_dict() for name, optimiser in _optimisers(policy).items()}
    state = _State(policy.state_dict(), optimisers, trained, policy.training, policy.device)
    return _rebuild, (type(policy), dict(arguments), state)


class _State(NamedTuple):
    """What a copy of a policy takes over beside its constructor's arguments."""

    weights: dict[str, Any]
    optimisers: dict[str, Any]
    trained: set[str]
    training: bool
    device: torch.device


def _rebuild(policy_class: type[BasePolicy], arguments: dict[str, Any], state: _State) -> BasePolicy:
    policy = policy_class(**arguments).to(state.device)
    policy.load_state_dict(state.weights)
    for name, optimiser in _optimisers(policy).items():
        optimiser.load_state_dict(state.optimisers[name])
    for name, parameter in policy.named_parameters():
        parameter.requires_grad_(name in state.trained)
    policy.set_training_mode(state.training)
    return policy


def _optimisers(policy: BasePolicy) -> dict[str, torch.optim.Optimizer]:
    """Of the policy itself (PPO, A2C), or of its actor and its critic."""
    found = {name: getattr(owner, "optimizer", None) for name, owner in {"": policy, **dict(policy.named_children())}.items()}
    return {name: optimiser for name, optimiser in found.items() if isinstance(optimiser, torch.optim.Optimizer)}
