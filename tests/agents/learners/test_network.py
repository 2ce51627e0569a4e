"""The plain network, against the same layers written out, and on something that it must be able to learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dilqr_rl.agents.demonstrations import Demonstrations
from dilqr_rl.agents.learners import FitOptions, NetworkLearner
from dilqr_rl.tasks import ControlTask


def task(low: float = -100.0, high: float = 100.0) -> ControlTask:
    return ControlTask("plain", torch.nn.Identity(), torch.nn.Identity(), lambda seen: seen, 5, 3, 2, low, high)


def test_plan_is_that_of_its_layers_times_the_bound() -> None:
    learner = NetworkLearner(task(-1.0, 3.0), horizon=4, hidden=(7, 6), activation="tanh", seed=2)
    states = np.random.default_rng(0).standard_normal((5, 3))
    x, numbers = states, [value.numpy().astype(float) for value in learner.state_dict().values()]
    for weight, bias in zip(numbers[0:4:2], numbers[1:4:2], strict=True):
        x = np.tanh(x @ weight.T + bias)
    expected = 1.0 + 2.0 * (x @ numbers[4].T + numbers[5])
    planned = learner.plan(states)
    assert planned.dtype == torch.float64
    np.testing.assert_allclose(planned.numpy(), expected.reshape(5, 4, 2), rtol=0, atol=1e-12)
    np.testing.assert_allclose(learner.plan(states[1]).numpy(), expected[1].reshape(4, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("low", "high"), [(-np.inf, np.inf), (-1.0, np.inf), (0.0, 0.0)])
def test_without_bounds_nothing_is_scaled(low: float, high: float) -> None:
    states = np.random.default_rng(0).standard_normal((5, 3))
    scaled, plain = (NetworkLearner(task(*bounds)).plan(states) for bounds in ((-4.0, 4.0), (low, high)))
    torch.testing.assert_close(scaled, 4.0 * plain)


def test_it_acts_on_what_it_sees_unless_a_horizon_is_given() -> None:
    assert NetworkLearner(task()).horizon == 1
    assert NetworkLearner(task(), horizon=3).plan(np.zeros(3)).shape == (3, 2)


def test_settings_act() -> None:
    states = np.random.default_rng(0).standard_normal((5, 3))
    plans = [NetworkLearner(task(), **kw).plan(states) for kw in ({}, {"activation": "tanh"}, {"seed": 1}, {"hidden": (9,)})]
    assert all((plan != plans[0]).all() for plan in plans[1:])
    assert NetworkLearner(task(), hidden=()).plan(states).shape == (5, 1, 2)


@pytest.mark.parametrize("bound", [2.0, 100.0])
def test_fit_learns_a_linear_controller_whatever_its_unit(bound: float) -> None:
    gains = np.array([[0.5, -0.2, 0.1], [0.0, 0.3, -0.4]])
    draws = np.random.default_rng(1)

    def shown(count: int) -> Demonstrations:
        seen = [draws.uniform(-1, 1, (9, 3)) for _ in range(count)]
        return Demonstrations.from_arrays("plain", seen, [bound * x[:-1] @ gains.T for x in seen])

    learner = NetworkLearner(task(-bound, bound))
    result = learner.fit(shown(100), shown(10), FitOptions(epochs=20, learning_rate=3e-3, final_rate=0.01))
    assert result.best_validation_loss < 1e-3 * result.start_loss
    actions, state = learner.predict(np.array([[0.5, 0.5, 0.5]]))
    assert state is None
    np.testing.assert_allclose(actions, bound * np.array([[0.2, -0.05]]), rtol=0, atol=0.02 * bound)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NetworkLearner(task(), hidden=(0,)), "hidden: expected positive integers, got 0"),
        (lambda: NetworkLearner(task(), activation="sine"), "activation: expected one of .*, got 'sine'"),
        (lambda: NetworkLearner(task(), seed=1.5), "seed: expected a whole number from 0 on, got 1.5"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
