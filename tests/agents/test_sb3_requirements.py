"""What CONVENTIONS.md asks of a policy on stock Stable-Baselines3, P1 to P7: each has a test of its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeObservation
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_data import (
    ENV,
    POLICIES,
    STEPS,
    assert_same,
    batch,
    both,
    described,
    model,
    near_upright,
    observed,
    planning,
    policy,
    shake,
    state_beside,
    tensors,
)
from requirements_data import OWN, OWN_BY_KIND, SMALL_MAP, each_algorithm, each_kind, means, run
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.vec_env import VecNormalize

from dilqr_rl import find_task
from dilqr_rl.agents import CostMap, MPCPolicy, MPCSACPolicy, MPCTD3Policy, PlanningPolicy

pytestmark = pytest.mark.slow  # once, with the checkout; not again with the wheel


# P1: stock algorithms, by class and by name.


@pytest.mark.parametrize(("algorithm", "kind"), [*POLICIES.items(), (DDPG, MPCTD3Policy)])
def test_p1_by_class_and_by_name(algorithm: type[Any], kind: type[PlanningPolicy]) -> None:
    by_class = algorithm(kind, ENV, policy_kwargs=planning(), device="cpu")
    by_name = algorithm("MPCPolicy", ENV, policy_kwargs=planning(), device="cpu")
    assert type(by_class.policy) is type(by_name.policy) is kind
    seen = observed(2)
    np.testing.assert_array_equal(*(one.predict(seen, deterministic=True)[0] for one in (by_class, by_name)))


@pytest.mark.slow
def test_p1_importing_the_agents_is_enough_and_patches_nothing(tmp_path: Path) -> None:
    program = f"""
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
classes = {{base for one in (A2C, DDPG, PPO, SAC, TD3) for base in one.__mro__}}
def picture():
    return {{(one, name): id(value) for one in classes for name, value in vars(one).items()}}
before = picture()
import dilqr_rl.agents, sys
assert picture() == before
assert "sb3_contrib" not in sys.modules
for one in (PPO, A2C, SAC, TD3, DDPG):
    print(type(one("MPCPolicy", "{ENV}", policy_kwargs={{"task": "{ENV}"}}, device="cpu").policy).__name__)
