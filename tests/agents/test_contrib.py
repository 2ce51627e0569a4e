"""TQC and CrossQ of sb3-contrib with the planner as actor: what is theirs, beside SAC's, and that it is kept."""

from __future__ import annotations

import copy
import importlib
import sys
from pathlib import Path
from typing import Any

import learner_data
import numpy as np
import pytest
import torch
from policy_data import ENV, STEPS, assert_same, batch, described, observed, planning, shake, state_beside, tensors
from sb3_contrib import QRDQN, TQC, TRPO, CrossQ, RecurrentPPO
from torch import Tensor

from dilqr_rl import ILQROptions
from dilqr_rl.agents import CostMap, MPCPolicy
from dilqr_rl.agents.contrib import MPCCrossQPolicy, MPCTQCPolicy

pytestmark = pytest.mark.slow  # once, with the checkout; not again with the wheel

KINDS: dict[type[Any], type[Any]] = {TQC: MPCTQCPolicy, CrossQ: MPCCrossQPolicy}
# Each policy's own arguments, other than their defaults.
OWN: dict[type[Any], dict[str, Any]] = {
    TQC: {"n_quantiles": 7, "n_critics": 3},
    CrossQ: {"batch_norm": False, "renorm_warmup_steps": 5, "batch_norm_momentum": 0.1, "optimizer_kwargs": {"eps": 1e-4}},
}
SEEN = observed(6, spread=0.3)
each_algorithm = pytest.mark.parametrize("algorithm", KINDS)


def tiny(algorithm: type[Any], env: Any = None, policy: Any = "MPCPolicy", seed: int = 0, **kwargs: Any) -> Any:
    """A small model, whose policy has these arguments beside those of `planning`."""
    sizes = {"buffer_size": 64, "batch_size": 4, "learning_starts": 4, "learning_rate": 0.01}
    env = batch() if env is None else env
    return algorithm(policy, env, policy_kwargs=planning(**kwargs), seed=seed, device="cpu", **sizes)


def chosen(one: Any, seen: Any = SEEN) -> Any:
    return one.predict(seen, deterministic=True)[0]


@each_algorithm
def test_it_goes_by_class_and_by_name_and_acts_with_the_plan(algorithm: type[Any]) -> None:
    by_name, by_class = tiny(algorithm), tiny(algorithm, policy=KINDS[algorithm])
    assert type(by_name.policy) is type(by_class.policy) is KINDS[algorithm]
    shake(by_name.policy)
    plan = by_name.policy.plan(SEEN).controls[:, 0].detach()
    np.testing.assert_array_equal(chosen(by_name), plan.numpy())
    assert plan.abs().max() == 2.0 > plan.abs().min()  # the largest torque
    deterministic = by_name.actor(torch.as_tensor(SEEN), deterministic=True)
    torch.testing.assert_close(2.0 * deterministic, plan, rtol=0.0, atol=4e-7)  # float32
    assert TRPO("MPCPolicy", ENV, policy_kwargs=planning(), device="cpu").policy.__class__ is MPCPolicy


@each_algorithm
def test_learning_moves_the_physics_and_the_critics_and_nothing_else(algorithm: type[Any]) -> None:
    one = tiny(algorithm, physics={"mass": 1.5})
    before, critics = one.policy.parameter_values(), dict(copy.deepcopy(one.critic).named_parameters())
    one.learn(STEPS)
    after = one.policy.parameter_values()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"dynamics.mass", "dynamics.length", "dynamics.gravity"}
    assert all(not torch.equal(value, critics[name]) for name, value in one.critic.named_parameters())


def actor_loss(one: Any, seen: Tensor) -> Tensor:
    """As TQC.train and CrossQ.train have it."""
    torch.manual_seed(0)
    actions, log_prob = one.actor.action_log_prob(seen)
    values = one.critic(seen, actions)
    worth = values.mean(dim=(1, 2)) if isinstance(one, MPCTQCPolicy) else torch.cat(values, dim=1).min(dim=1).values
    return (0.2 * log_prob - worth).mean()


@each_algorithm
def test_the_actor_s_loss_has_the_gradient_of_central_differences(algorithm: type[Any]) -> None:
    kwargs = {
        "options": ILQROptions(tolerance=1e-11),
        "learn": ("physics", "goal"),
        "cost_map": CostMap(("goal",), hidden=(4,)),
    }
    one = tiny(algorithm, **kwargs).policy
    shake(one, 0.05)
    one.set_training_mode(False)
    seen = torch.as_tensor(np.abs(observed(8)))  # on one side, so that slopes don't cancel
    actor_loss(one, seen).backward()
    for name in ("mass", "length", "stage_cost.goal", "cost_map.network.2.bias"):
        parameter = next(parameter for own, parameter in one.planning.named_parameters() if name in own)
        step, values = 1e-3, []
        for sign in (1, -2, 1):  # forth, back, and home
            with torch.no_grad():
                parameter.add_(sign * step)
            values.append(actor_loss(one, seen).item())
        # The loss is of size one in float32: its rounding, 1e-7, is divided by the step.
        assert parameter.grad.sum().item() == pytest.approx((values[0] - values[1]) / (2 * step), rel=0.01, abs=1e-4), name
        assert abs(parameter.grad.sum().item()) > 5e-4, name


