"""Which parameters a fit hands back: really worse ones never, and of equal ones those of the lowest training loss."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_data import ENV, HORIZON, episodes, equal, expert, make, moved, plans, quick, tensors
from torch import Tensor

from dilqr_rl.agents import Demonstrations
from dilqr_rl.agents.learners import FitOptions, FitResult, Learner
from dilqr_rl.agents.learners.choice import Choice

BASE = torch.linspace(1.0, 2.0, 12, dtype=torch.float64)  # losses of windows
D = torch.as_tensor(np.random.default_rng(10).normal(size=12))
EACH_OPTIMIZER = pytest.mark.parametrize("optimizer", ["lm", "rmsprop", "adam"])


def looks(choice: Choice, *losses: tuple[Tensor, float]) -> list[int]:
    """Which of the looks are kept, one after the other, of held-out losses and a training loss each."""
    return [i for i, (held_out, training) in enumerate(losses) if choice.look(held_out, lambda found=training: found)]


def shifted(mean: float) -> Tensor:
    """Losses that differ from BASE by that on average, and otherwise by D."""
    return BASE + D - D.mean() + mean


def chance(groups: int) -> float:
    """By NumPy, of the means of groups of equal size: a difference of that size has Schwarz's criterion of a mean and of none equal.

    -2 ln(likelihood) is lower by t^2 where the mean is fitted, which costs ln n; t is that of the means of the groups.
    """
    if groups == 1:
        return 0.0
    return float(np.sqrt(np.log(groups)) * np.std(D.numpy().reshape(groups, -1).mean(1), ddof=1) / np.sqrt(groups))


@pytest.mark.parametrize("groups", [12, 4, 2, 1])
def test_chance_decides(groups: int) -> None:
    """By windows and by episodes; of one episode by its windows alone."""
    error = max(chance(12), chance(groups))
    sizes = [12 // groups] * groups
    assert looks(Choice(sizes), (BASE, 9.0), (shifted(0.99 * error), 8.0)) == [0, 1]
    assert looks(Choice(sizes), (BASE, 9.0), (shifted(1.01 * error), 8.0)) == [0]
    # What is lower by as much is kept whatever its training loss, and what is equal only for a lower one.
    assert looks(Choice(sizes), (BASE, 8.0), (shifted(-1.01 * error), 9.0)) == [0, 1]
    assert looks(Choice(sizes), (BASE, 8.0), (shifted(-0.99 * error), 9.0)) == [0]


def test_episodes_matter_in_the_cases_above() -> None:
    assert max(chance(4), chance(2)) > chance(12) > min(chance(4), chance(2))


def test_one_window_counts_as_it_is() -> None:
    one = torch.ones(1, dtype=torch.float64)
    assert looks(Choice([1]), (one, 9.0), (one + 0.01, 8.0), (one - 0.01, 10.0), (one - 0.01, 9.5)) == [0, 2, 3]


def test_small_steps_do_not_add_up() -> None:
    """Each is equal to the one before; what counts is the lowest of all."""
    step = 0.6 * chance(12)
    losses = [(shifted(i * step) if i else BASE, 9.0 - i) for i in range(5)]
    assert looks(Choice([1] * 12), *losses) == [0, 1]
    assert looks(Choice([1] * 12), (BASE, 9.0), (shifted(step), 8.0), (BASE - 0.9 * step, 8.5)) == [0, 1, 2]


def test_windows_without_a_loss() -> None:
    """Fewer of them are better, whatever the rest says; where they are as many, the rest decides, or else the training."""
    nan, inf = BASE.clone(), BASE.clone()
    nan[3], inf[3] = math.nan, math.inf
    assert looks(Choice([12]), (BASE, 9.0), (nan, 8.0), (inf, 7.0)) == [0]
    assert looks(Choice([12]), (nan, 8.0), (BASE + 5.0, 9.0)) == [0, 1]
    assert looks(Choice([12]), (nan, 9.0), (inf, 8.0), (inf + 1.0, 7.0)) == [0, 1]
    lost = BASE * math.nan
    assert looks(Choice([12]), (lost, 9.0), (lost, 8.0), (lost, math.nan), (lost, math.inf), (lost, 8.5)) == [0, 1]
    assert looks(Choice([12]), (lost, math.inf), (lost, math.nan), (lost, 3.0)) == [0, 2]
    assert looks(Choice([12]), (BASE, math.nan), (BASE, 3.0), (BASE, math.nan)) == [0, 1]


def test_rounding_is_no_difference() -> None:
    """A millionth of the losses; here every window says the same, so that no standard error hides it."""
    assert looks(Choice([12]), (BASE, 9.0), (BASE + 1e-7, 8.0)) == [0, 1]
    assert looks(Choice([12]), (BASE, 9.0), (BASE + 1e-4, 8.0)) == [0]
    assert looks(Choice([12]), (0 * BASE, 9.0), (0 * BASE + 1e-17, 8.0)) == [0, 1]


def test_what_is_ruled_out_costs_no_pass_over_the_training_windows() -> None:
    choice, asked = Choice([12]), []

    def training() -> float:
        asked.append(None)
        return 1.0

    for held_out in (BASE, BASE + 1.0, BASE - 1.0, BASE):
        choice.look(held_out, training)
    assert len(asked) == 2


# Fits.

SIDE = np.array([np.cos(2.0), np.sin(2.0), 0.0])  # from where every torque of the first steps is at its bound


def at_bounds(count: int, seed: int, noise: float = 0.0, length: int = 3) -> Demonstrations:
    """The first steps of swing-ups: the expert's, and everybody's, at a bound."""
    planner = expert()
    start = SIDE + np.random.default_rng(seed).uniform(-0.05, 0.05, (count, 3))
    start[:, :2] /= np.linalg.norm(start[:, :2], axis=1, keepdims=True)
    seen, taken = [start], []
    for _ in range(length):
        taken.append(planner.plan(seen[-1])[:, :1])
        seen.append(moved(planner, seen[-1], taken[-1])[:, 1])
    controls = torch.cat(taken, dim=1)
    assert (controls.abs() == 2.0).all()
    drawn = np.random.default_rng(seed).normal(size=controls.shape)
    actions = (controls.numpy() + noise * drawn).clip(-2.0, 2.0) / planner.task.control_per_action
    return Demonstrations.from_arrays(ENV, np.stack(seen, axis=1), actions)


def fast(optimizer: str, **changes: Any) -> FitOptions:
    return quick(optimizer, **{"epochs": 20, "learning_rate": 0.05, "scan_rounds": 0, **changes})


@EACH_OPTIMIZER
@pytest.mark.parametrize(("count", "noise"), [(2, 0.0), (2, 0.3), (1, 0.3)])
def test_what_is_held_out_tells_nothing(optimizer: str, count: int, noise: float, caplog: pytest.LogCaptureFixture) -> None:
    """Every torque at a bound: the training decides, and that the validation doesn't is said."""
    learner, held = make("dx"), at_bounds(count, 1, noise)
    before = learner.imitation_loss(episodes(4))
    with caplog.at_level(logging.WARNING, "dilqr_rl"):
        result = learner.fit(episodes(4), held, fast(optimizer))
    assert learner.imitation_loss(episodes(4)) < 0.1 * before
    assert len(set(result.column("validation_loss")[1])) == 1
    assert result.note.startswith(f"the validation loss was {result.start_loss:.3g} for all parameters that were tried")
    assert any(result.note in record.getMessage() for record in caplog.records)
    if optimizer == "lm":
        assert result.stopped == ("only the training demonstrations are reproduced" if noise else "reproduced")