"""
    assert run(program, tmp_path).split() == ["MPCPolicy", "MPCPolicy", "MPCSACPolicy", "MPCTD3Policy", "MPCTD3Policy"]


# P2: nothing is hidden.

VARIANTS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "sde": {"use_sde": True},
    "cost map": {"policy_kwargs": {"cost_map": SMALL_MAP, "learn": ("physics", "weights")}},
    "cost feature": {"policy_kwargs": {"plan_cost_feature": True}},
    "sde, cost map and feature": {"use_sde": True, "policy_kwargs": {"cost_map": SMALL_MAP, "plan_cost_feature": True}},
    "warm start": {"policy_kwargs": {"warm_start": True}},
    "extractors apart": {"policy_kwargs": {"share_features_extractor": False, "plan_cost_feature": True}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_p2_ppo_at_rate_zero_logs_no_divergence(variant: str) -> None:
    ppo = model(PPO, batch(3), learning_rate=0.0, **VARIANTS[variant])
    shake(ppo.policy)
    before = tensors(ppo.policy)
    ppo.learn(STEPS)
    assert ppo.logger.name_to_value["train/approx_kl"] == 0.0
    assert ppo.logger.name_to_value["train/clip_fraction"] == 0.0
    assert_same(tensors(ppo.policy), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_p2_a2c_finds_the_log_probabilities_that_its_rollout_stored(variant: str) -> None:
    a2c = model(A2C, batch(3), learning_rate=0.0, **VARIANTS[variant])
    shake(a2c.policy)
    a2c.learn(STEPS)
    (stored,) = a2c.rollout_buffer.get(batch_size=None)
    _, log_prob, _ = a2c.policy.evaluate_actions(stored.observations, stored.actions)
    # gSDE's deviations are a matrix product, which some processors round otherwise in a batch of 12 than of 3 (MlpPolicy's, too).
    rounding = 4 * torch.finfo(log_prob.dtype).eps if a2c.use_sde else 0.0
    torch.testing.assert_close(log_prob, stored.old_log_prob, rtol=rounding, atol=0.0)


# P3: a batch is its members.


@given(order=st.permutations(range(5)))
@settings(max_examples=5)
def test_p3_permuting_a_batch_permutes_what_is_evaluated(order: list[int]) -> None:
    one, seen = EVALUATED, torch.as_tensor(observed(5, spread=0.3))
    with torch.no_grad():
        actions, values, log_prob = one(seen)
        evaluated, again, entropy = one.evaluate_actions(seen, actions)
        permuted = one.evaluate_actions(seen[order], actions[order])
    assert torch.equal(log_prob, again)
    assert torch.equal(values, evaluated)
    for part, whole in zip(permuted, (values, log_prob, entropy), strict=True):
        torch.testing.assert_close(part, whole[order], rtol=1e-6, atol=1e-6)  # float32


@given(at=st.integers(1, 4))
@settings(max_examples=4)
def test_p3_splitting_a_batch_splits_what_is_evaluated(at: int) -> None:
    one, seen = EVALUATED, torch.as_tensor(observed(5, spread=0.3))
    with torch.no_grad():
        actions, values, log_prob = one(seen)
        parts = [one.evaluate_actions(seen[half], actions[half])[:2] for half in (slice(0, at), slice(at, 5))]
    for index, whole in enumerate((values, log_prob)):
        torch.testing.assert_close(torch.cat([part[index] for part in parts]), whole, rtol=1e-6, atol=1e-6)  # float32


@each_kind
def test_p3_a_batch_of_means_is_a_loop_over_its_members(kind: type[PlanningPolicy]) -> None:
    one, seen = policy(kind, cost_map=SMALL_MAP), observed(5, spread=0.3)
    shake(one)
    whole = means(one, seen)
    singly = torch.cat([means(one, seen[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(singly, whole, rtol=1e-6, atol=1e-6)  # float32
    assert torch.equal(means(one, seen[::-1].copy()), whole.flip(0))


EVALUATED = policy(cost_map=SMALL_MAP, plan_cost_feature=True)
shake(EVALUATED)


# P4: within the bounds, without clipping.


@given(angle=st.floats(-np.pi, np.pi), rate=st.floats(-8.0, 8.0))
@settings(max_examples=30)
def test_p4_means_lie_within_the_bounds(angle: float, rate: float) -> None:
    seen = np.array([[np.cos(angle), np.sin(angle), rate]], dtype=np.float32)
    for one in BOUNDED:
        low, high = (-2.0, 2.0) if isinstance(one, MPCPolicy) else (-1.0, 1.0)
        assert low <= means(one, seen).item() <= high


@each_kind
@pytest.mark.parametrize("bounds", [(-0.3, 1.1, 0.7), (-1.7, -0.1, 1.3)])
def test_p4_bounds_may_be_any_and_in_other_units(kind: type[PlanningPolicy], bounds: tuple[float, float, float]) -> None:
    low, high, unit = bounds
    task = find_task(gym.make(ENV))
    task = task.__class__(**{**vars(task), "u_min": low, "u_max": high, "control_per_action": unit})
    actions = gym.spaces.Box(np.float32(low / unit), np.float32(high / unit), (1,))
    one: Any = kind(gym.spaces.Box(-9.0, 9.0, (3,)), actions, lambda _: 0.0, **planning(task=task))
    found = means(one, np.concatenate((observed(20), observed(20, spread=3.0)))).numpy()
    low, high = (actions.low, actions.high) if kind is MPCPolicy else (-1.0, 1.0)
    assert len(np.unique(found)) > 2
    # A bound divided by a unit is rounded, once to the space's float32 and once on the way.
    assert (found >= low - 2e-7).all()
    assert (found <= high + 2e-7).all()


BOUNDED = [policy(kind) for kind in (MPCPolicy, MPCSACPolicy, MPCTD3Policy)]


# P5: states as they are.


def normalised(make: Any = near_upright, **arguments: Any) -> VecNormalize:
    return VecNormalize(batch(2, make), **arguments)


@each_algorithm
@pytest.mark.parametrize(("make", "keys"), [(near_upright, None), (state_beside, None), (state_beside, ["state"])])
def test_p5_normalised_states_are_refused_at_construction(algorithm: type[Any], make: Any, keys: Any) -> None:
    with pytest.raises(ValueError, match=r"env: .*normalised by a VecNormalize\. .*norm_obs=False .*norm_obs_keys="):
        model(algorithm, normalised(make, norm_obs_keys=keys))


@each_algorithm
def test_p5_normalised_states_are_refused_on_loading(algorithm: type[Any], tmp_path: Path) -> None:
    model(algorithm).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"env: expected states as they are, got them normalised"):
        algorithm.load(tmp_path / "model", env=normalised())
    algorithm.load(tmp_path / "model", env=normalised(norm_obs=False)).learn(STEPS)


@each_algorithm
def test_p5_normalised_states_are_refused_where_they_come_later(algorithm: type[Any]) -> None:
    one = model(algorithm)
    one.set_env(normalised())
    with pytest.raises(ValueError, match=r"env: expected states as they are, got them normalised"):
        one.learn(STEPS)


@each_algorithm
def test_p5_the_wrapper_of_gymnasium_is_refused(algorithm: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"env: expected raw observations, got a NormalizeObservation wrapper"):
        model(algorithm, batch(2, lambda: NormalizeObservation(near_upright())))


@each_algorithm
def test_p5_normalised_rewards_are_fine(algorithm: type[Any]) -> None:
    model(algorithm, normalised(norm_obs=False)).learn(STEPS)


@each_algorithm
def test_p5_a_plan_starts_from_the_raw_state_beside_normalised_observations(algorithm: type[Any]) -> None:
    envs = normalised(state_beside, norm_obs_keys=["obs"])
    one = model(algorithm, envs)
    one.learn(STEPS)
    seen = both(observed(5, spread=0.3))
    told = envs.normalize_obs(seen)
    assert not np.allclose(told["obs"], seen["obs"])
    learnt = {name: one.policy.parameter_values()[f"dynamics.{name}"].item() for name in ("mass", "length", "gravity")}
    expected, _ = policy(physics=learnt).predict(seen["state"])
    np.testing.assert_allclose(one.predict(told, deterministic=True)[0], expected, rtol=0.0, atol=1e-6)  # float32


# P6: what is saved comes back, in any process.


def changed(kind: type[PlanningPolicy]) -> Any:
    one = policy(kind, **{**OWN, **OWN_BY_KIND[kind]})
    shake(one)
    return one


@each_algorithm
def test_p6_every_argument_and_every_bit_comes_back(algorithm: type[Any], tmp_path: Path) -> None:
    kwargs = {**OWN, **OWN_BY_KIND[POLICIES[algorithm]]}
    # A2C's own RMSprop takes the place of whatever optimizer_kwargs say.
    saved = model(algorithm, policy_kwargs=kwargs, **({"use_rms_prop": False} if algorithm is A2C else {}))
    saved.learn(STEPS)
    saved.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    arguments = loaded.policy.constructor_arguments()
    assert {name: arguments[name] for name in kwargs} == kwargs
    assert described(loaded.policy) == described(saved.policy)
    assert_same(tensors(loaded.policy), tensors(saved.policy))


@pytest.mark.slow
def test_p6_a_fresh_process_loads_the_same(tmp_path: Path) -> None:
    saved, seen = {}, observed(4, spread=0.3)
    np.save(tmp_path / "seen.npy", seen)
    for algorithm in (PPO, SAC, TD3):
        one = saved[algorithm.__name__] = model(algorithm, policy_kwargs={**OWN, **OWN_BY_KIND[POLICIES[algorithm]]})
        shake(one.policy)
        one.save(tmp_path / algorithm.__name__)
    program = """
