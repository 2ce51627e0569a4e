"""SAC, TD3 and DDPG with the planner as actor: what they draw, what their losses train, and what follows whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from policy_data import STEPS, batch, model, observed, policy, shake, tensors
from stable_baselines3 import DDPG, SAC, TD3
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from dilqr_rl import ILQROptions
from dilqr_rl.agents import CostMap, MPCPolicy, MPCSACPolicy, MPCTD3Policy, PlanningPolicy

SEEN = torch.as_tensor(observed(6, spread=0.3))
EXACT = ILQROptions(tolerance=1e-11)
LARGEST_TORQUE = 2.0
each_kind = pytest.mark.parametrize("kind", [MPCSACPolicy, MPCTD3Policy])


def planned(one: Any, seen: Tensor = SEEN) -> Tensor:
    """The plans' first controls (B, m), in shares of the largest torque."""
    return one.plan(seen).controls[:, 0].detach() / LARGEST_TORQUE


def widths(network: nn.Module) -> list[int]:
    return [layer.out_features for layer in network.modules() if isinstance(layer, nn.Linear)]


def test_a_policy_for_another_algorithm_is_refused() -> None:
    for algorithm, kind in ((SAC, MPCTD3Policy), (TD3, MPCSACPolicy), (DDPG, MPCPolicy)):
        with pytest.raises(ValueError, match=rf"as {algorithm.__name__} trains them, got {kind.__name__}\. Use .*MPCPolicy"):
            algorithm(kind, "Pendulum-v1")

    class Mine(SAC):
        """With policies of its own."""

        policy_aliases = {"Mine": SACPolicy}

    Mine(MPCSACPolicy, "Pendulum-v1", device="cpu", buffer_size=1)


# What they draw.


@each_kind
def test_the_deterministic_action_is_the_plan(kind: type[PlanningPolicy]) -> None:
    one: Any = policy(kind)
    shake(one)
    plan = planned(one)
    assert plan.abs().max() == 1.0 > plan.abs().min()
    deterministic = one.actor(SEEN, deterministic=True) if kind is MPCSACPolicy else one.actor(SEEN)
    torch.testing.assert_close(deterministic, plan, rtol=0.0, atol=2e-7)  # float32
    np.testing.assert_array_equal(one.predict(SEEN.numpy())[0], LARGEST_TORQUE * plan.numpy())


@pytest.mark.parametrize("margin", [0.02, 0.3])
@pytest.mark.parametrize("use_sde", [False, True])
def test_the_mean_before_the_squashing_is_that_of_the_plan(margin: float, use_sde: bool) -> None:
    one = policy(MPCSACPolicy, squash_margin=margin, use_sde=use_sde)
    mean, _, _ = one.actor.get_action_dist_params(SEEN)
    torch.testing.assert_close(mean.tanh(), planned(one).clamp(margin - 1, 1 - margin), rtol=0.0, atol=1e-6)  # float32
    assert mean.isfinite().all()


