"""Behaviour cloning, on one parameter and a handful of states, where the answer is known."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from dilqr_rl import ILQROptions
from dilqr_rl.agents import (
    CloningOptions,
    CloningResult,
    Demonstrations,
    DemonstrationsError,
    Episode,
    MPCPolicy,
    clone,
    imitation_loss,
    network_policy,
)
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.scan import scan_physics

ENV = "dilqr_rl/Pendulum-v0"
EXACT = ILQROptions(tolerance=1e-9)
NO_SCAN: dict[str, Any] = {"scan_rounds": 0, "batch_size": 8, "validate_every": 10}


def make(**settings: Any) -> MPCPolicy:
    env = make_env(ENV)
    policy = MPCPolicy.for_env(
        env, **{"horizon": 6, "learn": ("dynamics.mass",), "options": EXACT, "warm_start": False, **settings}
    )
    env.close()
    return policy


def wrong(mass: float = 1.3) -> MPCPolicy:
    return make(physics={"mass": mass})


def shown(expert: ActorCriticPolicy, count: int, seed: int, env_id: str = ENV) -> Demonstrations:
    """Episodes of states near upright, where torques stay off their bounds, each with the expert's action."""
    rng = np.random.default_rng(seed)
    episodes = []
    for _ in range(count):
        angle, rate = rng.uniform(-0.08, 0.08, (2, 5))
        observations = np.stack((np.cos(angle), np.sin(angle), rate), axis=-1).astype(np.float32)
        actions, _ = expert.predict(observations[:-1])
        episodes.append(Episode(observations, actions, np.zeros(4), terminated=False, truncated=True))
    return Demonstrations(env_id, {}, tuple(episodes))


@pytest.fixture(scope="module")
def train() -> Demonstrations:
    return shown(make(), 4, seed=0)


@pytest.fixture(scope="module")
def held_out() -> Demonstrations:
    return shown(make(), 2, seed=1)


def mass(policy: MPCPolicy) -> float:
    return policy.parameter_values()["dynamics.mass"].item()


def tensors(policy: ActorCriticPolicy) -> dict[str, torch.Tensor]:
    return copy.deepcopy(policy.state_dict())


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def flat(demonstrations: Demonstrations) -> tuple[torch.Tensor, torch.Tensor]:
    """All observations and the actions taken there."""
    observations = np.concatenate([episode.observations[:-1] for episode in demonstrations.episodes])
    actions = np.concatenate([episode.actions for episode in demonstrations.episodes])
    return torch.as_tensor(observations), torch.as_tensor(actions)


def test_the_demonstrator_has_no_loss_and_others_their_mean_square(train: Demonstrations) -> None:
    assert imitation_loss(make(), train) < 1e-13  # float32 actions
    observations, actions = flat(train)
    assert actions.abs().max() < 1.0  # none at its bound, where it would tell nothing
    policy = wrong()
    expected = np.square(policy.predict(observations.numpy())[0].astype(float) - actions.numpy()).mean()
    assert imitation_loss(policy, train) == pytest.approx(expected, rel=1e-5)


def test_cloning_recovers_the_mass_from_actions_alone(train: Demonstrations, held_out: Demonstrations) -> None:
    policy = wrong()
    before = imitation_loss(policy, held_out)
    result = clone(policy, train, held_out, CloningOptions(steps=60, **NO_SCAN))
    after = imitation_loss(policy, held_out)
    assert after < before / 1e3
    assert mass(policy) == pytest.approx(1.0, abs=0.01)
    assert [step for step, _ in result.train] == list(range(60))
    assert [step for step, _ in result.validation] == [0, 10, 20, 30, 40, 50, 60]
    assert not result.interrupted
    losses = dict(result.validation)
    assert losses[0] == pytest.approx(before, rel=1e-5)
    assert losses[result.best_step] == min(losses.values()) == pytest.approx(after, rel=1e-5)


