"""Levenberg-Marquardt: against NumPy's least squares, central differences, and the published wrong starts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from learner_data import ENV, HORIZON, TINY, episodes, equal, make, plans, quick, tensors
from torch import Tensor, nn

from dilqr_rl import ILQROptions
from dilqr_rl.agents import Demonstrations, record_plans
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.learners import LEARNERS, Damping, FitOptions, FitResult, Learner, PhysicsLearner
from dilqr_rl.agents.learners.levenberg_marquardt import LevenbergMarquardt
from dilqr_rl.agents.learners.segments import Segments, cut

FITTED_BY_LM = [name for name, learner in LEARNERS.items() if "lm" in learner.optimizers]
SOME = Segments(torch.zeros(1, 2, 3, dtype=torch.float64), torch.ones(1, 1, 1, dtype=torch.float64))
RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(20, 4)) * (1.0, 10.0, 0.1, 1.0), RNG.normal(size=20)


class Linear(Learner):
    """Residuals A p - b, of two parameters of two numbers each."""

    name = "linear"

    def __init__(self, matrix: np.ndarray = A, **settings: Any) -> None:
        super().__init__(ENV, **settings)
        self.matrix = torch.as_tensor(matrix)
        self.first, self.second = (nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2))

    def controls(self, states: Tensor) -> Tensor:
        raise NotImplementedError

    def residuals(self, segments: Segments) -> Tensor:
        with torch.no_grad():
            return self.matrix @ torch.cat((self.first, self.second)) - torch.as_tensor(B)

    def sensitivities(self, segments: Segments) -> tuple[Tensor, Tensor]:
        return self.residuals(segments), self.matrix

    @property
    def position(self) -> np.ndarray:
        return torch.cat((self.first, self.second)).detach().numpy()


def lm(learner: Learner, **changes: Any) -> LevenbergMarquardt:
    return LevenbergMarquardt(learner, SOME, FitOptions(optimizer="lm", damping=Damping(**changes)))


def test_an_undamped_step_solves_a_linear_problem() -> None:
    learner = Linear()
    loss = lm(learner, start=1e-15, longest_step=1e9).run_epoch(0)
    solution, squares, _, _ = np.linalg.lstsq(A, B, rcond=None)
    np.testing.assert_allclose(
        learner.position, solution, rtol=1e-9
    )  # normal equations: half the digits, in a condition of 1e4
    assert loss == pytest.approx(squares[0] / 20)


def test_a_damped_step_is_that_of_marquardt() -> None:
    """With w diag(J^T J) as further rows of a least-squares problem in the step."""
    learner, weight = Linear(), 0.3
    lm(learner, start=weight, longest_step=1e9).run_epoch(0)
    rows = np.vstack((A, np.sqrt(weight * np.square(A).sum(0)) * np.eye(4)))
    step, *_ = np.linalg.lstsq(rows, np.concatenate((B - A @ np.ones(4), np.zeros(4))), rcond=None)
    np.testing.assert_allclose(learner.position - 1.0, step, rtol=1e-10)


def test_a_step_is_no_longer_than_allowed() -> None:
    free, short = Linear(), Linear()
    lm(free, longest_step=1e9).run_epoch(0)
    lm(short, longest_step=0.01).run_epoch(0)
    full, step = free.position - 1.0, short.position - 1.0
    assert np.abs(step).max() == pytest.approx(0.01)
    np.testing.assert_allclose(step, 0.01 * full / np.abs(full).max(), rtol=1e-9)


@pytest.mark.parametrize("matrix", [np.zeros((20, 4)), A * (1, 1, 0, 0), np.column_stack((A[:, :2], A[:, :2])), A * 1e-170])
def test_directions_that_the_data_do_not_show_hold_nothing_up(matrix: np.ndarray) -> None:
    """No column, some, twice the same, and squares that vanish: the loss falls to that of NumPy's solution."""
    learner = Linear(matrix)
    optimiser = lm(learner, longest_step=1e200)
    losses = [optimiser.run_epoch(epoch) for epoch in range(8)]
    solution, *_ = np.linalg.lstsq(matrix, B, rcond=None)
    best = np.square(matrix @ solution - B).mean()
    if np.abs(matrix).max() > 1e-100:
        assert losses[-1] == pytest.approx(best, rel=1e-6)
    assert np.isfinite(learner.position).all()
    assert losses == sorted(losses, reverse=True)