def test_log_probabilities_are_those_of_stable_baselines() -> None:
    one = policy(MPCSACPolicy)
    shake(one, 0.1)
    torch.manual_seed(0)
    actions, log_prob = one.actor.action_log_prob(SEEN)
    mean, log_std, _ = one.actor.get_action_dist_params(SEEN)
    torch.manual_seed(0)
    expected, expected_log_prob = SquashedDiagGaussianDistribution(1).log_prob_from_params(mean, log_std)
    assert torch.equal(actions, expected)
    assert torch.equal(log_prob, expected_log_prob)
    normal = torch.distributions.Normal(planned(one).clamp(-0.98, 0.98).atanh(), log_std.exp())
    by_hand = normal.log_prob(actions.atanh()) - (1 - actions.square()).log()
    inner = actions.abs().squeeze(1) < 0.99  # where float32 tells an action from 1
    assert inner.sum() >= 3
    torch.testing.assert_close(by_hand.squeeze(1)[inner], log_prob[inner], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("log_std_init", [-4.0, -1.0])
def test_the_first_standard_deviation_is_the_same_everywhere(log_std_init: float) -> None:
    _, log_std, _ = policy(MPCSACPolicy, log_std_init=log_std_init).actor.get_action_dist_params(SEEN)
    assert (log_std == log_std_init).all()


@pytest.mark.parametrize("use_sde", [False, True])
def test_drawn_actions_lie_around_the_plan_and_within_the_bounds(use_sde: bool) -> None:
    one = policy(MPCSACPolicy, log_std_init=-4.0, use_sde=use_sde)
    seen = np.repeat(SEEN.numpy(), 40, axis=0)
    torch.manual_seed(0)
    if use_sde:
        one.reset_noise(len(seen))
    drawn, _ = one.predict(seen, deterministic=False)
    assert len(np.unique(drawn)) > 150
    assert np.abs(drawn).max() <= LARGEST_TORQUE
    # The margin, and six standard deviations of a squashed action, whose slope is 1 at most.
    assert np.abs(drawn - one.predict(seen)[0]).max() < LARGEST_TORQUE * (0.02 + 6 * np.exp(-4.0))


def test_sac_samples_what_its_actor_samples() -> None:
    """What goes into the replay buffer comes from the distribution that the actor's loss is about."""
    one = policy(MPCSACPolicy)
    torch.manual_seed(0)
    drawn, _ = one.predict(SEEN.numpy(), deterministic=False)
    torch.manual_seed(0)
    np.testing.assert_allclose(drawn, LARGEST_TORQUE * one.actor(SEEN).detach().numpy(), rtol=0.0, atol=1e-6)  # float32


# What their losses train.


def actor_loss(one: Any, seen: Tensor) -> Tensor:
    """As SAC.train and TD3.train have it."""
    if isinstance(one, MPCTD3Policy):
        return -one.critic.q1_forward(seen, one.actor(seen)).mean()
    torch.manual_seed(0)
    actions, log_prob = one.actor.action_log_prob(seen)
    return (0.2 * log_prob - torch.cat(one.critic(seen, actions), dim=1).min(dim=1).values).mean()


@each_kind
def test_the_actor_s_loss_has_the_gradient_of_central_differences(kind: type[PlanningPolicy]) -> None:
    torch.manual_seed(0)
    one: Any = policy(kind, options=EXACT, learn=("physics", "goal"), cost_map=CostMap(("goal",), hidden=(4,)))
    shake(one, 0.05)
    seen = torch.as_tensor(np.abs(observed(8)))  # on one side, so that slopes don't cancel
    actor_loss(one, seen).backward()
    named = dict(one.planning.named_parameters())
    for name in ("mass", "length", "gravity", "stage_cost.goal", "cost_map.network.2.bias"):
        parameter = next(parameter for own, parameter in named.items() if name in own)
        assert parameter.grad is not None
        step, values = 1e-3, []
        for sign in (1, -2, 1):  # forth, back, and home
            with torch.no_grad():
                parameter.add_(sign * step)
            values.append(actor_loss(one, seen).item())
        slope = parameter.grad.sum().item()
        # The loss is of size one in float32: its rounding, 1e-7, is divided by the step.
        assert slope == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.01, abs=1e-4), name
        assert abs(slope) > 5e-4, name


@pytest.mark.parametrize("algorithm", [SAC, TD3, DDPG])
def test_learning_moves_the_physics_and_the_critics(algorithm: type[Any]) -> None:
    one = model(algorithm, policy_kwargs={"physics": {"mass": 1.5}}, learning_rate=0.01)
    before, critic = one.policy.parameter_values(), tensors(one.critic)
    one.learn(STEPS)
    after = one.policy.parameter_values()
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        f"dynamics.{name}" for name in ("mass", "length", "gravity")
    }
    assert all(not torch.equal(tensor, critic[name]) for name, tensor in tensors(one.critic).items())


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_the_critic_s_loss_leaves_the_planner_alone(algorithm: type[Any]) -> None:
    one = model(algorithm)
    sum(one.critic(SEEN, planned(one.policy))).sum().backward()
    assert all(parameter.grad is None for parameter in one.actor.parameters())


# What follows.


