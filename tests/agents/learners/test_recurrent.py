"""The LSTM baseline, against torch's own cell and layers, and Stable-Baselines3's way of asking a recurrent policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from dilqr_rl.agents.demonstrations import Demonstrations
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.learners import FitOptions, RecurrentLearner
from dilqr_rl.agents.learners.segments import Segments

ENV, WIDTH = "dilqr_rl/Pendulum-v0", 8
ROUNDING = 1e-6  # float32, of numbers below 1


def make(**settings: Any) -> RecurrentLearner:
    return RecurrentLearner(ENV, **{"horizon": 4, "width": WIDTH, **settings})


def observed(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((*shape, 3)).astype(np.float32)


def through(learner: RecurrentLearner, part: str, x: Tensor) -> Tensor:
    """Linear layers with ReLU between them, from the checkpoint's numbers alone."""
    weights = [value for name, value in learner.state_dict().items() if name.startswith(part) and "weight" in name]
    biases = [value for name, value in learner.state_dict().items() if name.startswith(part) and "bias" in name]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        x = torch.relu(nn.functional.linear(x, weight, bias))
    return nn.functional.linear(x, weights[-1], biases[-1])


def cell_of(learner: RecurrentLearner) -> nn.LSTMCell:
    cell = nn.LSTMCell(WIDTH, WIDTH)
    cell.load_state_dict(
        {n.removeprefix("cell.").removesuffix("_l0"): v for n, v in learner.state_dict().items() if "cell." in n}
    )
    return cell


@torch.no_grad()
def expected_plan(learner: RecurrentLearner, states: Tensor, length: int) -> Tensor:
    cell, memory, planned = cell_of(learner), None, []
    seen = through(learner, "encoder", states)
    for _ in range(length):
        memory = cell(seen, memory)
        planned.append(through(learner, "decoder", memory[0]))
        seen = through(learner, "embedding", planned[-1])
    return torch.stack(planned, 1)


@torch.no_grad()
def expected_answers(learner: RecurrentLearner, states: Tensor) -> Tensor:
    cell, memory, answers = cell_of(learner), None, []
    for seen in through(learner, "encoder", states).unbind(1):
        memory = cell(seen, memory)
        answers.append(through(learner, "decoder", memory[0]))
    return torch.stack(answers, 1)


def test_layers_are_those_of_the_published_network() -> None:
    learner = RecurrentLearner(ENV)
    shapes = {name: tuple(value.shape) for name, value in learner.state_dict().items() if "weight" in name}
    assert list(shapes.values()) == [
        *((256, 3), (256, 256), (256, 256)),
        *((256, 1), (256, 256), (256, 256)),
        *((256, 256), (1, 256)),
        *((1024, 256), (1024, 256)),
    ]
    assert learner.defaults.optimizer == "adam"
    assert learner.defaults.learning_rate == 1e-4
    assert learner.defaults.batch_size == 32