@each_algorithm
def test_every_argument_and_every_bit_comes_back(algorithm: type[Any], tmp_path: Path) -> None:
    saved = tiny(algorithm, **OWN[algorithm], share_features_extractor=True, squash_margin=0.1)
    saved.learn(STEPS)
    saved.save(tmp_path / "model")
    saved.policy.save(tmp_path / "policy.safetensors")
    saved.actor.save(tmp_path / "actor.pt")
    loaded = algorithm.load(tmp_path / "model", env=batch())
    read = KINDS[algorithm].load(tmp_path / "policy.safetensors", device="cpu")
    for one in (loaded.policy, read, copy.deepcopy(saved.policy)):
        assert described(one) == described(saved.policy)
        assert {name: one.constructor_arguments()[name] for name in OWN[algorithm]} == OWN[algorithm]
        assert_same(tensors(one), tensors(saved.policy))
        np.testing.assert_array_equal(chosen(one), chosen(saved))
    actor = type(saved.actor).load(tmp_path / "actor.pt", device="cpu")
    assert_same(tensors(actor), tensors(saved.actor))
    loaded.learn(STEPS)


def test_crossq_s_own_betas_are_kept_in_a_checkpoint(tmp_path: Path) -> None:
    one = tiny(CrossQ).policy
    one.save(tmp_path / "policy.safetensors")
    read = MPCCrossQPolicy.load(tmp_path / "policy.safetensors", device="cpu")
    for each in (one, read):
        assert [tuple(group["betas"]) for group in each.actor.optimizer.param_groups] == [(0.5, 0.999)] * 2


def test_crossq_renormalises_while_it_trains_and_not_while_it_acts() -> None:
    one = tiny(CrossQ)
    one.learn(STEPS)
    counts = {name: tensor.clone() for name, tensor in tensors(one.policy).items() if name.endswith("steps")}
    assert any("actor.latent_pi" in name for name in counts)
    assert min(counts.values()) > 0
    again = [one.predict(SEEN, deterministic=False)[0] for _ in range(2)]
    assert not np.array_equal(*again)
    assert all(torch.equal(tensors(one.policy)[name], count) for name, count in counts.items())


@each_algorithm
def test_noise_may_depend_on_the_state(algorithm: type[Any]) -> None:
    one = algorithm("MPCPolicy", batch(), policy_kwargs=planning(), learning_starts=4, batch_size=4, use_sde=True, device="cpu")
    one.learn(STEPS)
    one.policy.reset_noise()
    assert one.actor.get_std().shape == (8, 1)


def test_observations_of_several_parts_go_to_tqc_and_are_refused_by_crossq() -> None:
    tiny(TQC, batch(2, state_beside)).learn(STEPS)
    with pytest.raises(
        ValueError, match=r"observation_space: expected a flat Box, since CrossQ joins .*'state'\]\. Use TQC or SAC"
    ):
        tiny(CrossQ, batch(2, state_beside))


@each_algorithm
def test_a_learner_goes_on_as_the_actor(algorithm: type[Any]) -> None:
    learner: Any = learner_data.make("dx")
    one = learner.to_sb3(algorithm, f"dilqr_rl.envs:{learner_data.ENV}", policy_kwargs={"net_arch": [8]}, device="cpu")
    seen = observed(1, spread=0.3)[0]
    np.testing.assert_array_equal(chosen(one, seen), learner.predict(seen, deterministic=True)[0])


def test_algorithms_for_other_kinds_of_policies_say_so() -> None:
    for kind in ("MPCPolicy", MPCPolicy):
        with pytest.raises(ValueError, match="policy: QRDQN learns what each action is worth and has no actor"):
            QRDQN(kind, "CartPole-v1")
    with pytest.raises(
        ValueError, match=r"expected one of the kind RecurrentActorCriticPolicy, as RecurrentPPO trains .*got MPCPolicy"
    ):
        RecurrentPPO(MPCPolicy, ENV)
    with pytest.raises(
        ValueError, match=r'expected one of the kind TQCPolicy, as TQC trains them, got MPCPolicy\. Use TQC\("MPCPolicy"'
    ):
        TQC(MPCPolicy, ENV)


def test_without_sb3_contrib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "sb3_contrib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "dilqr_rl.agents.contrib")
    with pytest.raises(ImportError, match=r'sb3_contrib is needed for this .* Install it: pip install "dilqr_rl\[contrib\]"'):
        importlib.import_module("dilqr_rl.agents.contrib")
