"""A fitted planner as a Stable-Baselines3 policy acts as the learner does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_data import make, plans, quick, upright

from dilqr_rl.agents import LEARNERS, MPCPolicy, PlanningLearner

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