def test_the_scan_finds_its_way_from_far_off(train: Demonstrations, held_out: Demonstrations) -> None:
    policy = wrong(mass=3.0)
    clone(policy, train, held_out, CloningOptions(steps=20, batch_size=8, validate_every=10))
    assert mass(policy) == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("start", [0.3, 1.0, 1.02, 3.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_scan_never_makes_the_loss_worse(start: float, seed: int, train: Demonstrations) -> None:
    policy = make(physics={"mass": start}, learn=("dynamics.mass", "dynamics.gravity", "goal"))
    before, goal = imitation_loss(policy, train), policy.parameter_values()["stage_cost.goal"]
    scan_physics(policy, *flat(train), 1, seed)
    assert imitation_loss(policy, train) <= before
    assert torch.equal(policy.parameter_values()["stage_cost.goal"], goal)


def test_the_scan_leaves_a_policy_without_learnt_physics_alone(train: Demonstrations) -> None:
    policy = make(physics={"mass": 3.0}, learn=("weights",))
    before = tensors(policy)
    scan_physics(policy, *flat(train), 1, 0)
    assert equal(tensors(policy), before)


def test_the_same_seed_gives_the_same_result(train: Demonstrations, held_out: Demonstrations) -> None:
    few: dict[str, Any] = {"steps": 4, "batch_size": 6, "validate_every": 2, "scan_rounds": 1}
    options = CloningOptions(**few, seed=3)
    first, second = wrong(), wrong()
    results = [clone(policy, train, held_out, options) for policy in (first, second)]
    assert results[0] == results[1]
    assert equal(first.problem.state_dict(), second.problem.state_dict())
    other = wrong()
    assert clone(other, train, held_out, CloningOptions(**few, seed=4)) != results[0]


def test_the_generators_of_others_are_left_alone(train: Demonstrations, held_out: Demonstrations) -> None:
    policy = wrong()
    before, before_numpy = torch.get_rng_state(), str(np.random.get_state())
    clone(policy, train, held_out, CloningOptions(steps=1, scan_rounds=1, batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)
    assert str(np.random.get_state()) == before_numpy


def test_only_what_is_learnt_moves(train: Demonstrations, held_out: Demonstrations) -> None:
    policy = wrong()
    before = policy.parameter_values()
    clone(policy, train, held_out, CloningOptions(steps=2, **NO_SCAN))
    after = policy.parameter_values()
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"dynamics.mass"}


def test_worse_steps_are_not_kept(train: Demonstrations, held_out: Demonstrations) -> None:
    policy = make()
    before = tensors(policy)
    result = clone(
        policy, train, held_out, CloningOptions(steps=5, learning_rate=1.0, validate_every=1, scan_rounds=0, batch_size=4)
    )
    assert result.best_step == 0
    assert equal(tensors(policy), before)


@pytest.mark.parametrize("stop_at", [0, 3])
def test_an_interrupt_keeps_the_best_so_far(stop_at: int, train: Demonstrations, held_out: Demonstrations) -> None:
    def stop(result: CloningResult) -> None:
        if len(result.train) == stop_at + 1:
            raise KeyboardInterrupt

    policy = wrong()
    options = CloningOptions(steps=50, batch_size=8, scan_rounds=0, validate_every=1)
    result = clone(policy, train, held_out, options, stop)
    assert result.interrupted
    assert len(result.train) == stop_at + 1
    assert result.best_step == stop_at  # the loss falls from step to step here
    assert imitation_loss(policy, held_out) == pytest.approx(min(loss for _, loss in result.validation), rel=1e-5)
    assert not policy.training


def test_an_interrupt_during_the_scan_keeps_the_start(
    train: Demonstrations, held_out: Demonstrations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    policy = wrong()
    before = tensors(policy)
    monkeypatch.setattr("dilqr_rl.agents.cloning.scan_physics", interrupt)
    result = clone(policy, train, held_out, CloningOptions(steps=2))
    assert result.interrupted
    assert equal(tensors(policy), before)


def test_a_network_is_cloned_by_the_same_call(train: Demonstrations, held_out: Demonstrations) -> None:
    env = make_env(ENV)
    torch.manual_seed(0)
    network = network_policy(env, layers=(16,))
    before = imitation_loss(network, train)
    result = clone(network, train, held_out, CloningOptions(steps=300, learning_rate=1e-2, batch_size=16, validate_every=50))
    assert imitation_loss(network, train) < 0.05 * before
    assert len(result.train) == 300


def test_nothing_to_learn_is_refused(train: Demonstrations, held_out: Demonstrations) -> None:
    with pytest.raises(ValueError, match="policy: nothing"):
        clone(make(learn=()), train, held_out, CloningOptions(steps=1))


def test_demonstrations_of_another_environment_are_refused(train: Demonstrations) -> None:
    other = Demonstrations("Pendulum-v1", {}, train.episodes)
    for pair in ((other, train), (train, other)):
        with pytest.raises(DemonstrationsError, match=rf"expected {ENV}, for which the policy plans, got Pendulum-v1"):
            clone(wrong(), *pair, CloningOptions(steps=1))
    with pytest.raises(DemonstrationsError, match="for which the policy plans"):
        imitation_loss(wrong(), other)


@pytest.mark.parametrize(("k", "m"), [(5, 1), (3, 2)])
def test_demonstrations_of_other_sizes_are_refused(k: int, m: int, train: Demonstrations) -> None:
    one = Episode(np.zeros((3, k)), np.zeros((2, m)), np.zeros(2), False, True)
    other = Demonstrations(ENV, {}, (one,))
    network = network_policy(make_env(ENV), layers=(4,))
    for policy in (wrong(), network):
        with pytest.raises(
            DemonstrationsError, match=rf"expected observations and actions of shapes .*, got \(\({k},\), \({m},\)\)"
        ):
            clone(policy, other, train, CloningOptions(steps=1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"validate_every": -1}, "validate_every: expected at least 1"),
        ({"validation_size": 0}, "validation_size: expected at least 1"),
        ({"scan_rounds": -1}, "scan_rounds: expected 0 or more"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate: expected a number above 0"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CloningOptions(**change)
