"""The one fit of all learners: what it holds out, keeps, reports and ends with. test_resume.py cuts it off."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from learner_data import ENV, episodes, equal, make, plans, quick, tensors
from torch import Tensor, nn

from dilqr_rl.agents import Demonstrations
from dilqr_rl.agents.learners import LEARNERS, Damping, FitOptions, FitResult, Learner
from dilqr_rl.agents.learners.segments import Segments


class Constant(Learner):
    """Plans one number, whatever it sees: the imitation loss is (number - shown)^2, so that each step can be followed by hand.

    Args:
        task: the environment's model.
        number: N m.
        spoilt: loss from below that number on: NaN, or infinity.
        **settings: as for every learner.
    """

    name = "constant"
    optimizers = ("lm", "adam", "rmsprop")

    def __init__(self, task: Any, *, number: float = 1.0, spoilt: float = 0.0, **settings: Any) -> None:
        super().__init__(task, number=number, spoilt=spoilt, **settings)
        self.number = nn.Parameter(torch.tensor([number], dtype=torch.float64))

    def controls(self, states: Tensor) -> Tensor:
        return self.number.expand(len(states), self.horizon).unsqueeze(-1)

    def loss(self, segments: Segments) -> Tensor:
        found = super().loss(segments)
        return found * self.settings["spoilt"] if self.settings["spoilt"] and self.number.item() < 0.5 else found

    def residuals(self, segments: Segments) -> Tensor:
        return self.sensitivities(segments)[0]

    @torch.no_grad()
    def sensitivities(self, segments: Segments) -> tuple[Tensor, Tensor]:
        errors = (self.controls(segments.states[:, 0]) - segments.controls).reshape(-1)
        spoilt = self.settings["spoilt"] if self.settings["spoilt"] and self.number.item() < 0.5 else 1.0
        return errors * spoilt, torch.ones(len(errors), 1, dtype=torch.float64)


def constant(**settings: Any) -> Constant:
    return Constant(ENV, horizon=3, **settings)


def showing(number: float, count: int = 3, seed: int = 0, **changes: Any) -> Demonstrations:
    """Plans of that control, N m, at every step."""
    observations = np.random.default_rng(seed).uniform(-1, 1, (count, 4, 3))
    actions = np.full((count, 3, 1), number / 2.0)  # an action of 1 is 2 N m
    return Demonstrations.from_arrays(ENV, observations, actions, **{"open_loop": True, **changes})


def descent(**changes: Any) -> FitOptions:
    return FitOptions(**{"optimizer": "rmsprop", "epochs": 5, "learning_rate": 0.1, **changes})


def test_the_history_tells_every_epoch() -> None:
    seen: list[int] = []
    result = constant().fit(
        showing(0.0), showing(0.0, seed=1), descent(), on_epoch=lambda so_far: seen.append(len(so_far.history))
    )
    assert result.column("epoch")[1] == [0, 1, 2, 3, 4, 5]
    assert seen == [2, 3, 4, 5, 6]
    epochs, losses = result.column("train_loss")
    assert epochs == [1, 2, 3, 4, 5]
    # The training loss of an epoch of one step is taken before it; both sets show the same control.
    assert losses == pytest.approx(result.column("validation_loss")[1][:-1])
    assert result.start_loss == pytest.approx(1.0)
    assert result.stopped == "epochs"
    assert FitResult().start_loss == FitResult().best_validation_loss == math.inf


@pytest.mark.parametrize(("epochs", "every", "looks"), [(5, 2, [0, 2, 4, 5]), (6, 3, [0, 3, 6]), (2, 10, [0, 2])])
def test_looks_at_the_validation_loss(epochs: int, every: int, looks: list[int]) -> None:
    measured: list[float] = []

    def measure(learner: Constant) -> Mapping[str, float]:
        measured.append(learner.number.item())
        return {"number": learner.number.item()}

    options = descent(epochs=epochs, validate_every=every)
    result = constant().fit(showing(0.0), showing(0.0, seed=1), options, measure=measure)
    assert result.column("validation_loss")[0] == result.column("number")[0] == looks
    assert result.column("number")[1] == measured
    assert result.column("validation_loss")[1] == pytest.approx(np.square(measured))


def test_the_best_epoch_is_restored_and_patience_ends_the_fit() -> None:
    """Training leads from 1 to 0, past the 0.5 that is held out."""
    learner = constant()
    held = showing(0.55, seed=1)
    options = descent(epochs=100, learning_rate=0.02, patience=3)
    result = learner.fit(showing(0.0), held, options, measure=lambda one: {"number": one.number.item()})
    losses = dict(zip(*result.column("validation_loss"), strict=True))
    assert result.best_epoch == min(losses, key=losses.get)  # type: ignore[arg-type]
    assert 0 < result.best_epoch < result.history[-1]["epoch"] == result.best_epoch + 3
    assert result.stopped == "patience"
    assert result.best_validation_loss == min(losses.values()) == pytest.approx(learner.imitation_loss(held))
    assert learner.number.item() == dict(zip(*result.column("number"), strict=True))[result.best_epoch]


def test_a_fit_that_only_gets_worse_keeps_the_start() -> None:
    learner = constant()
    result = learner.fit(showing(0.0), showing(1.0, seed=1), descent())
    assert (result.best_epoch, learner.number.item()) == (0, 1.0)


@pytest.mark.parametrize(("count", "held_out"), [(2, 1), (4, 1), (10, 2), (11, 2)])
def test_a_fifth_is_held_out(count: int, held_out: int) -> None:
    """Episodes of which each shows a control of its own: the losses at the start tell which were taken."""
    numbers = np.arange(1.0, count + 1) / 10.0  # within the bounds
    shown = np.tile(numbers[:, None, None] / 2.0, (1, 3, 1))
    data = Demonstrations.from_arrays(ENV, np.random.default_rng(0).uniform(-1, 1, (count, 4, 3)), shown, open_loop=True)
    taken: list[Segments] = []

    class Listening(Constant):
        def loss(self, segments: Segments) -> Tensor:
            taken.append(segments)
            return super().loss(segments)

    sets = set()
    for seed in range(8):
        taken.clear()
        Listening(ENV, horizon=3).fit(data, options=descent(epochs=1, seed=seed))
        watched, trained = (sorted(part.controls[:, 0, 0].tolist()) for part in taken[:2])
        assert len(watched) == held_out
        assert sorted([*watched, *trained]) == pytest.approx(numbers)
        sets.add(tuple(watched))
    assert len(sets) > 1  # by the seed


def test_only_what_is_learnt_moves() -> None:
    learner = make("dx")
    before = tensors(learner)
    learner.fit(plans(4), options=quick(scan_rounds=0))
    moved = {name for name, tensor in tensors(learner).items() if not torch.equal(tensor, before[name])}
    assert moved == set(learner.trained_parameters())


def test_weights_and_goal_take_turns() -> None:
    learner = make("cost", alternate=2)
    moved: list[set[str]] = []
    last = tensors(learner)

    def look(_: FitResult) -> None:
        now = tensors(learner)
        moved.append({name.rpartition("stage_cost.")[2] for name in now if not torch.equal(now[name], last[name])})
        last.update(now)

    learner.fit(plans(4), plans(2, seed=1), quick("rmsprop", epochs=5, scan_rounds=0), on_epoch=look)
    weights = {"parametrizations.weights.original"}
    assert moved == [weights, weights, {"goal"}, {"goal"}, weights]


def test_equal_seeds_give_equal_fits_and_no_global_random_number_is_drawn() -> None:
    data, held = episodes(3), episodes(1, seed=1)
    numbers = torch.get_rng_state(), str(np.random.get_state())
    fits = []
    for seed in (1, 1, 2):
        learner = make("dx")
        options = quick("adam", epochs=2, seed=seed)
        fits.append((learner.fit(data, held, options).history, tensors(learner)))
    assert torch.equal(torch.get_rng_state(), numbers[0])
    assert str(np.random.get_state()) == numbers[1]
    assert fits[0][0] == fits[1][0] != fits[2][0]
    assert equal(fits[0][1], fits[1][1])


@pytest.mark.parametrize(("first", "alternate"), [(quick("lm", epochs=30, restarts=1), 0), (quick("rmsprop", epochs=1), 1)])
def test_a_second_fit_begins_where_the_first_ended_and_nowhere_else(first: FitOptions, alternate: int) -> None:
    """Nothing of an earlier fit is left but the parameters: not its attempts, nor whose turn it was."""
    data, held = plans(4, noise=0.1), plans(2, seed=1, noise=0.1)
    learner = make("cost", alternate=alternate)
    learner.fit(data, held, first)
    fresh = make("cost", alternate=alternate)
    fresh.load_state_dict(learner.state_dict())
    results = [one.fit(data, held, quick("adam", epochs=3)).history for one in (learner.train(), fresh)]
    assert results[0] == results[1]


@pytest.mark.parametrize("epoch", [1, 3])
def test_ctrl_c_keeps_the_best_so_far(epoch: int) -> None:
    def stop(result: FitResult) -> None:
        if result.history[-1]["epoch"] == epoch:
            raise KeyboardInterrupt

    learner = constant()
    result = learner.fit(showing(0.0), showing(0.0, seed=1), descent(), on_epoch=stop)
    assert result.stopped == "interrupted"
    assert result.best_epoch == result.history[-1]["epoch"] == epoch
    assert learner.number.item() ** 2 == pytest.approx(result.best_validation_loss)
    assert not learner.training


def test_ctrl_c_during_the_scan_or_the_first_look_keeps_the_start() -> None:
    class Interrupted(Constant):
        def scan(self, segments: Segments, options: FitOptions) -> bool:
            self.number.data.fill_(7.0)
            raise KeyboardInterrupt

    learner = Interrupted(ENV, horizon=3)
    result = learner.fit(showing(0.0), showing(0.0, seed=1), descent(scan_rounds=1))
    assert (result.stopped, result.best_epoch, learner.number.item()) == ("interrupted", 0, 1.0)

    def interrupt(_: Learner) -> Mapping[str, float]:
        raise KeyboardInterrupt

    early = constant().fit(showing(0.0), showing(0.0, seed=1), descent(), measure=interrupt)
    assert early.stopped == "interrupted"


def test_an_error_leaves_the_best_so_far() -> None:
    def fail(result: FitResult) -> None:
        if result.history[-1]["epoch"] == 2:
            raise ZeroDivisionError

    learner, other = constant(), constant()
    with pytest.raises(ZeroDivisionError):
        learner.fit(showing(0.0), showing(0.0, seed=1), descent(), on_epoch=fail)
    other.fit(showing(0.0), showing(0.0, seed=1), descent(epochs=2))
    assert equal(tensors(learner), tensors(other))


@pytest.mark.parametrize("spoilt", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_a_loss_that_is_no_number_ends_the_fit(spoilt: float, optimizer: Any) -> None:
    """From 0.5 down; the step before has crossed that line, and is the last one of the history."""
    learner = constant(spoilt=spoilt)
    options = descent(optimizer=optimizer, learning_rate={"adam": 0.2, "rmsprop": 0.02}[optimizer], epochs=50)
    result = learner.fit(showing(0.0), showing(0.0, seed=1), options)
    assert result.stopped == "diverged"
    assert result.history[-1]["validation_loss"] == math.inf
    assert 0 < result.best_epoch == result.history[-1]["epoch"] - 1
    assert 0.5 <= learner.number.item() < 1.0
    assert learner.number.item() ** 2 == pytest.approx(result.best_validation_loss)
    assert not np.isnan(result.column("train_loss")[1]).any()


@pytest.mark.parametrize("spoilt", [math.nan, math.inf])
def test_levenberg_marquardt_takes_no_step_to_where_there_is_no_number(spoilt: float) -> None:
    """It goes down to 0.5, where every shorter step still helps, and no further."""
    learner = constant(spoilt=spoilt)
    result = learner.fit(showing(0.0), showing(0.0, seed=1), FitOptions(optimizer="lm", epochs=100))
    assert 0.5 <= learner.number.item() < 0.51
    assert np.isfinite(result.column("train_loss")[1]).all()


class Forbidden(Constant):
    """Below 0.5 its loss goes on falling, but its parameter is none that its model takes."""

    name = "forbidden"

    def is_sound(self) -> bool:
        return self.number.item() >= 0.5


def test_no_step_to_parameters_that_the_model_does_not_take() -> None:
    learner = Forbidden(ENV, horizon=3)
    learner.fit(showing(0.0), showing(0.0, seed=1), FitOptions(optimizer="lm", epochs=100))
    assert 0.5 <= learner.number.item() < 0.51
    learner = Forbidden(ENV, horizon=3)
    result = learner.fit(showing(0.0), showing(0.0, seed=1), descent(optimizer="adam", epochs=100))
    assert result.stopped == "diverged"
    assert 0.5 <= learner.number.item() < 0.61


def test_levenberg_marquardt_on_residuals_that_are_no_numbers_diverges() -> None:
    learner = constant(number=0.4, spoilt=math.nan)
    result = learner.fit(showing(0.0), showing(0.0, seed=1), FitOptions(optimizer="lm", epochs=100))
    assert (result.stopped, learner.number.item()) == ("diverged", 0.4)


@pytest.mark.parametrize("name", [name for name in LEARNERS if name not in ("nn", "mlp", "residual")])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_steps_beyond_all_numbers_end_the_fit_with_the_best_so_far(name: str, optimizer: Any) -> None:
    """A step of 1e4 of a mass's logarithm; exp(800) is none any more."""
    learner = make(name)
    before = learner.imitation_loss(plans(2, seed=1))
    result = learner.fit(plans(4), plans(2, seed=1), quick(optimizer, learning_rate=1e4, scan_rounds=0))
    assert all(torch.isfinite(tensor).all() for name, tensor in tensors(learner).items() if "u_m" not in name)
    assert all(torch.isfinite(value).all() for value in learner.readable_parameters().values())
    assert learner.imitation_loss(plans(2, seed=1)) <= before
    if name in ("dx", "sysid", "cost_dx"):
        assert (result.stopped, result.best_epoch) == ("diverged", 0)


