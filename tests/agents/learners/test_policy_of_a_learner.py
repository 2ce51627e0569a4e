"""A fitted planner as a Stable-Baselines3 policy acts as the learner does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from learner_data import make, plans, quick, upright
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from dilqr_rl import MultiStart, QuadraticCost, find_task
from dilqr_rl.agents import LEARNERS, MPCPolicy, PhysicsLearner, PlanningLearner
from dilqr_rl.multi_start import swings

PLANNERS = sorted(name for name, learner in LEARNERS.items() if issubclass(learner, PlanningLearner))
WITH_THE_TASK_S_MODEL = sorted(set(PLANNERS) - {"lqr", "residual"})


@pytest.mark.parametrize("name", PLANNERS)
def test_it_acts_as_the_learner(name: str) -> None:
    learner = make(name)
    learner.fit(plans(4), plans(2, seed=1), quick(epochs=2))
    policy = learner.policy()
    seen = upright(5, seed=2).astype(np.float32)
    np.testing.assert_allclose(policy.predict(seen)[0], learner.predict(seen)[0], atol=1e-6)
    learnt = [parameter for parameter in policy.problem.parameters() if parameter.requires_grad]
    assert sum(p.numel() for p in learnt) == sum(p.numel() for p in learner.trained_parameters().values())
    seen_tensor = torch.as_tensor(seen)
    policy.evaluate_actions(seen_tensor, torch.zeros(5, 1))[1].sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in learnt)


def test_a_plan_that_is_not_finite_is_no_action_of_a_learner(caplog: pytest.LogCaptureFixture) -> None:
    """As of a policy that has no last plan: the middle of the bounds, and a warning, once."""
    learner, seen = make("dx", starts=2), upright(3, seed=2)
    with torch.no_grad():
        learner.learnt_parameters()["dynamics.parametrizations.length.original"].fill_(-400.0)  # 1e-174 m: rates overflow
    for _ in range(2):
        action, state = learner.predict(seen)
    assert state is None
    np.testing.assert_array_equal(action, np.zeros((3, 1)))
    assert (learner.plan(seen) == 0.0).all()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == ["3 of 3 plans aren't finite: the middle of the bounds is in their place"]


@pytest.mark.parametrize(
    "settings", [{"bounded_weights": True}, {"weights": [2.0, 3.0, 0.5, 0.01], "goal": [1.0, 0.2, 0.0, 0.0]}]
)
def test_its_weights_and_goal_are_those_of_the_learner(settings: dict[str, Any]) -> None:
    learner = make("cost", **settings)
    values = learner.policy().parameter_values()
    for name, value in learner.readable_parameters().items():
        torch.testing.assert_close(values[name], value, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", WITH_THE_TASK_S_MODEL)
def test_it_is_saved_where_its_model_is_the_environment_s(name: str, tmp_path: Path) -> None:
    policy = make(name).policy()
    policy.save(tmp_path / "policy.safetensors")
    loaded = MPCPolicy.load(tmp_path / "policy.safetensors")
    seen = upright(3, seed=0).astype(np.float32)
    np.testing.assert_array_equal(loaded.predict(seen)[0], policy.predict(seen)[0])


@pytest.mark.parametrize("name", ["lqr", "residual"])
def test_another_model_s_policy_is_not_written_where_it_could_not_be_read(name: str, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"policy: expected the model of dilqr_rl/Pendulum-v0, with .* Save the learner instead"
    ):
        make(name).policy().save(tmp_path / "policy.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_stock_ppo_trains_on_what_was_learnt() -> None:
    learner = make("dx")
    learner.fit(plans(4), plans(2, seed=1), quick(epochs=3))
    env = make_vec_env("dilqr_rl.envs:dilqr_rl/Pendulum-v0", n_envs=2)
    kwargs = {"task": learner.fitted_task(), "horizon": 6, "options": learner.planner.options}
    model = PPO(MPCPolicy, env, policy_kwargs=kwargs, n_steps=64, batch_size=32, n_epochs=1, seed=0)
    seen = upright(3, seed=0).astype(np.float32)
    np.testing.assert_allclose(model.predict(seen, deterministic=True)[0], learner.predict(seen)[0], atol=1e-6)
    before = model.policy.parameter_values()["dynamics.mass"].item()
    model.learn(128)
    assert model.policy.parameter_values()["dynamics.mass"].item() != before
    env.close()


def test_a_weight_of_zero_in_the_task_is_no_obstacle() -> None:
    task = dataclasses.replace(
        find_task(gym.make("Pendulum-v1")), stage_cost=QuadraticCost([1.0, 1.0, 0.0, 0.001], [1.0, 0.0, 0.0, 0.0])
    )
    learner = LEARNERS["cost"](task, horizon=4)
    assert learner.policy().parameter_values()["stage_cost.weights"].tolist() == pytest.approx([0.5] * 4)


def test_a_loss_from_several_starts_is_that_of_the_cheapest_plans() -> None:
    """Hanging pendulums, from which one start leads to other plans than five."""
    hanging = torch.tensor([[-1.0, 0.0, 0.0], [-0.99, 0.141, 0.5], [-0.99, -0.141, 1.0]], dtype=torch.float64)
    one, five = (PhysicsLearner("Pendulum-v1", horizon=40, starts=starts) for starts in (1, 5))
    planned = MultiStart(five.planner, swings(five.problem)[:5])(hanging)
    assert torch.equal(five.controls(hanging), planned.controls)
    assert not torch.allclose(one.controls(hanging), five.controls(hanging), atol=1e-3)
    five.controls(hanging).sum().backward()
    assert all(parameter.grad is not None for parameter in five.learnt_parameters().values())
    assert five.policy().settings["starts"] == 5
    again = PhysicsLearner("Pendulum-v1", **five.settings | {"solver": five.planner.options})
    assert torch.equal(again.controls(hanging), planned.controls)