@pytest.mark.parametrize("count", [1, 5])
def test_plan_is_that_of_torch_cell(count: int) -> None:
    learner, states = make(), torch.as_tensor(observed(count))
    planned = learner.plan(states.numpy())
    assert planned.dtype == torch.float64
    torch.testing.assert_close(planned, expected_plan(learner, states, 4).double(), rtol=0, atol=ROUNDING)
    torch.testing.assert_close(learner.plan(states[0]), planned[0], rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("recurrent", [True, False])
def test_loss_is_that_of_planning_and_of_observing(recurrent: bool) -> None:
    learner = make(recurrent=recurrent)
    states, controls = torch.as_tensor(observed(6, 4)), torch.randn(6, 3, 1, generator=torch.Generator().manual_seed(1))
    errors = [(expected_plan(learner, states[:, 0], 3) - controls).square().mean((1, 2))]
    if recurrent:
        errors.append((expected_answers(learner, states[:, :-1]) - controls).square().mean((1, 2)))
    loss = learner.loss(Segments(states.double(), controls.double()))
    torch.testing.assert_close(loss, sum(errors).double() / len(errors), rtol=1e-5, atol=ROUNDING)


def test_predict_keeps_its_memory_through_an_episode() -> None:
    learner, seen, state = make(), observed(5, 7), None
    expected = expected_answers(learner, torch.as_tensor(seen)).numpy()
    for step in range(7):
        actions, state = learner.predict(seen[:, step], state)
        np.testing.assert_allclose(actions * learner.task.control_per_action, expected[:, step], rtol=0, atol=ROUNDING)
    assert [part.shape for part in state] == [(1, 5, WIDTH)] * 2
    assert all(part.dtype == np.float32 for part in state)


def test_predict_forgets_where_an_episode_starts() -> None:
    learner, seen = make(), observed(3, 2)
    _, state = learner.predict(seen[:, 0])
    starts = np.array([False, True, False])
    actions, after = learner.predict(seen[:, 1], state, starts)
    fresh, fresh_after = learner.predict(seen[:, 1])
    going_on, _ = learner.predict(seen[:, 1], state)
    np.testing.assert_array_equal(actions, np.where(starts[:, None], fresh, going_on))
    np.testing.assert_array_equal(after[1][:, 1], fresh_after[1][:, 1])
    assert (np.abs(fresh - going_on) > 1e-4).all()


def test_one_observation_is_a_batch_of_one_without_its_dimension() -> None:
    learner, seen = make(), observed(1, 2)
    batch, state = learner.predict(seen[:, 0])
    single, single_state = learner.predict(seen[0, 0], None, np.array([True]))
    assert single.shape == (1,)
    np.testing.assert_array_equal(single, batch[0])
    np.testing.assert_array_equal(learner.predict(seen[0, 1], single_state)[0], learner.predict(seen[:, 1], state)[0][0])


def test_one_that_is_not_recurrent_plans_anew() -> None:
    learner, seen = make(recurrent=False), observed(3)
    actions, state = learner.predict(seen, None, np.ones(3, dtype=bool))
    assert state is None
    np.testing.assert_array_equal(actions, learner.as_actions(learner.plan(seen)[:, 0]))


def limited(steps: int) -> Callable[[], gym.Env[Any, Any]]:
    return lambda: Monitor(TimeLimit(make_env(ENV), steps))


def test_stable_baselines_evaluates_it_as_episodes_one_by_one() -> None:
    """Episodes of different length, so that memories start anew at different times."""
    learner, lengths, seed = make(), (5, 8), 3
    envs = DummyVecEnv([limited(steps) for steps in lengths])
    envs.seed(seed)
    returns, _ = evaluate_policy(learner, envs, n_eval_episodes=4, return_episode_rewards=True)
    expected = []
    for number, steps in enumerate(lengths):
        env = limited(steps)()
        for episode in range(2):
            seen, _ = env.reset(seed=seed + number if episode == 0 else None)
            state, total, ended = None, 0.0, False
            while not ended:
                action, state = learner.predict(seen, state)
                seen, reward, terminated, truncated, _ = env.step(action)
                total, ended = total + float(reward), terminated or truncated
            expected.append(total)
    np.testing.assert_allclose(sorted(returns), sorted(expected), rtol=1e-5)  # float32 in batches of other sizes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(width=0), "width: expected a positive integer, got 0"),
        (lambda: make(seed=-1), "seed: expected a whole number from 0 on, got -1"),
        (lambda: make().predict(observed(2), (np.zeros((1, 3, WIDTH)),) * 2), r"state: expected .* two arrays \(1, 2, 8\)"),
        (lambda: make().predict(observed(2), None, np.zeros(3)), "episode_start: expected 2 flags"),
        (lambda: make().predict(np.full(3, np.nan)), "observation: expected finite numbers, got nan"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_seed_draws_other_weights_and_leaves_the_global_numbers_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, same, other = make(seed=1), make(seed=1), make(seed=2)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
    for (name, value), twin, stranger in zip(one.state_dict().items(), same.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, twin.detach(), rtol=0, atol=0)
        assert (value != stranger).any(), name
        assert value.abs().max() <= 1 / np.sqrt(value.shape[-1]) or "bias" in name or "embedding.0" in name


@pytest.mark.parametrize(("open_loop", "expected"), [(True, 4), (False, 3)])
def test_segments_are_plans_or_as_long_as_the_episodes(open_loop: bool, expected: int) -> None:
    lengths = (4, 4) if open_loop else (3, 9)
    data = demonstrations(*lengths, open_loop=open_loop)
    assert make().segment_length(data) == expected
    assert make(horizon=4 if open_loop else 2).segment_length(data) == (4 if open_loop else 2)


def test_fit_learns_to_plan_and_to_observe() -> None:
    """Controls in proportion to an angular rate that stays: both ways of use can tell them from the first state."""
    data, held_out = demonstrations(*[6] * 30), demonstrations(*[6] * 4, seed=1)
    learner = make(horizon=4, width=32)
    result = learner.fit(data, held_out, FitOptions(epochs=50, learning_rate=3e-3))
    assert result.best_validation_loss < 0.1 * result.start_loss
    assert learner.imitation_loss(held_out) < 0.1 * make(horizon=4, width=32).imitation_loss(held_out)


def demonstrations(*lengths: int, open_loop: bool = False, seed: int = 0) -> Demonstrations:
    draws = np.random.default_rng(seed)
    rates = [np.repeat(draws.uniform(-2, 2), length + 1) for length in lengths]
    seen = [np.stack((np.ones_like(rate), np.zeros_like(rate), rate), 1) for rate in rates]
    return Demonstrations.from_arrays(ENV, seen, [0.5 * rate[:-1, None] for rate in rates], open_loop=open_loop)