def test_a_longest_step_beyond_all_numbers_is_not_taken() -> None:
    learner = make("dx", physics={"mass": 200.0, "length": 0.05, "gravity": 90.0})
    with torch.no_grad():  # where the data determine next to nothing, so that the undamped step is huge
        result = learner.fit(
            plans(4),
            plans(2, seed=1),
            FitOptions(optimizer="lm", epochs=20, damping=Damping(longest_step=1e6, start=1e-12)),
        )
    assert learner.is_sound()
    assert result.best_validation_loss <= result.start_loss
    losses = result.column("train_loss")[1]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("scale", [10.0, -10.0, 30.0, -30.0])
def test_physics_and_weights_stay_possible_after_huge_steps(scale: float) -> None:
    """By construction: whatever an optimiser adds to what it moves, short of leaving the numbers."""
    for name, settings in (("cost_dx", {}), ("cost_dx", {"bounded_weights": True}), ("sysid", {}), ("dx", {})):
        learner = make(name, **settings)
        with torch.no_grad():
            for parameter in learner.trained_parameters().values():
                parameter.add_(scale)
        values = learner.readable_parameters()
        assert values["dynamics.mass"] > 0
        assert values["dynamics.length"] > 0
        weights = values.get("stage_cost.weights", torch.tensor([0.5]))
        assert (weights > 0).all()
        assert (weights < 1).all() == (scale < 0 or name != "cost_dx" or "bounded_weights" in settings)
        assert learner.is_sound()


