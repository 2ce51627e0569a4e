"""Which demonstrations a learner can be fitted to, and how they are cut into what a loss compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from learner_data import ENV, HORIZON, episodes, equal, make, plans, quick, tensors

from dilqr_rl.agents import Demonstrations, DemonstrationsError
from dilqr_rl.agents.learners import LEARNERS
from dilqr_rl.agents.learners.segments import cut


@pytest.mark.parametrize("name", LEARNERS)
def test_demonstrations_that_do_not_fit_are_refused_and_change_nothing(name: str) -> None:
    learner, data, held = make(name), plans(3), plans(2, seed=1)
    before = tensors(learner)
    other = Demonstrations("Pendulum-v1", {}, data.episodes, open_loop=True)
    wide = Demonstrations.from_arrays(
        ENV, np.zeros((2, HORIZON + 1, 3)) + np.eye(2)[:, :1, None], np.zeros((2, HORIZON, 2)), open_loop=True
    )
    seen = Demonstrations.from_arrays(
        ENV, np.zeros((2, HORIZON + 1, 5)) + np.eye(2)[:, :1, None], np.zeros((2, HORIZON, 1)), open_loop=True
    )
    refused: list[tuple[tuple[Any, ...], str]] = [
        ((other, held), f"expected {ENV}, whose model the learner has, got Pendulum-v1"),
        ((data, Demonstrations("Pendulum-v1", {}, held.episodes, open_loop=True)), "got Pendulum-v1"),
        ((wide, held), rf"expected actions \(1,\), as {ENV}'s model has, got \(2,\)"),
        ((data, wide), r"expected actions \(1,\)"),
        ((seen, held), r"expected observations that the task's observation_to_state turns into states \(3,\); of \(5,\)"),
        ((data, data), "train and validation: expected different episodes, but these are the same: train 0 = validation 0"),
        (
            (data, episodes(2, seed=1)),
            r"validation: expected plans that were carried out as made \(open_loop\), as the training demon",
        ),
        (
            (plans(1),),
            rf"expected at least 2 episodes, .*, or a long one, whose last fifth validates, got 1 of {HORIZON} actions\. Record m",
        ),
    ]
    if name != "sysid":
        message = rf"expected plans of {HORIZON} actions, the learner's horizon, got \[4\]. Make the learner with horizon="
        refused += [((plans(3, horizon=4), held), message), ((data, plans(2, seed=1, horizon=4)), message)]
    for given, message in refused:
        with pytest.raises(DemonstrationsError, match=message):
            learner.fit(*given, options=quick("adam"))
    assert equal(tensors(learner), before)


def test_nan_never_gets_into_demonstrations() -> None:
    actions = np.zeros((1, 3, 1))
    actions[0, 1] = np.nan
    with pytest.raises(DemonstrationsError, match=r"episode 0: actions hold NaN or infinity"):
        Demonstrations.from_arrays(ENV, np.zeros((1, 4, 3)), actions)


def test_the_imitation_loss_is_of_fitting_demonstrations_only() -> None:
    with pytest.raises(DemonstrationsError, match="expected plans of 6 actions"):
        make("dx").imitation_loss(plans(2, horizon=3))
    with pytest.raises(DemonstrationsError, match="whose model the learner has, got Pendulum-v1"):
        make("dx").imitation_loss(Demonstrations("Pendulum-v1", {}, plans(2).episodes, open_loop=True))


@pytest.mark.parametrize(("length", "count"), [(1, 10), (2, 4), (3, 2), (5, 2)])
def test_segments_follow_each_other_in_every_episode(length: int, count: int) -> None:
    """Against a loop over episodes and steps; in the model's unit, two N m for an action of 1."""
    data = episodes(2, length=5)
    found = cut(make("dx").task, data, length, torch.device("cpu"))
    expected = [
        (episode.observations[start : start + length + 1], 2.0 * episode.actions[start : start + length])
        for episode in data.episodes
        for start in range(0, len(episode) - length + 1, length)
    ]
    assert len(found) == len(expected) == count
    for index, (states, controls) in enumerate(expected):
        np.testing.assert_allclose(found.states[index], states, atol=1e-12)  # a pendulum's observation is its state
        np.testing.assert_array_equal(found.controls[index], controls)
    assert [len(part) for part in found.parts(count - 1)] == [count - 1, 1]
    assert torch.equal(found[torch.tensor([1, 0])].controls, torch.stack((found.controls[1], found.controls[0])))


def test_episodes_shorter_than_what_is_compared_are_refused() -> None:
    message = "expected episodes of 6 actions or more, which are compared at a time, got one of 5. Lower the learner's horizon"
    with pytest.raises(DemonstrationsError, match=message):
        cut(make("dx").task, episodes(2, length=5), 6, torch.device("cpu"))
