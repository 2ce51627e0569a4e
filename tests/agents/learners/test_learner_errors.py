"""What a learner is made from and asked for, where it is wrong: each message names it, what was expected, and what came."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from learner_data import ENV, HORIZON, expert, make, plans, quick, upright
from torch import Tensor

from dilqr_rl.agents import Demonstrations, DemonstrationsError
from dilqr_rl.agents.learners import LEARNERS, Learner, PhysicsLearner

each_learner = pytest.mark.parametrize("name", LEARNERS)


@each_learner
@pytest.mark.parametrize("horizon", [0, -1, 2.0, True, "6"])
def test_a_horizon_is_a_positive_integer(name: str, horizon: Any) -> None:
    with pytest.raises(ValueError, match=f"horizon: expected a positive integer, got {horizon!r}"):
        make(name, horizon=horizon)


@each_learner
def test_a_setting_that_no_learner_of_the_kind_has_is_refused(name: str) -> None:
    """A misspelt one would silently keep its default."""
    with pytest.raises((ValueError, TypeError), match=rf"gradeint: the learner '{name}' has no such|unexpected .* 'gradeint'"):
        make(name, gradeint="diffmpc")


def test_the_settings_that_there_are_are_named() -> None:
    message = r"alternate: the learner 'dx' has no such setting; it has \['bounded_weights', .*'weights'\]"
    with pytest.raises(ValueError, match=message):
        make("dx", alternate=3)


@each_learner
@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (np.array([1.0, np.nan, 0.0]), "observation: expected finite numbers, got nan"),
        (np.array([[1.0, 0.0, 0.0], [1.0, 0.0, np.inf]]), "observation: expected finite numbers, got inf"),
        (np.zeros(4), rf"expected one as {ENV} gives it, \(k,\), or a batch .* 3 numbers of state .* got the shape \(4,\)"),
        (np.zeros((2, 2)), r"got the shape \(2, 2\)"),
        (np.zeros((2, 2, 3)), r"got the shape \(2, 2, 3\)"),
        (np.float64(1.0), r"got the shape \(\)"),
    ],
)
def test_observations_that_no_state_can_be_read_from_are_refused(name: str, observation: Any, message: str) -> None:
    learner = make(name)
    for ask in (learner.plan, learner.predict):
        with pytest.raises(ValueError, match=message):
            ask(observation)


def test_a_task_is_needed() -> None:
    with pytest.raises(ValueError, match="task: expected a ControlTask or an environment's id, got None"):
        PhysicsLearner(None)  # type: ignore[arg-type]
    with gym.make("FrozenLake-v1") as env, pytest.raises(ValueError, match="no model is known for 'FrozenLake-v1'"):
        PhysicsLearner.for_env(env)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("dx", {"physics": {"weight": 1.0}}, r"physics: 'weight' is no parameter of this model; it has \['damping', 'gravity'"),
        ("dx", {"physics": {"mass": -1.0}}, "physics: expected a number above 0 for 'mass', got -1.0"),
        ("dx", {"gradient": "guess"}, "gradient: expected one of .* got 'guess'"),
        ("cost", {"weights": [0.5] * 3}, r"weights: expected 4 finite numbers, got \[0.5, 0.5, 0.5\]"),
        (
            "cost",
            {"weights": [0.5, 0.5, 0.0, 0.5]},
            "stage_cost.weights is kept positive while it is learnt, so it can't start at 0",
        ),
        ("cost", {"weights": [0.5, 0.5, 2.0, 0.5], "bounded_weights": True}, "is kept below 1 .* can't start at 2"),
        ("cost", {"goal": [np.nan] * 4}, "goal: expected finite numbers, got nan"),
        ("cost", {"alternate": -1}, "alternate: expected a whole number of epochs from 0 on, got -1"),
        ("cost_dx", {"alternate": True}, "alternate: expected a whole number"),
    ],
)
def test_impossible_settings_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, **settings)


def test_a_learner_without_residuals_says_so() -> None:
    class Plain(Learner):
        name = "plain"

        def controls(self, states: Tensor) -> Tensor:
            return torch.zeros(len(states), self.horizon, 1, dtype=torch.float64)

    for ask in (Plain(ENV).residuals, Plain(ENV).sensitivities):
        with pytest.raises(NotImplementedError, match="The learner 'plain' has no residuals"):
            ask(None)


def test_the_demonstrator_errs_nowhere_and_others_by_their_mean_square() -> None:
    data = plans(3)
    assert expert().imitation_loss(data) < 1e-13
    starts = np.stack([episode.observations[0] for episode in data.episodes])
    shown = 2.0 * np.stack([episode.actions for episode in data.episodes])
    other = make("dx")
    assert other.imitation_loss(data) == pytest.approx(np.square(other.plan(starts).numpy() - shown).mean(), rel=1e-9)
    assert other.plan(upright(1, 0)).shape == (1, HORIZON, 1)


def test_turns_are_refused_where_there_are_none() -> None:
    with pytest.raises(ValueError, match=r'optimizer: expected "adam" or "rmsprop" where weights and goal take turns'):
        make("cost", alternate=2).fit(plans(3), options=quick("lm"))


def test_demonstrations_of_another_preset_are_refused() -> None:
    """Its actions mean other forces."""
    data = dataclasses.replace(plans(3), env_kwargs={"preset": "diffmpc"})
    with pytest.raises(
        DemonstrationsError, match=r"made with \{\}, got \{'preset': 'diffmpc'\}\. Make the learner with for_env"
    ):
        make("sysid").fit(data, options=quick())
    other = dataclasses.replace(plans(3), env_kwargs={"physics": {"mass": 2.0}, "max_episode_steps": 7})
    make("sysid").fit(other, options=quick(epochs=1))  # what is learnt, and what isn't the model's


def test_normalised_observations_are_refused() -> None:
    with (
        gym.make("Pendulum-v1") as env,
        pytest.raises(ValueError, match="expected raw observations, got a NormalizeObservation"),
    ):
        PhysicsLearner.for_env(gym.wrappers.NormalizeObservation(env))


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="learn: expected something to learn, got nothing"):
        make("dx", learn=())


def test_turns_of_one_alone_are_refused() -> None:
    with pytest.raises(ValueError, match="alternate: expected 0 where weights and goal aren't both learnt"):
        make("cost", learn=("weights",), alternate=1)


def test_networks_too_large_for_lm_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r'optimizer: expected "adam" for 1\d\d\d numbers, got "lm", which is for 1000 at most'
    ):
        make("residual", hidden=[150]).fit(plans(3), options=quick("lm"))


def test_actions_beyond_what_the_environment_carries_out_are_refused() -> None:
    data = plans(3)
    large = [episode.actions * (1.5 / np.abs(episode.actions).max()) for episode in data.episodes]
    wrong = Demonstrations.from_arrays(ENV, [episode.observations for episode in data.episodes], large, open_loop=True)
    with pytest.raises(
        DemonstrationsError, match=r"within the bounds of dilqr_rl/Pendulum-v0's control, 2, got one that means 3\."
    ):
        make("dx").fit(wrong, options=quick())