def test_it_is_restored_to_where_it_stood() -> None:
    first, second = Linear(), Linear()
    optimiser, other = lm(first, longest_step=0.05), lm(second, longest_step=0.05)
    for epoch in range(3):
        optimiser.run_epoch(epoch)
    second.load_state_dict(first.state_dict())
    other.restore(optimiser.state())
    assert optimiser.run_epoch(3) == other.run_epoch(3)
    assert equal(tensors(first), tensors(second))
    assert equal(optimiser.state(), other.state())


EXACT = ILQROptions(max_iterations=200, tolerance=1e-10)


def central_differences(learner: Learner, segments: Segments, step: float = 1e-5) -> np.ndarray:
    columns = []
    with torch.no_grad():
        for parameter in learner.trained_parameters().values():
            flat = parameter.view(-1)
            for index in range(len(flat)):
                middle = flat[index].item()
                sides = []
                for sign in (1, -1):
                    flat[index] = middle + sign * step
                    sides.append(learner.residuals(segments))
                flat[index] = middle
                columns.append((sides[0] - sides[1]) / (2 * step))
    return torch.stack(columns, dim=1).numpy()


def cart_pole_plans(count: int) -> Demonstrations:
    """Of the expert, from starts near upright."""
    with make_env("dilqr_rl/CartPole-v0", {"preset": "diffmpc"}) as env:
        planner = PhysicsLearner.for_env(env, horizon=HORIZON)
        angle, *rest = np.random.default_rng(0).uniform(-0.1, 0.1, (4, count))
        start = np.stack((rest[0], rest[1], np.cos(angle), np.sin(angle), rest[2]), axis=1)
        controls = planner.plan(start) / planner.task.control_per_action
    observations = np.repeat(start[:, None], HORIZON + 1, axis=1)  # the planners read the first alone, sysid errs all the more
    return Demonstrations.from_arrays(
        "dilqr_rl/CartPole-v0", observations, controls.numpy(), env_kwargs={"preset": "diffmpc"}, open_loop=True
    )


def cart_pole(name: str) -> Learner:
    settings = {key: value for key, value in TINY[name].items() if key != "physics"}
    if name in ("dx", "cost_dx", "sysid", "residual"):
        settings["physics"] = {"cart_mass": 1.2, "length": 0.6}
    if name in ("dx", "cost", "cost_dx", "residual", "lqr"):
        settings["solver"] = EXACT
    with make_env("dilqr_rl/CartPole-v0", {"preset": "diffmpc"}) as env:
        return LEARNERS[name].for_env(env, horizon=HORIZON, **settings)


# Each cart-pole is machine code of its own, which takes seconds to compile.
CASES = [(name, kind) for name in FITTED_BY_LM for kind in ("plans", "actions")]
CART_POLES = [
    pytest.param(name, "cart-pole", marks=[] if name in ("dx", "sysid") else pytest.mark.slow) for name in FITTED_BY_LM
]


@pytest.mark.parametrize(("name", "kind"), [*CASES, *CART_POLES])
def test_sensitivities_equal_central_differences(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"plans": plans, "actions": episodes, "cart-pole": cart_pole_plans}[kind](3)
    learner = cart_pole(name) if kind == "cart-pole" else make(name, solver=EXACT)
    segments = cut(learner.task, data, learner.segment_length(data), torch.device("cpu"))[:6]
    before = tensors(learner)
    # Where forward mode begins, torch compiles rules of its own, and warns users that it has deprecated the way it does.
    monkeypatch.setattr(torch.autograd.forward_ad, "make_dual", None)
    residuals, jacobian = learner.sensitivities(segments)
    assert equal(tensors(learner), before)
    assert torch.equal(residuals, learner.residuals(segments))
    assert residuals.square().mean().item() == pytest.approx(learner.loss(segments).mean().item(), rel=1e-9)
    size = sum(parameter.numel() for parameter in learner.trained_parameters().values())
    assert jacobian.shape == (len(residuals), size)
    assert jacobian.abs().max() > 1e-3
    differences = central_differences(learner, segments)
    # Of the differences: 1e-10 of step², and what the planner leaves, 1e-10 and more of softer costs, over the step.
    np.testing.assert_allclose(jacobian.numpy(), differences, atol=2e-5 * float(np.abs(differences).max()))


