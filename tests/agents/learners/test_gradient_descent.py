"""Adam and RMSprop over minibatches: against their formulas in NumPy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from learner_data import ENV, equal, tensors
from torch import Tensor, nn

from dilqr_rl.agents.learners import FitOptions, Learner
from dilqr_rl.agents.learners.optimisers import GradientDescent
from dilqr_rl.agents.learners.segments import Segments

COUNT = 7
SHOWN = np.random.default_rng(0).normal(size=(COUNT, 3, 1))
SEGMENTS = Segments(torch.arange(COUNT * 12.0, dtype=torch.float64).view(COUNT, 4, 3), torch.as_tensor(SHOWN))


class Repeated(Learner):
    """Plans the same three controls, whatever it sees; keeps the batches that it was given."""

    name = "repeated"

    def __init__(self, **settings: Any) -> None:
        super().__init__(ENV, horizon=3, **settings)
        self.plan_of_all = nn.Parameter(torch.zeros(3, 1, dtype=torch.float64))
        self.batches: list[list[int]] = []

    def controls(self, states: Tensor) -> Tensor:
        return self.plan_of_all.expand(len(states), 3, 1)

    def loss(self, segments: Segments) -> Tensor:
        self.batches.append((segments.states[:, 0, 0] / 12).long().tolist())
        return super().loss(segments)


def run(options: FitOptions, epochs: range) -> tuple[Repeated, list[float]]:
    learner = Repeated()
    optimiser = GradientDescent(learner, SEGMENTS, options)
    return learner, [optimiser.run_epoch(epoch) for epoch in epochs]


def adam(rates: list[float], gradients: Any) -> np.ndarray:
    """Kingma and Ba 2015, algorithm 1, with torch's betas and epsilon."""
    position, mean, square = np.zeros((3, 1)), np.zeros((3, 1)), np.zeros((3, 1))
    for number, rate in enumerate(rates, start=1):
        gradient = gradients(position, number - 1)
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        position = position - rate * (mean / (1 - 0.9**number)) / (np.sqrt(square / (1 - 0.999**number)) + 1e-8)
    return position


def rmsprop(rates: list[float], gradients: Any) -> np.ndarray:
    """Tieleman and Hinton 2012, with a smoothing of 0.5 and torch's epsilon."""
    position, square = np.zeros((3, 1)), np.zeros((3, 1))
    for number, rate in enumerate(rates):
        gradient = gradients(position, number)
        square = 0.5 * square + 0.5 * gradient**2
        position = position - rate * gradient / (np.sqrt(square) + 1e-8)
    return position


@pytest.mark.parametrize(("name", "formula"), [("adam", adam), ("rmsprop", rmsprop)])
@pytest.mark.parametrize("final_rate", [1.0, 0.1])
def test_steps_are_those_of_the_formulas(name: Any, formula: Any, final_rate: float) -> None:
    options = FitOptions(optimizer=name, epochs=4, batch_size=3, learning_rate=0.05, smoothing=0.5, final_rate=final_rate)
    learner, losses = run(options, range(4))
    # Three batches to an epoch, in which the rate stays; it ends a quarter short of its last value, at the last epoch's begin.
    cosine = [0.05 * (final_rate + (1 - final_rate) * (1 + math.cos(math.pi * epoch / 4)) / 2) for epoch in range(4)]
    positions: list[np.ndarray] = []

    def gradient(position: np.ndarray, number: int) -> np.ndarray:
        positions.append(position)
        return 2 * (position - SHOWN[learner.batches[number]]).mean(0) / 3  # of the mean square over batch and plan

    expected = formula(np.repeat(cosine, 3).tolist(), gradient)
    np.testing.assert_allclose(learner.plan_of_all.detach().numpy(), expected, rtol=1e-9)
    squares = [np.square(positions[i] - SHOWN[learner.batches[i]]).mean() * len(learner.batches[i]) for i in range(12)]
    assert losses == pytest.approx(np.reshape(squares, (4, 3)).sum(1) / COUNT)  # each before its step


def test_an_epoch_takes_each_segment_once() -> None:
    learner, _ = run(FitOptions(epochs=3, batch_size=3), range(3))
    assert [len(batch) for batch in learner.batches] == [3, 3, 1] * 3
    epochs = [list(itertools.chain(*learner.batches[start : start + 3])) for start in (0, 3, 6)]
    assert all(sorted(order) == list(range(COUNT)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3


def test_the_order_is_of_the_seed_and_the_epoch_alone() -> None:
    """Whichever epochs came before, whatever else drew random numbers, and whatever the rate."""
    whole, _ = run(FitOptions(epochs=4, batch_size=2, seed=1), range(4))
    torch.manual_seed(5)
    np.random.seed(5)
    late, _ = run(FitOptions(epochs=4, batch_size=2, seed=1, learning_rate=0.5, optimizer="rmsprop"), range(3, 4))
    assert late.batches == whole.batches[-4:]
    other, _ = run(FitOptions(epochs=4, batch_size=2, seed=2), range(4))
    assert other.batches != whole.batches


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_it_is_restored_to_where_it_stood(name: Any) -> None:
    options = FitOptions(optimizer=name, epochs=6, batch_size=3, final_rate=0.0)
    first, second = Repeated(), Repeated()
    optimiser, other = (GradientDescent(learner, SEGMENTS, options) for learner in (first, second))
    for epoch in range(3):
        optimiser.run_epoch(epoch)
    second.load_state_dict(first.state_dict())
    other.restore({key: value.clone() for key, value in optimiser.state().items()})
    assert optimiser.run_epoch(3) == other.run_epoch(3)
    assert equal(tensors(first), tensors(second))
    assert equal(optimiser.state(), other.state())