@pytest.mark.parametrize("algorithm", [TD3, DDPG])
def test_the_target_follows_the_actor(algorithm: type[Any]) -> None:
    one = model(
        algorithm, tau=0.25, learning_starts=100, learning_rate=0.01, **({"policy_delay": 1} if algorithm is TD3 else {})
    )
    one.learn(STEPS)
    shake(one.actor_target)
    target = {name: parameter.detach().clone() for name, parameter in one.actor_target.named_parameters()}
    one.train(gradient_steps=1, batch_size=4)
    actor = dict(one.actor.named_parameters())
    for name, parameter in one.actor_target.named_parameters():
        torch.testing.assert_close(parameter, 0.75 * target[name] + 0.25 * actor[name], rtol=1e-6, atol=1e-7)  # float32
        assert parameter is not actor[name]
    assert any("dynamics" in name for name in actor)


@pytest.mark.parametrize("algorithm", [SAC, TD3])
@pytest.mark.parametrize("count", [1, 3])
def test_there_are_as_many_critics_as_asked_for(algorithm: type[Any], count: int) -> None:
    one = model(algorithm, policy_kwargs={"n_critics": count})
    one.learn(STEPS)
    assert len(one.critic.q_networks) == len(one.critic_target.q_networks) == count


def test_ddpg_has_one_critic() -> None:
    assert len(model(DDPG).critic.q_networks) == 1


def test_sac_explores_by_state_dependent_noise() -> None:
    one = model(SAC, batch(2), use_sde=True, sde_sample_freq=2)
    one.learn(STEPS)
    mean, log_std, rest = one.actor.get_action_dist_params(SEEN)
    torch.testing.assert_close(mean.tanh(), planned(one.policy).clamp(-0.98, 0.98), rtol=0.0, atol=1e-6)  # float32
    assert log_std.requires_grad
    assert rest["latent_sde"].shape == (6, 8)


# Layers.


@pytest.mark.parametrize(
    ("kind", "net_arch", "critic", "deviation"),
    [
        (MPCTD3Policy, None, [400, 300, 1], None),
        (MPCTD3Policy, [7, 5], [7, 5, 1], None),
        (MPCTD3Policy, {"qf": [7]}, [7, 1], None),
        (MPCTD3Policy, {"pi": [], "qf": []}, [1], None),
        (MPCSACPolicy, None, [256, 256, 1], [64, 64]),
        (MPCSACPolicy, [7, 5], [7, 5, 1], [7, 5]),
        (MPCSACPolicy, {"qf": [7]}, [7, 1], [64, 64]),
        (MPCSACPolicy, {"pi": [], "qf": [7]}, [7, 1], []),
    ],
)
def test_layers_are_as_asked_for(kind: Any, net_arch: Any, critic: list[int], deviation: list[int] | None) -> None:
    one = policy(kind, net_arch=net_arch)
    assert [widths(network) for network in one.critic.q_networks] == [critic, critic]
    assert widths(one.actor.mu) == []
    if deviation is not None:
        assert widths(one.actor.latent_pi) == deviation
    one.actor(SEEN)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: policy(MPCTD3Policy, net_arch={"pi": [8], "qf": [8]}), r"net_arch: .*'pi': \[8\].*the actor plans"),
        (lambda: policy(MPCTD3Policy, net_arch={"vf": [8]}), r'net_arch: expected .*"qf": .* got .*\'vf\''),
        (lambda: policy(MPCTD3Policy, net_arch="wide"), r"net_arch: expected .*got 'wide'"),
        (lambda: policy(MPCSACPolicy, net_arch={"vf": [8]}), r'net_arch: expected .*"pi": .*"qf": .* got .*\'vf\''),
        *(
            (
                lambda margin=margin: policy(MPCSACPolicy, squash_margin=margin),
                r"squash_margin: expected a number between 0 and 1",
            )
            for margin in (0.0, 1.0, -0.1, float("nan"), "wide", None)
        ),
    ],
)
def test_impossible_arguments_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("algorithm", [SAC, TD3])
def test_an_algorithm_that_keeps_no_state_has_no_warm_start(algorithm: type[Any]) -> None:
    with pytest.raises(ValueError, match="warm_start: expected False for an off-policy algorithm, got True"):
        algorithm("MPCPolicy", "Pendulum-v1", policy_kwargs={"task": "Pendulum-v1", "warm_start": True}, device="cpu")


def test_sac_s_own_limit_of_the_mean_is_refused() -> None:
    with pytest.raises(ValueError, match=r"clip_mean: expected none, got 1\.0\. Use squash_margin"):
        policy(MPCSACPolicy, clip_mean=1.0)
