"""`MPCTD3Policy` and `MPCSACPolicy`: the actor of Stable-Baselines3's off-policy algorithms is a planner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN, SACPolicy
from stable_baselines3.sac.policies import Actor as SACActor
from stable_baselines3.td3.policies import Actor as TD3Actor
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from dilqr_rl.agents.actor import ActorSettings, PlanningActor
from dilqr_rl.agents.networks import Layers, critic_layers, widths
from dilqr_rl.agents.planning_policy import PlanningPolicy
from dilqr_rl.agents.soundness import guard
from dilqr_rl.agents.spaces import state_part
from dilqr_rl.checks import number
from dilqr_rl.tasks import ControlTask

__all__ = ["MPCSACPolicy", "MPCTD3Policy"]

_CLIP_MEAN = 2.0  # Stable-Baselines3's default, which has no use here


class OffPolicy(PlanningPolicy):
    """What all of these share: an actor of its own, whose `mu` is the planner, and actions that are kept in [-1, 1]."""

    collects_by_predict = True
    actor: Any
    critic: Any

    @property
    def planning(self) -> PlanningActor:
        """See `PlanningPolicy`."""
        planner: PlanningActor = self.actor.mu
        return planner

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)  # type: ignore[misc]
        self.actor.optimizer = self._make_optimiser(self.actor, lr_schedule)
        guard(self.critic.optimizer, self.critic)  # whose NaN would be the actor's next gradient

    def features(self, observation: PyTorchObs) -> Tensor:
        """See `PlanningPolicy`."""
        return BasePolicy.extract_features(self.actor, observation, self.actor.features_extractor)


class MPCTD3Policy(OffPolicy, TD3Policy):
    """For Stable-Baselines3's TD3 and DDPG: the action is the first control of a plan.

    TD3("MPCPolicy", env, policy_kwargs={"task": ...}). The critics are networks, as many as n_critics says; the target actor
    has a planner of its own, whose parameters follow. TD3 explores by the action_noise that it is given, and not without.

    Args:
        observation_space: see `PlanningPolicy`, as all that isn't here.
        action_space: a Box.
        lr_schedule: learning rate, from Stable-Baselines3.
        net_arch: layers of the critics, a list or {"qf": list}; 400 and 300 by default. The actor has none.
        **kwargs: of `PlanningPolicy`, and Stable-Baselines3's own of `TD3Policy`.

    Raises:
        ValueError: as `PlanningPolicy`; layers for the actor.
    """

    checkpoint_format: ClassVar[str] = "dilqr_rl MPCTD3Policy"

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        net_arch: Layers = None,
        **kwargs: Any,
    ) -> None:
        arch = critic_layers(net_arch, "qf", [400, 300])
        super().__init__(observation_space, action_space, lr_schedule, net_arch=arch, **kwargs)

    def sample_around(self, actions: Tensor, observation: PyTorchObs) -> Tensor:
        """The actions themselves."""
        return actions

    def follow_actor(self) -> None:
        """See `PlanningPolicy`."""
        self.actor_target.load_state_dict(self.actor.state_dict())

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> TD3Actor:
        """A planner, and no layers."""
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return _TD3Actor(task=self.task, settings=self.actor_settings(), **kwargs).to(self.device)


class _TD3Actor(TD3Actor):
    """Observations -> planned actions in [-1, 1]."""

    def __init__(self, *args: Any, task: ControlTask, settings: ActorSettings, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.task, self.settings = task, settings
        self.mu = PlanningActor(task, settings, self.features_dim)  # type: ignore[assignment]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {**super()._get_constructor_parameters(), "task": self.task, "settings": self.settings}

    def forward(self, obs: PyTorchObs) -> Tensor:
        return _planned(self, obs, self.extract_features(obs, self.features_extractor))


class SquashedGaussianPolicy(OffPolicy):
    """What SAC and its kin share: see `MPCSACPolicy`. A subclass goes before a policy of theirs."""

    actor_class: ClassVar[type[Any]]  # a `SquashedGaussianActor`
    layers: ClassVar[Mapping[str, Sequence[int]]] = {"pi": [64, 64], "qf": [256, 256]}
    actor_kwargs: dict[str, Any]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        net_arch: Layers = None,
        log_std_init: float = -1.0,
        squash_margin: float = 0.02,
        **kwargs: Any,
    ) -> None:
        squash_margin = number("squash_margin", squash_margin, "a number between 0 and 1", lambda value: 0 < value < 1)
        log_std_init = number("log_std_init", log_std_init, "a finite number")
        if kwargs.get("clip_mean", _CLIP_MEAN) != _CLIP_MEAN:
            raise ValueError(
                f"clip_mean: expected none, got {kwargs['clip_mean']!r}. Use squash_margin, which does the same here."
            )
        self.squash_margin = squash_margin
        arch = _layers_of_both(net_arch, self.layers)
        super().__init__(observation_space, action_space, lr_schedule, net_arch=arch, log_std_init=log_std_init, **kwargs)

    @torch.no_grad()
    def sample_around(self, actions: Tensor, observation: PyTorchObs) -> Tensor:
        """See `PlanningPolicy`."""
        actor: Any = self.actor
        low, high = _bounds(self, actions)
        mean, log_std, kwargs = actor.around((actions - low) / (high - low) * 2 - 1, self.features(observation))
        sample = actor.action_dist.actions_from_params(mean, log_std, deterministic=False, **kwargs)
        return low + 0.5 * (sample + 1) * (high - low)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """A planner, and layers for the standard deviation alone."""
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        own = {"task": self.task, "settings": self.actor_settings(), "squash_margin": self.squash_margin}
        return self.actor_class(**own, **kwargs).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        mine = {
            "squash_margin": self.squash_margin,
            # Stable-Baselines3 forgets this one of its own.
            "share_features_extractor": self.share_features_extractor,
        }
        return {**super()._get_constructor_parameters(), **mine}


def _layers_of_both(net_arch: Layers, default: Mapping[str, Sequence[int]]) -> Any:
    if net_arch is None or isinstance(net_arch, Mapping):
        wrong = set(net_arch or ()) - set(default)
        if wrong:
            raise ValueError(f'net_arch: expected widths of layers, a list or {{"pi": [...], "qf": [...]}}, got {net_arch!r}.')
        return {name: widths("net_arch", layers) for name, layers in {**default, **(net_arch or {})}.items()}
    return widths("net_arch", net_arch)


class SquashedGaussianActor(BasePolicy):
    """Observations -> a distribution around planned actions in [-1, 1]. A subclass goes before an actor as SAC has it."""

    features_dim: int
    log_std_init: float
    use_sde: bool
    mu: Any
    latent_pi: Any
    log_std: Any  # numbers with use_sde, else a layer

    def __init__(self, *args: Any, task: ControlTask, settings: ActorSettings, squash_margin: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.task, self.settings, self.squash_margin = task, settings, squash_margin
        self.mu = PlanningActor(task, settings, self.features_dim)
        if isinstance(self.log_std, nn.Linear):
            nn.init.zeros_(self.log_std.weight)
            nn.init.constant_(self.log_std.bias, self.log_std_init)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        mine = {"task": self.task, "settings": self.settings, "squash_margin": self.squash_margin}
        return {**super()._get_constructor_parameters(), **mine}

    def around(self, planned: Tensor, features: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Mean, before the squashing, and what else the distribution takes; see `Actor.get_action_dist_params`."""
        largest = 1 - self.squash_margin
        mean = planned.clamp(-largest, largest).atanh()
        latent = self.latent_pi(features)
        if self.use_sde:
            return mean, self.log_std, {"latent_sde": latent}
        return mean, self.log_std(latent).clamp(LOG_STD_MIN, LOG_STD_MAX), {}

    def get_action_dist_params(self, obs: PyTorchObs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """See `Actor` of Stable-Baselines3's SAC."""
        features = self.extract_features(obs, self.features_extractor)
        return self.around(_planned(self, obs, features), features)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> Tensor:
        """Actions (B, m) in [-1, 1]: the plan's own, or drawn around it."""
        if deterministic:
            return _planned(self, obs, self.extract_features(obs, self.features_extractor))
        actions: Tensor = super().forward(obs)
        return actions


class _SACActor(SquashedGaussianActor, SACActor):
    """SAC's."""


class MPCSACPolicy(SquashedGaussianPolicy, SACPolicy):
    """For Stable-Baselines3's SAC: a squashed Gaussian around the first control of a plan.

    SAC("MPCPolicy", env, policy_kwargs={"task": ...}). Before the squashing the mean is artanh(a), with the planned action a in
    [-1, 1] kept `squash_margin` away from the ends, where artanh is infinite and nothing would be explored. The deterministic
    action is the planned one exactly. The standard deviation is a network's, and starts at exp(log_std_init) everywhere. The
    critics are networks, as many as n_critics says.

    Args:
        observation_space: see `PlanningPolicy`, as all that isn't here.
        action_space: a Box.
        lr_schedule: learning rate, from Stable-Baselines3.
        net_arch: layers, a list for all, or {"pi": of the standard deviation, "qf": of the critics}; [64, 64] and [256, 256]
            where it doesn't say.
        log_std_init: logarithm of the first standard deviation, before the squashing.
        squash_margin: see above, between 0 and 1.
        **kwargs: of `PlanningPolicy`, and Stable-Baselines3's own of `SACPolicy`.

    Raises:
        ValueError: as `PlanningPolicy`; layers of something else, or a margin out of its range.
    """

    checkpoint_format: ClassVar[str] = "dilqr_rl MPCSACPolicy"
    actor_class: ClassVar[type[Any]] = _SACActor


def _planned(actor: Any, observation: PyTorchObs, features: Tensor) -> Tensor:
    """Planned actions (B, m), scaled to [-1, 1]."""
    actions: Tensor = actor.mu(state_part(observation).float(), features)
    low, high = _bounds(actor, actions)
    return (actions - low) / (high - low) * 2 - 1


def _bounds(policy: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    low, high = (torch.as_tensor(bound).to(like) for bound in (policy.action_space.low, policy.action_space.high))
    return low, high
