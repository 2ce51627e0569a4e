"""What demonstrations determine, against what is known of the equations, central differences, and the scatter of fits to noisy data."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learner_data import ENV, expert, make, plans

from dilqr_rl.agents import Demonstrations, Identifiability, NetworkLearner, PhysicsLearner, identifiability
from dilqr_rl.agents.learners import FitOptions
from dilqr_rl.cli.tables import explain, single_numbers

PHYSICS = ("dynamics.mass", "dynamics.length", "dynamics.gravity")


def controls(data: Demonstrations, **physics: float) -> torch.Tensor:
    return expert(physics=physics).plan(np.stack([episode.observations[0] for episode in data.episodes]))


def scaled(change: np.ndarray) -> dict[str, float]:
    """The true physics (mass, length, gravity), each changed by a relative amount."""
    return {
        name.removeprefix("dynamics."): start * math.exp(part)
        for name, start, part in zip(PHYSICS, (1.0, 1.0, 10.0), change, strict=True)
    }


def stacked(data: Demonstrations) -> SimpleNamespace:
    return SimpleNamespace(
        **{name: np.stack([getattr(e, name) for e in data.episodes]) for name in ("observations", "actions")}
    )


def test_a_pendulum_s_actions_leave_one_direction_open() -> None:
    """Its equation has gravity / length and mass length² in it alone: (mass, length, gravity) (1 + 2e, 1 - e, 1 - e) acts alike."""
    data = plans(6)
    found = identifiability(expert(), data)
    assert found.names == PHYSICS
    assert found.relative.all()
    (direction,) = found.undetermined
    np.testing.assert_allclose(np.abs(direction), np.array([2.0, 1.0, 1.0]) / math.sqrt(6), atol=1e-6)
    assert direction[0] * direction[1] < 0 < direction[1] * direction[2]
    e = 1e-3
    moved = controls(data, **scaled(np.array([2 * e, -e, -e])))
    torch.testing.assert_close(moved, controls(data), rtol=0.0, atol=1e-8)
    assert not any(found.determined_alone().values())
    assert found.standard_errors() == {}
    assert [combination.label for combination in found.combinations()] == ["gravity / length", "mass · length²"]
    values = {"dynamics.mass": 3.0, "dynamics.length": 0.5, "dynamics.gravity": 15.0}
    assert [combination.value(values) for combination in found.combinations()] == [30.0, 0.75]


def test_a_singular_value_is_the_change_that_shows() -> None:
    data, e = plans(6), 1e-4
    found = identifiability(expert(), data)
    for value, direction in zip(found.singular_values[:2], found.directions[:2], strict=True):
        ahead, back = (controls(data, **scaled(sign * e * direction)) for sign in (1, -1))
        assert float(((ahead - back) / (2 * e)).square().mean().sqrt()) == pytest.approx(value, rel=1e-4)


def test_one_number_alone_is_determined() -> None:
    found = identifiability(expert(learn=("dynamics.length",)), plans(4))
    assert found.determined_alone() == {"dynamics.length": True}
    assert found.combinations() == []
    assert explain(found) == "The demonstrations determine every one of these numbers."


@pytest.mark.slow
def test_standard_errors_are_the_scatter_of_fits_to_noisy_actions() -> None:
    """40 fits, whose spread is known to some 11 %."""
    fits, errors, exact = [], [], stacked(plans(6))
    options = replace(PhysicsLearner.defaults, epochs=15, scan_rounds=0, restarts=0)
    for seed in range(40):
        actions = exact.actions + np.random.default_rng(seed).normal(scale=0.005, size=exact.actions.shape)
        data = Demonstrations.from_arrays(ENV, exact.observations, actions, open_loop=True)
        learner = expert(learn=("dynamics.mass",), physics={"mass": 1.1})
        learner.fit(data, plans(2, seed=1), options)
        fits.append(learner.problem.dynamics.mass.item())
        errors.append(identifiability(learner, data).standard_errors()["dynamics.mass"])
    assert np.std(np.log(fits)) == pytest.approx(float(np.median(errors)), rel=0.4)


def test_a_cost_is_determined_up_to_its_scale() -> None:
    learner = make("cost", weights=[1.0, 1.0, 0.1, 0.001], goal=[1.0, 0.0, 0.0, 0.0])
    found = identifiability(learner, plans(6))
    scale = np.array([0.0] * 4 + [0.5] * 4)  # all weights by the same factor
    hidden = found.undetermined
    order = [found.names.index(f"stage_cost.{name}[{i}]") for name in ("goal", "weights") for i in range(4)]
    projected = hidden[:, order] @ scale
    assert np.linalg.norm(projected) == pytest.approx(1.0, abs=1e-4)
    assert "weights[3] / weights[2]" in {combination.label for combination in found.combinations()}
    assert "There are" in explain(found)


def test_a_fit_that_has_not_reproduced_the_demonstrations_says_so() -> None:
    data = plans(6)
    found = identifiability(expert(physics={"mass": 2.0}, learn=("dynamics.mass",)), data)
    errors = controls(data, mass=2.0) - controls(data)
    share = float(errors.square().mean().sqrt() / controls(data).square().mean().sqrt())
    assert found.unexplained == pytest.approx(share)
    assert f"The fit leaves {100 * share:.2g} % of the demonstrations unexplained" in explain(found)
    assert identifiability(expert(), data).unexplained < 1e-6


def test_numbers_have_names_of_their_own() -> None:
    assert single_numbers({"a": torch.tensor(2.0), "b": torch.tensor([3.0, 4.0])}) == {"a": 2.0, "b[0]": 3.0, "b[1]": 4.0}


def test_fewer_actions_than_numbers_leave_the_rest_open() -> None:
    """Two controls can't determine eight numbers."""
    learner = make("cost", horizon=2)
    found = identifiability(learner, plans(1, horizon=2))
    assert found.directions.shape == (8, 8)
    assert len(found.undetermined) >= 6
    assert sum(found.determined_alone().values()) <= 2


def test_networks_have_nothing_to_identify() -> None:
    with pytest.raises(ValueError, match="learner: expected one with a model, whose parameters mean something, got 'residual'"):
        identifiability(make("residual"), plans(2))
    with pytest.raises(ValueError, match=r"learner: expected one with a model, whose parameters mean something, got 'mlp'"):
        identifiability(NetworkLearner("dilqr_rl/Pendulum-v0"), plans(2))  # type: ignore[arg-type]


def test_a_direction_that_shows_nowhere_has_no_error() -> None:
    found = Identifiability(("a", "b"), np.array([True, True]), np.array([2.0, 0.0]), np.eye(2), np.array([0.1, np.inf]))
    assert found.determined_alone() == {"a": True, "b": False}
    assert found.standard_errors() == {"a": pytest.approx(0.1)}
    assert FitOptions().restarts == 0
