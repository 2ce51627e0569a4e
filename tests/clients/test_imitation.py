"""`imitation` 1.0.1 trains our policy, rolls our expert out, and shares trajectories with us; `make clients` installs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from dilqr_rl import ILQROptions
from dilqr_rl.agents import Demonstrations, Episode, MPCPolicy, roll_out
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.exchange import from_imitation, to_imitation

pytest.importorskip("imitation", reason="`make clients` installs it")

from imitation.algorithms import bc
from imitation.data import rollout, types
from imitation.data.wrappers import RolloutInfoWrapper
from imitation.util import logger

ENV, ENV_KWARGS = "dilqr_rl/Pendulum-v0", {"max_episode_steps": 6}

# imitation logs its loss so.
pytestmark = pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")


def make(**settings: Any) -> MPCPolicy:
    with make_env(ENV, ENV_KWARGS) as env:
        return MPCPolicy.for_env(
            env,
            **{
                "horizon": 6,
                "learn": ("dynamics.mass",),
                "options": ILQROptions(tolerance=1e-9),
                "warm_start": False,
                **settings,
            },
        )


def shown(count: int, seed: int) -> Demonstrations:
    """Episodes of states near upright, where torques stay off their bounds, each with the action for a mass of 1 kg."""
    rng, expert, episodes = np.random.default_rng(seed), make(), []
    for _ in range(count):
        angle, rate = rng.uniform(-0.08, 0.08, (2, 5))
        observations = np.stack((np.cos(angle), np.sin(angle), rate), axis=-1).astype(np.float32)
        episodes.append(
            Episode(observations, expert.predict(observations[:-1])[0], np.zeros(4), terminated=False, truncated=True)
        )
    return Demonstrations(ENV, {}, tuple(episodes))


def mass(policy: MPCPolicy) -> float:
    return policy.parameter_values()["dynamics.mass"].item()


def action_error(policy: MPCPolicy, data: Demonstrations) -> float:
    """Mean squared error of the policy's actions in all demonstrated states."""
    errors = [policy.predict(episode.observations[:-1])[0] - episode.actions for episode in data.episodes]
    return float(np.square(np.concatenate(errors)).mean())


def assert_same(a: Demonstrations, b: Demonstrations) -> None:
    for one, other in zip(a.episodes, b.episodes, strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
        assert (one.terminated, one.truncated) == (other.terminated, other.truncated)


def test_its_behaviour_cloning_finds_our_mass(tmp_path: Path) -> None:
    train, held_out = shown(4, seed=0), shown(2, seed=1)
    policy = make(physics={"mass": 1.3})
    others = {name: value for name, value in policy.parameter_values().items() if name != "dynamics.mass"}
    before = action_error(policy, held_out)
    trainer = bc.BC(
        observation_space=policy.observation_space,
        action_space=policy.action_space,
        rng=np.random.default_rng(0),
        policy=policy,
        demonstrations=to_imitation(train),
        batch_size=8,
        optimizer_kwargs={"lr": 0.05},
        device="cpu",
        custom_logger=logger.configure(tmp_path, []),
    )
    trainer.train(n_epochs=30, progress_bar=False)
    assert trainer.policy is policy
    assert mass(policy) == pytest.approx(1.0, abs=0.05)
    assert action_error(policy, held_out) < before / 100
    for name, value in others.items():
        assert policy.parameter_values()[name].tolist() == value.tolist(), name


@pytest.fixture(scope="module")
def expert() -> MPCPolicy:
    return make(warm_start=True)


def rolled_out(expert: MPCPolicy, exclude_infos: bool) -> list[Any]:
    """imitation's roll-out from the starts of seeds 7, 8 and 9, in the order of these."""
    batch = DummyVecEnv([lambda: RolloutInfoWrapper(make_env(ENV, ENV_KWARGS))] * 3)
    batch.seed(7)
    found = rollout.rollout(
        expert,
        batch,
        rollout.make_min_episodes(3),
        rng=np.random.default_rng(0),
        deterministic_policy=True,
        exclude_infos=exclude_infos,
    )
    batch.close()
    with make_env(ENV, ENV_KWARGS) as env:
        starts = [env.reset(seed=seed)[0].tolist() for seed in (7, 8, 9)]
    return sorted(found, key=lambda one: starts.index(one.obs[0].tolist()))


@pytest.mark.parametrize("exclude_infos", [True, False])
def test_its_roll_out_of_our_expert_is_ours(expert: MPCPolicy, exclude_infos: bool) -> None:
    trajectories = rolled_out(expert, exclude_infos)
    assert [type(one) for one in trajectories] == [types.TrajectoryWithRew] * 3
    found = from_imitation(trajectories, ENV, ENV_KWARGS)
    expected = roll_out(expert, ENV, ENV_KWARGS, episodes=3, seed=7).demonstrations
    if exclude_infos:  # then nothing tells a time limit
        assert all(episode.terminated and not episode.truncated for episode in found.episodes)
        ended = [Episode(one.observations, one.actions, one.rewards, True, False) for one in expected.episodes]
        expected = Demonstrations(ENV, ENV_KWARGS, tuple(ended))
    assert_same(found, expected)


def test_a_round_trip_keeps_every_bit() -> None:
    rng = np.random.default_rng(0)
    episodes = tuple(
        Episode(rng.normal(size=(steps + 1, 3)), rng.normal(size=(steps, 1)), rng.normal(size=steps), *ends)
        for steps, ends in [(3, (True, False)), (1, (False, True)), (4, (False, True))]
    )
    given = Demonstrations(ENV, {}, episodes)
    there = to_imitation(given)
    assert [one.terminal for one in there] == [True] * 3
    assert_same(from_imitation(there, ENV), given)
    flat = rollout.flatten_trajectories(there)
    np.testing.assert_array_equal(flat.obs, np.concatenate([one.observations[:-1] for one in episodes]))
    np.testing.assert_array_equal(flat.acts, np.concatenate([one.actions for one in episodes]))


def test_an_episode_that_nothing_ended_is_a_fragment() -> None:
    one = Episode(np.zeros((2, 3)), np.zeros((1, 1)), np.zeros(1), terminated=False, truncated=False)
    (found,) = to_imitation(Demonstrations(ENV, {}, (one,)))
    assert not found.terminal


def test_its_plain_trajectories_come_in_without_rewards() -> None:
    one = types.Trajectory(obs=np.ones((3, 3)), acts=np.ones((2, 1)), infos=None, terminal=True)
    assert from_imitation([one], ENV).returns.tolist() == [0.0]


def test_its_dictionaries_are_named_observations() -> None:
    seen = {"angle": np.ones((3, 1)), "robot/arm": np.zeros((3, 2))}
    one = types.Trajectory(obs=types.DictObs(seen), acts=np.ones((2, 1)), infos=None, terminal=True)
    found = from_imitation([one], ENV)
    (there,) = to_imitation(found)
    assert there.obs == types.DictObs(seen)
    (back,) = from_imitation([there], ENV).episodes
    assert {name: part.tolist() for name, part in back.observations.items()} == {n: part.tolist() for n, part in seen.items()}