def test_what_leaves_the_numbers_is_not_sound() -> None:
    for raw in (800.0, -800.0, math.nan, math.inf):  # exp(800) is infinite, exp(-800) zero
        learner = make("dx")
        with torch.no_grad():
            next(iter(learner.trained_parameters().values())).fill_(raw)
        assert not learner.is_sound()
    assert make("dx").is_sound()


def test_an_optimizer_that_the_learner_has_no_use_for_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"optimizer: expected one of \('adam', 'rmsprop'\), with which the learner 'mlp' can be .*'lm'"
    ):
        make("mlp").fit(plans(3), options=quick("lm"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "sgd"}, 'optimizer: expected "lm", "adam" or "rmsprop", got \'sgd\''),
        ({"epochs": 0}, "epochs: expected a whole number from 1 on, got 0"),
        ({"epochs": 2.0}, "epochs: expected a whole number"),
        ({"batch_size": True}, "batch_size: expected a whole number"),
        ({"validate_every": -1}, "validate_every: expected a whole number from 1 on"),
        ({"patience": 0}, "patience: expected a whole number from 1 on"),
        ({"restarts": -1}, "restarts: expected a whole number from 0 on"),
        ({"scan_rounds": -1}, "scan_rounds: expected a whole number from 0 on"),
        ({"seed": -1}, "seed: expected a whole number from 0 on"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate: expected a number above 0"),
        ({"final_rate": 1.5}, "final_rate: expected a share from 0 to 1"),
        ({"smoothing": 1.0}, "smoothing: expected a number from 0 to below 1"),
        ({"checkpoint_seconds": -1.0}, "checkpoint_seconds: expected a number from 0 on"),
        ({"checkpoint_seconds": math.nan}, "checkpoint_seconds: expected a number from 0 on"),
    ],
)
def test_impossible_options_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FitOptions(**change)


@pytest.mark.parametrize("change", [{"start": 0.0}, {"factor": 1.0}, {"attempts": 0}, {"longest_step": math.inf}])
def test_impossible_damping_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"damping\.{next(iter(change))}: expected a"):
        Damping(**change)
