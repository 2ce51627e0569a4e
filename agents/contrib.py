"""`MPCTQCPolicy` and `MPCCrossQPolicy`: the actor of sb3-contrib's TQC and CrossQ is a planner.

Nothing else here imports this module, since sb3-contrib is an extra: `import dilqr_rl.agents.contrib` makes "MPCPolicy" known
to TQC and CrossQ, and to TRPO, whose policy is that of PPO; QRDQN, which has no actor, says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule

from dilqr_rl.agents.off_policy import SquashedGaussianActor, SquashedGaussianPolicy
from dilqr_rl.agents.policy import MPCPolicy
from dilqr_rl.agents.q_values import NoActor

try:
    from sb3_contrib import QRDQN, TQC, TRPO, CrossQ
    from sb3_contrib.crossq.policies import Actor as CrossQActor
    from sb3_contrib.crossq.policies import CrossQPolicy
    from sb3_contrib.tqc.policies import Actor as TQCActor
    from sb3_contrib.tqc.policies import TQCPolicy
except ImportError as error:
    raise ImportError(
        f'sb3_contrib is needed for this and can\'t be imported: {error}. Install it: pip install "dilqr_rl[contrib]".'
    ) from error

__all__ = ["MPCCrossQPolicy", "MPCTQCPolicy"]


class _TQCActor(SquashedGaussianActor, TQCActor):
    """TQC's, which is SAC's."""


class MPCTQCPolicy(SquashedGaussianPolicy, TQCPolicy):
    """For sb3-contrib's TQC: the actor of `MPCSACPolicy`, with critics of quantiles.

    TQC("MPCPolicy", env, policy_kwargs={"task": ...}). The critics are networks, n_critics of them, each of n_quantiles.

    Args:
        *args: see `MPCSACPolicy`.
        **kwargs: see `MPCSACPolicy`, and sb3-contrib's own of `TQCPolicy`.

    Raises:
        ValueError: as `MPCSACPolicy`.
    """

    checkpoint_format: ClassVar[str] = "dilqr_rl MPCTQCPolicy"
    actor_class: ClassVar[type[Any]] = _TQCActor


class _CrossQActor(SquashedGaussianActor, CrossQActor):
    """CrossQ's, whose layers of the standard deviation have their inputs renormalised."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._normalisation = {name: value for name, value in kwargs.items() if name.startswith(("batch_norm", "renorm"))}

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), **self._normalisation}  # which sb3-contrib forgets


class MPCCrossQPolicy(SquashedGaussianPolicy, CrossQPolicy):
    """For sb3-contrib's CrossQ: the actor of `MPCSACPolicy`, critics with batch renormalisation and without targets.

    CrossQ("MPCPolicy", env, policy_kwargs={"task": ...}). The layers of the standard deviation are renormalised, too; the plan
    isn't. The critics have two layers of 1024 by default. CrossQ puts the observations of two steps into one batch, and so
    takes none of several parts.

    Args:
        observation_space: a flat Box.
        action_space: see `MPCSACPolicy`, as all that isn't here.
        lr_schedule: learning rate, from Stable-Baselines3.
        **kwargs: see `MPCSACPolicy`, and sb3-contrib's own of `CrossQPolicy`.

    Raises:
        ValueError: as `MPCSACPolicy`; observations of several parts.
    """

    checkpoint_format: ClassVar[str] = "dilqr_rl MPCCrossQPolicy"
    actor_class: ClassVar[type[Any]] = _CrossQActor
    layers: ClassVar[Mapping[str, Sequence[int]]] = {"pi": [64, 64], "qf": [1024, 1024]}

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        **kwargs: Any,
    ) -> None:
        if isinstance(observation_space, spaces.Dict):
            raise ValueError(
                "observation_space: expected a flat Box, since CrossQ joins the observations of two steps, got "
                f"{list(observation_space.spaces)}. Use TQC or SAC, which take several parts."
            )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)


TQC.policy_aliases["MPCPolicy"] = MPCTQCPolicy
CrossQ.policy_aliases["MPCPolicy"] = MPCCrossQPolicy
TRPO.policy_aliases["MPCPolicy"] = MPCPolicy
QRDQN.policy_aliases["MPCPolicy"] = NoActor
