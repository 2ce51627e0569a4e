"""What Stable-Baselines3's own tests of saving, determinism and prediction assert, with our policies in the place of theirs."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RescaleAction
from policy_data import (
    ENV,
    POLICIES,
    STEPS,
    TINY,
    assert_same,
    batch,
    both,
    described,
    model,
    near_upright,
    observed,
    policy,
    shake,
    state_beside,
    tensors,
)
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from dilqr_rl import find_task
from dilqr_rl.agents import MPCPolicy, MPCSACPolicy, MPCTD3Policy, PlanningPolicy

pytestmark = pytest.mark.slow  # once, with the checkout; not again with the wheel

each_algorithm = pytest.mark.parametrize("algorithm", POLICIES)
each_off_policy = pytest.mark.parametrize("algorithm", [SAC, TD3])
SEEN = observed(6, spread=0.3)


def optimisers(one: Any) -> list[torch.optim.Optimizer]:
    owners = (one.policy,) if isinstance(one, PPO | A2C) else (one.actor, one.critic)
    return [owner.optimizer for owner in owners]


def assert_same_optimisers(first: Any, second: Any) -> None:
    for one, other in zip(optimisers(first), optimisers(second), strict=True):
        states = [optimiser.state_dict()["state"] for optimiser in (one, other)]
        assert states[0].keys() == states[1].keys()
        assert states[0]
        for index, moments in states[0].items():
            assert_same(moments, states[1][index])


def chosen(one: Any) -> np.ndarray:
    return one.predict(SEEN, deterministic=True)[0]


# test_deterministic.py


def played(algorithm: type[Any], seed: int, **changes: Any) -> tuple[np.ndarray, np.ndarray, dict[str, torch.Tensor]]:
    """Actions and rewards after learning, and what was learnt."""
    one = model(algorithm, seed=seed, **changes)
    one.learn(STEPS)
    envs, actions, rewards = one.get_env(), [], []
    seen = envs.reset()
    for _ in range(8):
        actions.append(one.predict(seen, deterministic=False)[0])
        seen, reward, _, _ = envs.step(actions[-1])
        rewards.append(reward)
    return np.array(actions), np.array(rewards), tensors(one.policy)


@each_algorithm
@pytest.mark.parametrize("use_sde", [False, True])
def test_equal_seeds_give_equal_results(algorithm: type[Any], use_sde: bool) -> None:
    changes = {"use_sde": True} if use_sde and algorithm is not TD3 else {}
    (actions, rewards, learnt), (again, same, twin) = (played(algorithm, 3, **changes) for _ in range(2))
    np.testing.assert_array_equal(again, actions)
    np.testing.assert_array_equal(same, rewards)
    assert_same(twin, learnt)
    assert not np.array_equal(played(algorithm, 4, **changes)[1], rewards)


# test_save_load.py


@each_algorithm
def test_a_model_is_saved_and_loaded(algorithm: type[Any], tmp_path: Path) -> None:
    one = model(algorithm, policy_kwargs={"physics": {"mass": 1.5}})
    one.learn(STEPS)
    expected = chosen(one)
    shake(one.policy, 0.1)
    shaken = tensors(one.policy)
    assert not np.array_equal(chosen(one), expected)
    one.save(tmp_path / "model.zip")
    loaded = algorithm.load(str(tmp_path / "model.zip"), env=batch(), device="cpu")
    assert_same(tensors(loaded.policy), shaken)
    assert_same_optimisers(loaded, one)
    np.testing.assert_array_equal(chosen(loaded), chosen(one))
    assert loaded.policy.device.type == "cpu"
    assert loaded.num_timesteps == one.num_timesteps
    loaded.learn(STEPS)


@each_algorithm
def test_a_loaded_model_learns_on_as_the_saved_one(algorithm: type[Any], tmp_path: Path) -> None:
    one = model(algorithm)
    one.learn(STEPS)
    one.save(tmp_path / "model")
    learnt = []
    for each in (one, algorithm.load(tmp_path / "model", env=batch())):
        if algorithm in (SAC, TD3):
            each.replay_buffer.reset()
        each.set_random_seed(5)
        each.learn(STEPS)
        learnt.append(tensors(each.policy))
    assert_same(*learnt)


@each_algorithm
def test_a_model_goes_through_a_file_object(algorithm: type[Any]) -> None:
    one, file = model(algorithm), io.BytesIO()
    one.save(file)
    file.seek(0)
    np.testing.assert_array_equal(chosen(algorithm.load(file)), chosen(one))


@each_algorithm
def test_parameters_are_got_and_set(algorithm: type[Any], tmp_path: Path) -> None:
    one = model(algorithm)
    one.learn(STEPS)
    shake(one.policy)
    given = copy.deepcopy(one.get_parameters())
    assert {"policy"} < given.keys()
    other = model(algorithm, seed=1)
    other.set_parameters(given)
    assert_same(tensors(other.policy), tensors(one.policy))
    assert_same_optimisers(other, one)
    one.save(tmp_path / "model")
    third = model(algorithm, seed=2)
    third.set_parameters(str(tmp_path / "model"), exact_match=True, device="cpu")
    np.testing.assert_array_equal(chosen(third), chosen(one))


@each_algorithm
def test_parameters_of_other_names_are_refused(algorithm: type[Any]) -> None:
    one = model(algorithm)
    before, given = tensors(one.policy), one.get_parameters()
    mass = next(name for name in given["policy"] if "mass" in name)
    without = OrderedDict((name, tensor) for name, tensor in given["policy"].items() if name != mass)
    with pytest.raises(ValueError, match="Key nowhere is an invalid object name"):
        one.set_parameters({**given, "nowhere": {}})
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        one.set_parameters({"policy": given["policy"]})
    for wrong in (without, {**given["policy"], "colour": torch.zeros(1)}):
        with pytest.raises(RuntimeError, match=r"(Missing|Unexpected) key\(s\) in state_dict: .*(mass|colour)"):
            one.set_parameters({**given, "policy": wrong})
    assert_same(tensors(one.policy), before)
    one.set_parameters({"policy": {mass: given["policy"][mass] + 1.0}}, exact_match=False)
    changed = {name for name, tensor in tensors(one.policy).items() if not torch.equal(tensor, before[name])}
    assert changed == {mass}


@each_algorithm
def test_parts_are_left_out_and_taken_in(algorithm: type[Any], tmp_path: Path) -> None:
    one = model(algorithm)
    one.save(tmp_path / "without", exclude=["gamma", "seed"])
    loaded = algorithm.load(tmp_path / "without", gamma=0.5)
    assert loaded.gamma == 0.5
    assert loaded.seed is None
    one.save(tmp_path / "with", include=["ep_info_buffer"])
    assert algorithm.load(tmp_path / "with").ep_info_buffer == one.ep_info_buffer


@each_algorithm
def test_custom_objects_take_the_place_of_saved_ones(algorithm: type[Any], tmp_path: Path) -> None:
    model(algorithm).save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", custom_objects={"learning_rate": 2e-5, "dummy": 1.0})
    assert loaded.learning_rate == 2e-5
    assert not hasattr(loaded, "dummy")


@each_algorithm
def test_policy_kwargs_must_be_the_saved_ones(algorithm: type[Any], tmp_path: Path) -> None:
    one = model(algorithm)
    one.save(tmp_path / "model")
    with pytest.raises(ValueError, match="The specified policy kwargs do not equal the stored policy kwargs"):
        algorithm.load(tmp_path / "model", policy_kwargs={"net_arch": [64]})
    again = algorithm.load(tmp_path / "model", policy_kwargs=dict(one.policy_kwargs))
    assert described(again.policy) == described(one.policy)


@each_algorithm
def test_environments_are_exchanged(algorithm: type[Any], tmp_path: Path) -> None:
    one = model(algorithm)
    one.learn(STEPS)
    other = batch()
    one.set_env(other)
    assert one.get_env() is other
    one.learn(STEPS, reset_num_timesteps=False)
    assert one.num_timesteps == 2 * STEPS
    one.learn(STEPS, reset_num_timesteps=True)
    assert one.num_timesteps == STEPS
    with pytest.raises(AssertionError, match="number of environments"):
        one.set_env(batch(3))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        one.set_env(batch(2, state_beside))
    one.save(tmp_path / "model")
    # Stable-Baselines3 saves the noise with its number of environments.
    loaded = algorithm.load(tmp_path / "model", env=batch(3), action_noise=TINY[algorithm].get("action_noise"))
    assert loaded.n_envs == 3
    loaded.learn(STEPS)


@each_off_policy
def test_a_replay_buffer_is_saved_and_loaded(algorithm: type[Any], tmp_path: Path) -> None:
    one = model(algorithm)
    one.learn(STEPS)
    one.save_replay_buffer(tmp_path / "buffer")
    one.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=batch())
    assert loaded.replay_buffer.size() == 0
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.replay_buffer.size() == one.replay_buffer.size() > 0
    for name in ("observations", "actions", "rewards", "dones"):
        np.testing.assert_array_equal(getattr(loaded.replay_buffer, name), getattr(one.replay_buffer, name))
    assert np.abs(one.replay_buffer.actions).max() <= 1.0
    loaded.learn(STEPS, reset_num_timesteps=False)


@each_algorithm
@pytest.mark.parametrize("use_sde", [False, True])
def test_a_policy_is_saved_and_loaded_by_itself(algorithm: type[Any], use_sde: bool, tmp_path: Path) -> None:
    one = model(algorithm, **({"use_sde": True} if use_sde and algorithm is not TD3 else {}))
    one.learn(STEPS)
    shake(one.policy)
    one.policy.save(tmp_path / "policy")
    loaded = type(one.policy).load(tmp_path / "policy", device="cpu")
    assert_same(tensors(loaded), tensors(one.policy))
    np.testing.assert_array_equal(chosen(loaded), chosen(one))


@each_off_policy
def test_an_actor_is_saved_and_loaded_by_itself(algorithm: type[Any], tmp_path: Path) -> None:
    one = model(algorithm)
    shake(one.policy)
    one.actor.save(tmp_path / "actor.pt")
    loaded = type(one.actor).load(tmp_path / "actor.pt", device="cpu")
    assert_same(tensors(loaded), tensors(one.actor))
    np.testing.assert_allclose(chosen(loaded), chosen(one), rtol=0.0, atol=1e-6)  # to [-1, 1] and back, in float32
    seen = torch.as_tensor(SEEN)
    for each in (loaded, one.actor):
        torch.manual_seed(0)
        each.sampled = each(seen)
    assert torch.equal(loaded.sampled, one.actor.sampled)


@each_algorithm
def test_parameters_go_through_a_vector(algorithm: type[Any]) -> None:
    one = model(algorithm)
    shake(one.policy)
    vector, expected = one.policy.parameters_to_vector(), chosen(one)
    assert vector.shape == (sum(parameter.numel() for parameter in one.policy.parameters()),)
    shake(one.policy, 0.1)
    one.policy.load_from_vector(vector)
    np.testing.assert_allclose(chosen(one), expected, rtol=0.0, atol=1e-5)  # Stable-Baselines3 makes it float32


# test_predict.py


class SubclassedBox(gym.spaces.Box):
    """A Box of a class of its own, as some environments have it."""


class SubclassedSpaces(gym.Wrapper[Any, Any, Any, Any]):
    def __init__(self) -> None:
        super().__init__(near_upright())
        for name in ("observation_space", "action_space"):
            space = getattr(self.env, name)
            setattr(self, name, SubclassedBox(space.low, space.high, dtype=space.dtype))


@each_algorithm
def test_a_single_environment_is_wrapped(algorithm: type[Any]) -> None:
    envs = model(algorithm, near_upright()).get_env()
    assert isinstance(envs, VecEnv)
    assert envs.num_envs == 1
    assert isinstance(envs, DummyVecEnv)


@each_algorithm
@pytest.mark.parametrize("make", [near_upright, state_beside, SubclassedSpaces])
def test_actions_have_the_shape_of_what_is_seen(algorithm: type[Any], make: Callable[[], Any]) -> None:
    env = make()
    one = model(algorithm, batch(2, make))
    seen, _ = env.reset(seed=0)
    for deterministic in (True, False):
        action, _ = one.predict(seen, deterministic=deterministic)
        assert isinstance(action, np.ndarray)
        assert action.shape == env.action_space.shape
        assert action.dtype == env.action_space.dtype
        assert env.action_space.contains(action)
        env.step(action)
    several, _ = one.predict(one.get_env().reset(), deterministic=True)
    assert several.shape == (2, 1)
    alone = {name: part[None] for name, part in seen.items()} if isinstance(seen, dict) else seen[None]
    np.testing.assert_array_equal(one.predict(alone, deterministic=True)[0][0], one.predict(seen, deterministic=True)[0])
    one.learn(STEPS)


@each_algorithm
def test_deterministic_actions_repeat_themselves_and_others_do_not(algorithm: type[Any]) -> None:
    one = model(algorithm)
    np.testing.assert_array_equal(chosen(one), chosen(one))
    drawn = [one.predict(SEEN, deterministic=False)[0] for _ in range(2)]
    assert np.array_equal(*drawn) == (algorithm is TD3)  # whose noise is the algorithm's
    set_random_seed(3)
    first, _ = one.predict(SEEN, deterministic=False)
    set_random_seed(3)
    np.testing.assert_array_equal(one.predict(SEEN, deterministic=False)[0], first)


@each_algorithm
def test_what_reset_returns_is_refused_as_a_whole(algorithm: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"observation: expected one of Box.* got a tuple\. .*only the first goes here"):
        model(algorithm).predict(near_upright().reset())


@each_algorithm
def test_an_observation_of_the_other_kind_is_refused(algorithm: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"observation: expected one of Box.* got a dict"):
        model(algorithm).predict(both(SEEN))
    with pytest.raises(ValueError, match=r"observation: expected one of Dict.* got a ndarray"):
        model(algorithm, batch(2, state_beside)).predict(SEEN)


@each_algorithm
def test_actions_in_other_units_are_the_same_controls(algorithm: type[Any]) -> None:
    """With a task that says so, actions of an environment rescaled to [-1, 1] are half of the torques."""
    task = replace(find_task(gym.make(ENV)), control_per_action=2.0)
    envs = batch(2, lambda: RescaleAction(near_upright(), np.float32(-1.0), np.float32(1.0)))
    one = model(algorithm, envs, policy_kwargs={"task": task})
    np.testing.assert_allclose(2.0 * chosen(one), chosen(model(algorithm)), rtol=0.0, atol=1e-6)  # float32
    assert np.abs(one.predict(SEEN, deterministic=False)[0]).max() <= 1.0
    one.learn(STEPS)


@pytest.mark.parametrize("kind", [MPCPolicy, MPCSACPolicy, MPCTD3Policy])
def test_observations_of_another_precision_are_seen_alike(kind: type[PlanningPolicy]) -> None:
    one = policy(kind)
    np.testing.assert_array_equal(one.predict(SEEN.astype(np.float64))[0], one.predict(SEEN)[0])
