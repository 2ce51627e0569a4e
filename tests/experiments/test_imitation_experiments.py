"""E4 to E6: starts and data as published, and verdicts that turn where they should."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dilqr_rl.agents import CostLearner, PhysicsLearner
from dilqr_rl.experiments import Record, e4, e5, e6
from dilqr_rl.experiments.imitation import expert_plans, model_losses, published_task


def test_e6_starts_are_uniform_around_5_1_1() -> None:
    drawn = np.array([[e6._start(seed)[name] for name in ("gravity", "mass", "length")] for seed in range(400)])
    low, high = np.array([3.5, 0.5, 0.5]), np.array([6.5, 1.5, 1.5])
    assert (drawn >= low).all()
    assert (drawn <= high).all()
    np.testing.assert_allclose(drawn.mean(0), [5.0, 1.0, 1.0], atol=4 * (high - low).max() / np.sqrt(12 * 400))


def test_the_expert_s_plans_are_disjoint_nested_and_carried_out() -> None:
    large, small = (expert_plans("cartpole", (size, 4, 3), seed=2) for size in (10, 6))
    assert [len(part) for part in large] == [10, 4, 3]
    assert not any(a.overlap(b) for i, a in enumerate(large) for b in large[:i])
    assert large[0].overlap(small[0]) == [(i, i) for i in range(6)]
    for a, b in zip(large[1:], small[1:], strict=True):
        assert a.overlap(b) == [(i, i) for i in range(len(a))]
    task, episode = published_task("cartpole"), large[0].episodes[0]
    ahead = task.dynamics(torch.as_tensor(episode.observations[:-1]), torch.as_tensor(episode.actions))
    np.testing.assert_allclose(ahead.detach(), episode.observations[1:], atol=1e-10)


def test_the_complex_expert_is_outside_the_learners_model() -> None:
    (data,) = expert_plans("pendulum-complex", (5,), seed=0)
    task, episode = published_task("pendulum-complex"), data.episodes[0]
    ahead = task.dynamics(torch.as_tensor(episode.observations[:-1]), torch.as_tensor(episode.actions))
    assert np.abs(ahead.detach().numpy() - episode.observations[1:]).max() > 1e-3


def test_model_losses_are_mean_squares() -> None:
    learner = PhysicsLearner(published_task("pendulum"), horizon=4, physics={"mass": 3.0, "length": 0.5, "gravity": 15.0})
    assert model_losses(learner) == {"physics_loss": pytest.approx((2.0**2 + 0.5**2 + 5.0**2) / 3)}
    cost = CostLearner(published_task("pendulum"), horizon=4, weights=[1.0, 1.0, 0.1, 0.101], goal=[3.0, 0.0, 0.0, 0.0])
    assert model_losses(cost) == {"cost_loss": pytest.approx((0.1**2 + 2.0**2) / 8)}


def record(settings: dict[str, Any], **result: Any) -> Record:
    return Record("key", settings, {"epochs": 500, "best_epoch": 10, "fit_seconds": 1.0, "impossible": False, **result}, 1.0)


def imitation(method: str, optimizer: str, loss: float, **result: Any) -> Record:
    gradient = "" if method in ("nn", "sysid") else "implicit"
    settings = {"system": "pendulum", "method": method, "optimizer": optimizer, "gradient": gradient, "size": 50, "seed": 0}
    return record(settings, test_loss=loss, **result)


@pytest.mark.parametrize(
    ("network", "best_epoch", "planner", "verdict"),
    [
        (1.0, 10, 1e-5, "not reproduced"),
        (1.0, 10, 1e-7, "reproduced"),
        (1.0, 499, 1e-7, "partly"),  # the network was still learning
        (1.0, 499, 1e-10, "reproduced"),
    ],
)
def test_e4_claims_a_factor_only_where_there_is_one(network: float, best_epoch: int, planner: float, verdict: str) -> None:
    records = [imitation("nn", "adam", network, best_epoch=best_epoch), imitation("dx", "rmsprop", planner)]
    (claim,) = [claim for claim in e4.claims(records) if "dx by RMSprop imitates better" in claim.claim]
    assert claim.verdict == verdict


@pytest.mark.parametrize(("seconds", "verdict"), [(59.0, "reproduced"), (61.0, "not reproduced")])
def test_e4_times_are_judged(seconds: float, verdict: str) -> None:
    (claim,) = [claim for claim in e4.claims([imitation("dx", "lm", 1.0, fit_seconds=seconds)]) if "60 s" in claim.claim]
    assert claim.verdict == verdict


@pytest.mark.parametrize(("dx", "verdict"), [(0.5, "reproduced"), (0.8, "partly"), (1.1, "not reproduced")])
def test_e6_claims_a_factor_of_1_8(dx: float, verdict: str) -> None:
    records = [
        record({"method": method, "optimizer": "rmsprop"}, test_loss=loss, prediction_loss=loss)
        for method, loss in (("sysid", 1.0), ("dx", dx))
    ]
    assert e6.claims(records)[0].verdict == verdict


def test_e5_lets_published_learners_go_where_they_go() -> None:
    learner = e5._make({"kind": "dx-free", "gradient": "implicit", "seed": 0})
    assert set(learner.trained_parameters()) == {
        f"planner.problem.dynamics.{name}" for name in ("gravity", "cart_mass", "pole_mass", "length")
    }
    with torch.no_grad():
        learner.problem.get_parameter("dynamics.pole_mass").fill_(-0.2)
    assert learner.is_sound()
    assert learner.controls(torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.1]], dtype=torch.float64)).isfinite().all()