import json, numpy as np, stable_baselines3 as sb3
from policy_data import described
import dilqr_rl.agents
arguments = {}
for name in ("PPO", "SAC", "TD3"):
    model = getattr(sb3, name).load(name)
    np.save(name + "_actions.npy", model.predict(np.load("seen.npy"), deterministic=True)[0])
    arguments[name] = described(model.policy)
print(arguments)
"""
    assert run(program, tmp_path) == f"{ {name: described(one.policy) for name, one in saved.items()} }\n"
    for name, one in saved.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}_actions.npy"), one.predict(seen, deterministic=True)[0])


@each_kind
def test_p6_safetensors_keep_every_argument_and_every_bit(kind: type[PlanningPolicy], tmp_path: Path) -> None:
    given = {**OWN, **OWN_BY_KIND[kind]}
    del given["activation_fn"]  # code
    saved = policy(kind, **given)
    shake(saved)
    saved.save(tmp_path / "policy.safetensors")
    loaded: Any = kind.load(tmp_path / "policy.safetensors", device="cpu")
    arguments = loaded.constructor_arguments()
    assert {name: arguments[name] for name in given} == given
    assert described(loaded) == described(saved)
    assert_same(tensors(loaded), tensors(saved))
    np.testing.assert_array_equal(*(one.predict(observed(3, spread=0.3))[0] for one in (loaded, saved)))


# P7: the traps.


@each_algorithm
@pytest.mark.parametrize("learn", [("physics", "weights", "goal"), ("terminal",)])
def test_p7_the_optimiser_owns_every_parameter_once(algorithm: type[Any], learn: tuple[str, ...]) -> None:
    one = model(algorithm, policy_kwargs={"learn": learn, "cost_map": CostMap(("goal",), hidden=(4,)), "terminal_value": (5,)})
    owner = one.policy if algorithm in (PPO, A2C) else one.actor
    owned = [id(parameter) for group in owner.optimizer.param_groups for parameter in group["params"]]
    assert sorted(owned) == sorted(id(parameter) for parameter in owner.parameters())
    assert {id(parameter) for parameter in one.policy.planning.parameters()} <= set(owned)
    if algorithm in (SAC, TD3):
        critics = {id(parameter) for group in one.critic.optimizer.param_groups for parameter in group["params"]}
        assert not critics & set(owned)


@pytest.mark.parametrize("ortho_init", [True, False])
def test_p7_networks_in_the_model_keep_the_weights_they_were_drawn_with(ortho_init: bool) -> None:
    one = policy(cost_map=SMALL_MAP, terminal_value=(5,), learn=("terminal",), ortho_init=ortho_init)
    planned = one.planning
    for network in (planned.cost_map.network, planned.planner.problem.terminal_cost.network):
        first, last = network[0], network[-1]
        assert not last.weight.any()
        assert not last.bias.any()
        assert first.bias.all()  # orthogonal layers have biases of zero
        assert first.weight.abs().max() <= 1 / np.sqrt(first.in_features)


@each_kind
@pytest.mark.parametrize("gradient", ["implicit", "diffmpc", "unroll"])
def test_p7_it_plans_without_gradients(kind: type[PlanningPolicy], gradient: Any) -> None:
    one, seen = policy(kind, gradient=gradient, cost_map=SMALL_MAP), torch.as_tensor(observed(3))
    with torch.no_grad():
        without = one.planning(seen, seen)
    assert not without.requires_grad
    torch.testing.assert_close(without, one.planning(seen, seen).detach(), rtol=0.0, atol=1e-5)  # the solver's tolerance


@each_algorithm
def test_p7_what_is_learnt_moves_and_nothing_else(algorithm: type[Any]) -> None:
    one = model(algorithm, policy_kwargs={"learn": ("physics", "goal"), "physics": {"mass": 1.5}}, learning_rate=0.01)
    before = one.policy.parameter_values()
    one.learn(STEPS)
    moved = {name for name, value in one.policy.parameter_values().items() if not torch.equal(value, before[name])}
    assert moved == {"dynamics.mass", "dynamics.length", "dynamics.gravity", "stage_cost.goal"}