@pytest.mark.parametrize("name", FITTED_BY_LM)
def test_no_step_raises_the_loss(name: str) -> None:
    """The loss of the history is the one that the learner has after the step."""
    noisy, seen = plans(5, noise=0.1), []
    learner = make(name)

    def look(_: FitResult) -> None:
        segments = cut(learner.task, noisy, learner.segment_length(noisy), torch.device("cpu"))
        seen.append(learner.mean_over(segments))

    result = learner.fit(noisy, plans(2, seed=1), quick("lm", epochs=8, scan_rounds=0), on_epoch=look)
    losses = result.column("train_loss")[1]
    assert losses == pytest.approx(seen, rel=1e-5)  # the planner's tolerance
    assert losses == sorted(losses, reverse=True)
    assert len(losses) > 3


class Watched(PhysicsLearner):
    """Tells with which parameters each attempt begins, and how each plan does."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.attempts: list[int] = []
        self.starts: list[dict[str, Tensor]] = []

    def set_attempt(self, attempt: int) -> None:
        self.attempts.append(attempt)
        super().set_attempt(attempt)

    def restart(self, attempt: int, segments: Segments, options: FitOptions) -> None:
        self.starts.append(tensors(self))
        super().restart(attempt, segments, options)


def watched() -> Watched:
    return Watched(ENV, **{"horizon": HORIZON, **TINY["dx"]})


@pytest.mark.parametrize("restarts", [0, 1, 3])
def test_attempts_that_stick_are_followed_by_others_from_the_start(restarts: int) -> None:
    learner = watched()
    start = tensors(learner)
    result = learner.fit(plans(4, noise=0.2), plans(2, seed=1), quick("lm", epochs=200, restarts=restarts))
    assert result.stopped == "no step lowers the loss"
    assert list(dict.fromkeys(learner.attempts)) == list(range(restarts + 1))
    assert learner.attempts == sorted(learner.attempts)
    assert len(learner.starts) == restarts
    assert all(equal(begun, start) for begun in learner.starts)


def test_an_attempt_that_succeeds_is_the_last() -> None:
    learner = watched()
    result = learner.fit(plans(4), plans(2, seed=1), quick("lm", epochs=200, restarts=3))
    assert set(learner.attempts) == {0}
    assert result.best_validation_loss < 1e-20


PENDULUM = {"gravity": 15.0, "mass": 3.0, "length": 0.5}
CART_POLE = {"gravity": 9.8, "cart_mass": 3.0, "pole_mass": 0.1, "length": 1.0}


@pytest.mark.parametrize(("env_id", "physics"), [("dilqr_rl/Pendulum-v0", PENDULUM), ("dilqr_rl/CartPole-v0", CART_POLE)])
def test_the_published_starts_lead_to_the_demonstrator(env_id: str, physics: dict[str, float]) -> None:
    """Amos et al. 2018, section 5.3: fifty plans of T = 20. The rest is the rounding of recorded actions, to float32."""
    with make_env(env_id, {"preset": "diffmpc"}) as env:
        planner = PhysicsLearner.for_env(env, horizon=20)
        data = record_plans(env, planner, episodes=60)
    train, held_out = (replace(data, episodes=part) for part in (data.episodes[:50], data.episodes[50:]))
    learner = PhysicsLearner(planner.task, horizon=20, physics=physics)
    result = learner.fit(train, held_out)
    assert result.start_loss > 1e-3
    assert learner.imitation_loss(held_out) == pytest.approx(result.best_validation_loss)
    assert result.best_validation_loss < 1e-12
    found = {name.removeprefix("dynamics."): float(value) for name, value in learner.readable_parameters().items()}
    if "mass" in found:  # the motion of a pendulum tells these two numbers, not three
        assert found["gravity"] / found["length"] == pytest.approx(10.0, rel=1e-6)
        assert found["mass"] * found["length"] ** 2 == pytest.approx(1.0, rel=1e-6)
    else:
        assert found == pytest.approx({"gravity": 9.8, "cart_mass": 1.0, "pole_mass": 0.1, "length": 0.5}, rel=1e-6)
