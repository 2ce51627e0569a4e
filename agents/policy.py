"""`MPCPolicy`: the actor of PPO, A2C and their like is a planner."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import Tensor, nn

from dilqr_rl.agents.actor import PlanningActor
from dilqr_rl.agents.discrete import ActionLogits, controls_of
from dilqr_rl.agents.learnable import freeze
from dilqr_rl.agents.networks import Layers, critic_layers
from dilqr_rl.agents.planning_policy import PlanningPolicy
from dilqr_rl.agents.spaces import state_part
from dilqr_rl.solution import Solution

__all__ = ["MPCPolicy"]

_LARGEST_COST = 1e12


class MPCPolicy(PlanningPolicy, ActorCriticPolicy):
    """For Stable-Baselines3's PPO and A2C: the mean action is the first control of a plan; discrete actions have a Categorical.

    `MPCPolicy.for_env(env)` makes a ready controller. As a policy: PPO("MPCPolicy", env, policy_kwargs={"task": ...}),
    or the class itself. What `learn` names is trained by any loss on the actions, as are the noise's log_std and
    the critic, a network; the rest of the model stays as it is. Plans, and so the mean, keep to the task's u_min and u_max;
    what is drawn around them is cut off by Stable-Baselines3 at the bounds of the environment's action space alone.

    Nothing is hidden: `forward`, `evaluate_actions`, `get_distribution` and, without a warm start, `predict` plan anew from
    zero controls, so that equal observations give equal actions.

    Args:
        observation_space: see `PlanningPolicy`, as all that isn't here.
        action_space: a Box.
        lr_schedule: learning rate, from Stable-Baselines3.
        plan_cost_feature: let the critic see the plan's cost, as sign(c) log(1 + |c|), beside the observation. The critic's
            loss doesn't train the planner.
        net_arch: layers of the critic, a list or {"vf": list}; two of 64 by default. The actor has none.
        **kwargs: of `PlanningPolicy`, and Stable-Baselines3's own of `ActorCriticPolicy`. With use_sde the noise depends on the
            mean action and the features.

    Raises:
        ValueError: as `PlanningPolicy`; layers for the actor, or squash_output, which would bend what was planned.
    """

    checkpoint_format: ClassVar[str] = "dilqr_rl MPCPolicy"

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        plan_cost_feature: bool = False,
        net_arch: Layers = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("squash_output"):
            raise ValueError("squash_output: expected False, got True. Plans keep to the bounds by themselves.")
        apart = not kwargs.get("share_features_extractor", True)
        plain = kwargs.get("features_extractor_class", FlattenExtractor) in (FlattenExtractor, CombinedExtractor)
        if plan_cost_feature and kwargs.get("cost_map") and apart and not plain:
            raise ValueError(
                "plan_cost_feature: expected False with a cost map where features aren't shared, got True: from the critic's "
                "features the map would write another cost than from the actor's. Leave share_features_extractor at True."
            )
        self.plan_cost_feature = plan_cost_feature
        arch = critic_layers(net_arch, "vf", [64, 64])
        super().__init__(observation_space, action_space, lr_schedule, net_arch=arch, **kwargs)

    @property
    def planning(self) -> PlanningActor:
        """See `PlanningPolicy`."""
        extractor: _PlanAndCritic = self.mlp_extractor  # type: ignore[assignment]
        return extractor.planning

    def features(self, observation: PyTorchObs) -> Tensor:
        """See `PlanningPolicy`."""
        return self._extracted(observation)[:, self._state_size :]

    def sample_around(self, actions: Tensor, observation: PyTorchObs) -> Tensor:
        """See `PlanningPolicy`."""
        latent = torch.cat((actions, self.features(observation)), dim=1) if self.use_sde else actions
        return self._get_action_dist_from_latent(latent).sample()

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """The features with what plans start from in front of them."""
        return _StateAndFeatures(self.observation_space, super().make_features_extractor(), self._state_size)

    def _extracted(self, observation: PyTorchObs) -> Tensor:
        return BasePolicy.extract_features(self, observation, self.pi_features_extractor)

    def _build_mlp_extractor(self) -> None:
        extractor = _PlanAndCritic(self)
        self.mlp_extractor = extractor.to(self.device)

    def _build(self, lr_schedule: Schedule) -> None:
        super()._build(lr_schedule)
        # After the layers have got their first weights: a network inside the model keeps its own.
        planning = PlanningActor(self.task, self.actor_settings(), self.features_dim - self._state_size)
        freeze(planning)  # trust region methods differentiate by every parameter
        self.mlp_extractor.planning = planning.to(self.device)
        if isinstance(self.action_space, spaces.Discrete):
            self.action_net = ActionLogits(controls_of(self.task), self.log_std_init).to(self.device)
        else:
            self.action_net = _MeanAction(self.task.control_size)
        # Again, now that the planner's parameters are among them.
        self.optimizer = self._make_optimiser(self, lr_schedule)
        self._types = {name: parameter.dtype for name, parameter in self.named_parameters()}

    def get_distribution(self, obs: PyTorchObs) -> Distribution:
        """As `ActorCriticPolicy`, with all parameters in the type that they had at first.

        TRPO adds one flat direction to them, float64 as the planner's numbers are, and so makes float64 of the others.
        """
        for name, parameter in self.named_parameters():
            own = self._types.get(name, parameter.dtype)
            if parameter.dtype != own:
                parameter.data = parameter.data.to(own)
        return super().get_distribution(obs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        mine = {
            "plan_cost_feature": self.plan_cost_feature,
            # Stable-Baselines3 forgets this one of its own.
            "share_features_extractor": self.share_features_extractor,
        }
        return {**super()._get_constructor_parameters(), **mine}


class _StateAndFeatures(BaseFeaturesExtractor):
    """What plans start from, as it is, and the features beside it."""

    def __init__(self, observation_space: spaces.Space[Any], inner: BaseFeaturesExtractor, state_size: int) -> None:
        super().__init__(observation_space, state_size + inner.features_dim)
        self.inner = inner

    def forward(self, observation: PyTorchObs) -> Tensor:
        return torch.cat((state_part(observation), self.inner(observation)), dim=1)


class _PlanAndCritic(MlpExtractor):
    """What Stable-Baselines3 has a policy's hidden layers for: here the actor's "latent" begins with the mean action itself."""

    planning: PlanningActor

    def __init__(self, policy: MPCPolicy) -> None:
        features = policy.features_dim - policy._state_size
        seen = features + int(policy.plan_cost_feature)
        super().__init__(seen, policy.net_arch, policy.activation_fn, policy.device)
        self._state_size, self._sees_cost, self._sde = policy._state_size, policy.plan_cost_feature, policy.use_sde
        self.latent_dim_pi = policy.task.control_size + features * int(policy.use_sde)

    def forward(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """The latents of actor and critic, from states and features (B, k+F); one plan serves both."""
        state, features = both[:, : self._state_size], both[:, self._state_size :]
        solution = self.planning.plan(state, features)
        return self._actor(solution, features), self._critic(features, solution.cost)

    def forward_actor(self, both: Tensor) -> Tensor:
        """The latent of the actor."""
        state, features = both[:, : self._state_size], both[:, self._state_size :]
        return self._actor(self.planning.plan(state, features), features)

    def forward_critic(self, both: Tensor) -> Tensor:
        """The latent of the critic."""
        state, features = both[:, : self._state_size], both[:, self._state_size :]
        if not self._sees_cost:
            return self.value_net(features)
        with torch.no_grad():
            cost = self.planning.plan(state, features).cost
        return self._critic(features, cost)

    def _actor(self, solution: Solution, features: Tensor) -> Tensor:
        actions = self.planning.actions(solution)
        return torch.cat((actions, features), dim=1) if self._sde else actions

    def _critic(self, features: Tensor, cost: Tensor) -> Tensor:
        if not self._sees_cost:
            return self.value_net(features)
        finite = torch.nan_to_num(cost.detach(), nan=_LARGEST_COST).clamp(
            -_LARGEST_COST, _LARGEST_COST
        )  # of a plan that diverged
        told = finite.sign() * finite.abs().log1p()
        return self.value_net(torch.cat((features, told.unsqueeze(1)), dim=1))


class _MeanAction(nn.Module):
    """The mean action out of the actor's latent."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, latent: Tensor) -> Tensor:
        return latent[:, : self.size]
