"""Known physics and a network, where an expert's physics have a term that the known ones lack."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost
from dilqr_rl.agents.demonstrations import Demonstrations
from dilqr_rl.agents.learnable import set_physics
from dilqr_rl.agents.learners import FitOptions, PhysicsLearner, ResidualDynamics, ResidualLearner, identifiability
from dilqr_rl.agents.learners.segments import Segments
from dilqr_rl.envs import PendulumDynamics, PublishedPendulumDynamics
from dilqr_rl.tasks import ControlTask

HORIZON = 6
NATIVE = ILQROptions(tolerance=1e-9, backend="native")


def task() -> ControlTask:
    cost = QuadraticCost([1.0, 1.0, 0.1, 0.001], [1.0, 0.0, 0.0, 0.0])
    return ControlTask("pendulum", PendulumDynamics(), cost, lambda seen: seen, HORIZON, 3, 1, -2.0, 2.0)


def make(**settings: Any) -> ResidualLearner:
    return ResidualLearner(task(), **{"hidden": (6,), "solver": NATIVE, **settings})


def starts(count: int, seed: int) -> torch.Tensor:
    angle, rate = 0.1 * torch.randn(2, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.stack((angle.cos(), angle.sin(), rate), dim=1)


def demonstrations(count: int, seed: int) -> Demonstrations:
    """By an expert whose pendulum has a spring and a wind."""
    expert = ControlProblem(
        PublishedPendulumDynamics.from_physics(),
        task().stage_cost,
        horizon=HORIZON,
        state_size=3,
        control_size=1,
        u_min=-2.0,
        u_max=2.0,
    )
    with torch.no_grad():
        acted = ILQR(expert, NATIVE)(starts(count, seed))
    return Demonstrations.from_arrays("pendulum", acted.states.numpy(), acted.controls.numpy(), open_loop=True)


def test_at_first_it_plans_with_the_known_physics() -> None:
    with torch.no_grad():
        expected = ILQR(task().problem(), NATIVE)(starts(4, 0)).controls
    torch.testing.assert_close(make().plan(starts(4, 0)), expected, rtol=0, atol=1e-8)  # the planner's tolerance


def test_dynamics_are_the_known_ones_and_the_layers() -> None:
    learner, x, u = make(hidden=(5, 4), physics={"mass": 1.5}), starts(3, 1), torch.tensor([[1.0], [-2.0], [0.5]]).double()
    draws = torch.Generator().manual_seed(2)
    numbers = []
    for parameter in learner.trained_parameters().values():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=draws, dtype=torch.float64)
        numbers.append(parameter.detach().numpy())
    y = np.concatenate((x.numpy(), u.numpy() / 2.0), axis=1)  # the largest torque is 2 N m
    for weight, bias in zip(numbers[0:4:2], numbers[1:4:2], strict=True):
        y = np.tanh(y @ weight.T + bias)
    expected = PendulumDynamics(mass=1.5)(x, u).detach().numpy() + y @ numbers[4].T + numbers[5]
    np.testing.assert_allclose(learner.problem.dynamics(x, u).detach().numpy(), expected, rtol=0, atol=1e-14)


def test_known_physics_may_be_wrong_and_stay_so() -> None:
    learner = make(physics={"mass": 1.5})
    with torch.no_grad():
        expected = ILQR(ControlTask(**{**vars(task()), "dynamics": PendulumDynamics(mass=1.5)}).problem(), NATIVE)(starts(4, 0))
    torch.testing.assert_close(learner.plan(starts(4, 0)), expected.controls, rtol=0, atol=1e-8)
    assert learner.settings["physics"] == {"mass": 1.5}
    assert all("correction" in name for name in learner.trained_parameters())
    assert float(task().dynamics.get_parameter("mass").detach()) == 1.0


def test_jacobian_is_that_of_central_differences() -> None:
    learner, data = make(seed=1), Segments(starts(2, 3)[:, None], torch.zeros(2, HORIZON, 1, dtype=torch.float64))
    _, jacobian = learner.sensitivities(data)
    step, quotients = 1e-4, []
    for parameter in learner.trained_parameters().values():
        for index in np.ndindex(*parameter.shape):
            sides = []
            for sign in (1, -1):
                parameter.data[index] += sign * step
                sides.append(learner.residuals(data))
                parameter.data[index] -= sign * step
            quotients.append((sides[0] - sides[1]) / (2 * step))
    torch.testing.assert_close(jacobian, torch.stack(quotients, 1), rtol=1e-4, atol=1e-4)  # differences of order step^2
    assert jacobian.abs().max() > 1


@pytest.mark.parametrize(("optimizer", "share"), [("lm", 1e-3), ("adam", 0.3)])
def test_it_imitates_an_expert_outside_the_known_physics(optimizer: Any, share: float) -> None:
    train, held_out = demonstrations(20, 4), demonstrations(10, 5)
    learner = make()
    result = learner.fit(train, held_out, FitOptions(optimizer=optimizer, epochs=20, learning_rate=3e-3))
    assert result.best_validation_loss < share * result.start_loss


def test_physics_alone_do_not_reach_what_the_network_does() -> None:
    train, held_out = demonstrations(20, 4), demonstrations(10, 5)
    physics, residual = PhysicsLearner(task(), solver=NATIVE), make()
    options = FitOptions(optimizer="lm", epochs=20)
    losses = [learner.fit(train, held_out, options).best_validation_loss for learner in (physics, residual)]
    assert losses[1] < 0.1 * losses[0]


def test_each_restart_draws_other_layers_and_begins_with_the_known_physics() -> None:
    learner, segments = make(), Segments(starts(1, 1)[:, None], starts(1, 1)[:, None, :1])
    before = [value.clone() for value in learner.state_dict().values()]
    expected = learner.plan(starts(4, 0))
    learner.restart(1, segments, FitOptions())
    assert sum(bool((old != new).any()) for old, new in zip(before, learner.state_dict().values(), strict=True)) == 2
    torch.testing.assert_close(learner.plan(starts(4, 0)), expected, rtol=0, atol=1e-12)


def test_control_without_bounds_is_not_scaled() -> None:
    free = ResidualLearner(ControlTask(**{**vars(task()), "u_min": -np.inf, "u_max": np.inf}))
    assert isinstance(free.problem.dynamics, ResidualDynamics)
    assert free.problem.dynamics.control_scale == 1.0


def test_known_physics_are_named_as_they_stand_and_learnt_if_asked_for(tmp_path: Path) -> None:
    """Given under their own names, learnt under that of their place in the model."""
    learner = make(learn=["dynamics.known.mass"], physics={"mass": 1.3, "gravity": 9.0})
    assert {name: value.item() for name, value in learner.readable_parameters().items()} == pytest.approx(
        {"dynamics.known.mass": 1.3}
    )
    assert learner.problem.get_parameter("dynamics.known.gravity").item() == 9.0
    learner.save(tmp_path / "learner.safetensors")
    assert ResidualLearner.load(tmp_path / "learner.safetensors", task()).settings == learner.settings
    train = demonstrations(6, 4)
    learner.fit(train, demonstrations(3, 5), FitOptions(optimizer="lm", epochs=3))
    assert learner.readable_parameters()["dynamics.known.mass"].item() != pytest.approx(1.3)
    assert identifiability(learner, train).names == ("dynamics.known.mass",)
    both = make(learn=["dynamics.known.mass", "dynamics.correction."], physics={"mass": 1.3})
    assert both.readable_parameters() == {}
    problem = learner.fitted_task().problem()  # as a policy has it
    set_physics(problem.dynamics, {"known.mass": 2.0})
    with pytest.raises(ValueError, match=r"physics: expected a number above 0 for 'known\.mass', got -1\.0"):
        set_physics(problem.dynamics, {"known.mass": -1.0})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make(hidden=(-1,)), "hidden: expected positive integers, got -1"),
        (lambda: make(seed=-1), "seed: expected a whole number from 0 on, got -1"),
        (lambda: make(physics={"friction": 1.0}), "physics: 'friction' is no parameter of this model; it has .*'mass'"),
        (lambda: make(physics={"mass": -1.0}), "physics: expected a number above 0 for 'mass', got -1.0"),
    ],
)
def test_bad_input(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