def test_a_set_that_tells_is_not_complained_about(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dilqr_rl"):
        for held, options in ((episodes(2, seed=1), fast("lm")), (at_bounds(2, 1), fast("rmsprop", learning_rate=1e-12))):
            assert make("dx").fit(episodes(4), held, options).note == ""
    assert not caplog.records


@EACH_OPTIMIZER
def test_noisy_demonstrations_lead_towards_the_expert(optimizer: str) -> None:
    """Actions with noise, of a size with what the start errs by (0.04 N m), a fifth held out; the truth is without it."""
    truth = plans(20, seed=99)
    before, found = make("dx").imitation_loss(truth), []
    for seed in range(5):
        learner = make("dx")
        learner.fit(noisy_episodes(10, seed), options=fast(optimizer, epochs=12, batch_size=32, seed=seed))
        found.append(learner.imitation_loss(truth))
    assert max(found) < 0.5 * before


def noisy_episodes(count: int, seed: int) -> Demonstrations:
    """The expert's answers with noise; each episode goes on as the expert would have it."""
    clean = episodes(count, seed=seed)
    drawn = np.random.default_rng(seed)
    actions = [np.clip(one.actions + 0.02 * drawn.normal(size=one.actions.shape), -1.0, 1.0) for one in clean.episodes]
    return Demonstrations.from_arrays(ENV, [one.observations for one in clean.episodes], actions)


@EACH_OPTIMIZER
@pytest.mark.parametrize("count", [1, 4])
def test_really_worse_validation_keeps_what_came_before(optimizer: str, count: int) -> None:
    """Training shows the torques of a pendulum of twice the mass, what is held out those of the start's own physics."""
    learner = make("dx")
    other = make("dx", physics={"mass": 2.6, "length": 0.8})
    start = tensors(learner)
    train, held = (answered(one, number, seed) for one, number, seed in ((other, 6, 0), (learner, count, 1)))
    result = learner.fit(train, held, fast(optimizer))
    assert (result.best_epoch, result.note) == (0, "")
    assert equal(tensors(learner), start)
    assert result.best_validation_loss == result.start_loss < min(result.column("validation_loss")[1][1:])
    if optimizer == "lm":
        assert result.column("train_loss")[1][-1] < 1e-10
        assert result.stopped == "what reproduces the training demonstrations does worse on those held out"


def answered(learner: Any, count: int, seed: int) -> Demonstrations:
    """Its plans from starts near upright."""
    start = plans(count, seed=seed)
    seen = np.stack([one.observations[0] for one in start.episodes])
    actions = learner.plan(seen).numpy() / learner.task.control_per_action
    return Demonstrations.from_arrays(ENV, [one.observations for one in start.episodes], actions, open_loop=True)


def test_reproduced_is_said_of_plans_that_begin_as_they_will() -> None:
    """The second attempt's begin from the demonstrated controls, and may stay there: here those of the learner alone do."""

    class Copying(type(make("dx"))):  # type: ignore[misc]
        def residuals(self, segments: Any) -> Tensor:
            return 0 * super().residuals(segments) if self._from_demonstration else super().residuals(segments)

        def sensitivities(self, segments: Any) -> tuple[Tensor, Tensor]:
            found, jacobian = super().sensitivities(segments)
            return (0 * found if self._from_demonstration else found), jacobian

    learner = Copying(ENV, horizon=HORIZON, physics={"mass": 1.3, "length": 0.8})
    result = learner.fit(plans(4, noise=0.1), plans(2, seed=1, noise=0.1), fast("lm", restarts=1, epochs=100))
    assert 0.0 in result.column("train_loss")[1]
    assert learner.imitation_loss(plans(4, noise=0.1)) > 1e-4
    assert result.stopped == "no step lowers the loss"


class CutOffError(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize("held", ["nothing told", "noise"])
@EACH_OPTIMIZER
def test_a_choice_is_resumed_bit_by_bit(optimizer: str, held: str, tmp_path: Path) -> None:
    """Cut off after every epoch in turn, so that whatever the choice remembers goes through the file."""
    data = (episodes(4), at_bounds(2, 1)) if held == "nothing told" else (noisy_episodes(4, 0), noisy_episodes(2, 1))
    options = fast(optimizer, epochs=6, checkpoint_seconds=0)
    whole = make("dx")
    result = whole.fit(*data, options)
    chosen: list[int] = []
    for stop in range(1, len(result.column("train_loss")[0]) + 1):

        def cut_off(so_far: FitResult, at: int = stop) -> None:
            chosen.append(so_far.best_epoch)
            if so_far.history[-1]["epoch"] == at:
                raise CutOffError

        with pytest.raises(CutOffError):
            make("dx").fit(*data, options, folder=tmp_path, resume=True, on_epoch=cut_off)
    learner: Learner = make("dx")
    second = learner.fit(*data, options, folder=tmp_path, resume=True)
    assert replace(second, seconds=0.0) == replace(result, seconds=0.0)
    assert equal(tensors(learner), tensors(whole))
    assert len(set(chosen)) > 1
    assert bool(second.note) == (held == "nothing told")
