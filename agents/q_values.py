"""What DQN finds under the name of our policies: a sentence."""

from __future__ import annotations

from typing import Any

from stable_baselines3.dqn.policies import DQNPolicy

__all__ = ["NoActor"]


class NoActor(DQNPolicy):
    """DQN has no actor that could plan.

    Raises:
        ValueError: always.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ValueError(
            "policy: DQN learns what each action is worth and has no actor, whose place a plan could take. Use PPO or A2C with "
            'MPCPolicy, which plan discrete actions, too, or DQN with "MlpPolicy".'
        )
