"""Algorithms whose policies have no place for a plan: a sentence, by name as by class."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.dqn.policies import DQNPolicy

from dilqr_rl.agents.environments import calling_algorithm

__all__ = ["NoActor", "refuse_other_kinds"]

_NAME = "MPCPolicy"


class NoActor(DQNPolicy):
    """What DQN and its kin find under the name of our policies: they have no actor that could plan.

    Raises:
        ValueError: always.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ValueError(_without_actor(type(calling_algorithm() or self).__name__))


def refuse_other_kinds(policy: type[Any], algorithm: BaseAlgorithm | None) -> None:
    """Raise a ValueError where an algorithm's own policies, if there is one, are of another kind than what it was given."""
    if algorithm is None:
        return
    ours = algorithm.policy_aliases.get(_NAME)
    tables = (vars(one).get("policy_aliases", {}) for one in reversed(type(algorithm).__mro__))  # and of what it derives from
    own = {name: kind for table in tables for name, kind in table.items() if name != _NAME}
    if not own or issubclass(policy, tuple(own.values())):
        return
    by = type(algorithm).__name__
    if ours is NoActor:
        raise ValueError(_without_actor(by))
    name, kind = next(iter(own.items()))
    instead = f'{by}("{_NAME}", ...)' if ours else f'{by} with "{name}", or one that plans with PPO, A2C, SAC or TD3'
    raise ValueError(
        f"policy: expected one of the kind {kind.__name__}, as {by} trains them, got {policy.__name__}. Use {instead}."
    )


def _without_actor(by: str) -> str:
    return (
        f"policy: {by} learns what each action is worth and has no actor, whose place a plan could take. Use PPO or A2C with "
        f'{_NAME}, which plan discrete actions, too, or {by} with "MlpPolicy".'
    )
