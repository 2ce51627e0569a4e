"""The network that writes parameters of the cost: it starts as the plain planner, keeps to its bounds, and is learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from policy_data import HORIZON, batch, both, model, observed, policy, shake, state_beside
from stable_baselines3 import PPO
from torch import Tensor, nn

from dilqr_rl import ControlTask, ILQROptions, find_task
from dilqr_rl.agents import CostMap, MPCPolicy, MPCSACPolicy, MPCTD3Policy, PlanningPolicy
from dilqr_rl.agents.cost_map import CostMapNetwork
from dilqr_rl.agents.learnable import make_learnable
from dilqr_rl.problem import ControlProblem

SEEN = torch.as_tensor(observed(5), dtype=torch.float64)
EXACT = ILQROptions(tolerance=1e-11)
CONTROLS = 1e-9  # to which plans with EXACT are the same
each_length = pytest.mark.parametrize("per_step", [True, False])


def settings(**changes: Any) -> CostMap:
    return CostMap(**{"hidden": (4,), **changes})


def shaken(**changes: Any) -> Any:
    """A policy whose network writes something else for each observation."""
    one = policy(**{"cost_map": settings(), "options": EXACT, **changes})
    shake(one.planning.cost_map, 0.3)
    return one


def network(problem: ControlProblem, **changes: Any) -> CostMapNetwork:
    return CostMapNetwork(settings(**changes), problem, 3)


def pendulum(learn: tuple[str, ...] = (), **changes: Any) -> ControlProblem:
    problem = replace(task(), **changes).problem(HORIZON)
    make_learnable(problem, learn)
    return problem


def task() -> ControlTask:
    with gym.make("Pendulum-v1") as env:
        return find_task(env)


def last_bias(one: CostMapNetwork) -> Tensor:
    bias: Tensor = one.network[-1].bias
    return bias


def plan(one: Any, seen: Tensor = SEEN) -> Tensor:
    return one.planning.plan(seen, seen).controls


# Where it starts.


@each_length
@pytest.mark.parametrize("learn", [("physics",), ("weights", "goal")])
@pytest.mark.parametrize("kind", [MPCPolicy, MPCSACPolicy, MPCTD3Policy])
def test_at_first_it_changes_nothing(kind: type[PlanningPolicy], learn: tuple[str, ...], per_step: bool) -> None:
    plain = policy(kind, learn=learn, options=EXACT)
    mapped = policy(kind, learn=learn, options=EXACT, cost_map=settings(per_step=per_step))
    torch.testing.assert_close(plan(mapped), plan(plain), rtol=0.0, atol=CONTROLS)
    np.testing.assert_allclose(mapped.predict(SEEN.numpy())[0], plain.predict(SEEN.numpy())[0], rtol=0.0, atol=1e-6)


@each_length
@pytest.mark.parametrize("learn", [(), ("weights", "goal", "dynamics.mass")])
def test_its_values_are_at_first_those_of_the_problem(learn: tuple[str, ...], per_step: bool) -> None:
    problem = pendulum(learn)
    written = network(problem, writes=("weights", "goal", "dynamics.mass"), per_step=per_step)(SEEN)
    own = dict(problem.named_parameters())
    steps = (HORIZON,) if per_step else ()
    assert [tuple(value.shape) for value in written.values()] == [(5, *steps, 4), (5, *steps, 4), (5, *steps)]
    for name, value in written.items():
        torch.testing.assert_close(value, own[name].expand_as(value), rtol=1e-15, atol=0.0)


class EndCost(nn.Module):
    """size |x|²"""

    positive = ("size",)

    def __init__(self) -> None:
        super().__init__()
        self.size = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.size * x.square().sum(-1)


def test_what_belongs_to_the_end_has_no_steps() -> None:
    written = network(pendulum(terminal_cost=EndCost()), writes=("terminal_cost.size", "goal"), per_step=True)(SEEN)
    assert written["terminal_cost.size"].shape == (5,)
    assert written["stage_cost.goal"].shape == (5, HORIZON, 4)


# What it may write.


def values(problem: ControlProblem, written: dict[str, Tensor], name: str) -> Tensor:
    """A parameter as it is worth, whether the problem keeps it or its logarithm."""
    found = written.get(name)
    return written[_raw(name)].exp() if found is None else found


def _raw(name: str) -> str:
    owner, _, leaf = name.rpartition(".")
    return f"{owner}.parametrizations.{leaf}.original"


@each_length
@pytest.mark.parametrize("size", [1e6, -1e6, 1e300])
@pytest.mark.parametrize("learn", [(), ("weights", "dynamics.mass")])
def test_what_must_be_positive_stays_within_a_factor_of_20(learn: tuple[str, ...], size: float, per_step: bool) -> None:
    problem = pendulum(learn)
    one = network(problem, writes=("weights", "dynamics.mass"), per_step=per_step)
    with torch.no_grad():
        last_bias(one).fill_(size)
    written, plain = one(SEEN), pendulum()
    for name, own in (("stage_cost.weights", plain.stage_cost.weights), ("dynamics.mass", plain.dynamics.mass)):
        found, factor = values(problem, written, name), 20.0 if size > 0 else 1 / 20
        torch.testing.assert_close(found, (factor * own).expand_as(found), rtol=1e-12, atol=0.0)
        assert (found > 0).all()


def test_a_small_output_is_a_relative_step() -> None:
    one = network(pendulum(), writes=("weights",))
    with torch.no_grad():
        last_bias(one).fill_(1e-4)
    ratio = one(SEEN)["stage_cost.weights"] / pendulum().stage_cost.weights
    torch.testing.assert_close(ratio, torch.full_like(ratio, 1.0001), rtol=1e-7, atol=0.0)


def test_goals_move_by_their_size_or_one_and_those_of_controls_by_the_bound() -> None:
    one, own = network(pendulum(), writes=("goal",)), pendulum().stage_cost.goal
    assert own.tolist() == [1.0, 0.0, 0.0, 0.0]
    with torch.no_grad():
        last_bias(one).fill_(0.5)
    moved = one(SEEN)["stage_cost.goal"] - own
    torch.testing.assert_close(moved, torch.tensor([0.5, 0.5, 0.5, 1.0]).expand_as(moved).to(moved), rtol=1e-12, atol=0.0)


def test_a_moved_goal_moves_the_plan() -> None:
    one = policy(cost_map=settings(writes=("goal",), per_step=False))
    before = plan(one)
    with torch.no_grad():
        last_bias(one.planning.cost_map)[1] = 0.02  # sin θ
    moved = plan(one)[:, 0] - before[:, 0]
    assert (moved > 1e-3).all()


@pytest.mark.parametrize("learn", [(), ("weights",)])
def test_each_step_has_its_own(learn: tuple[str, ...]) -> None:
    """The weight of the first control alone, raised twentyfold: the first control shrinks, the others take over."""
    one = policy(learn=learn, cost_map=settings(writes=("weights",)), options=EXACT)
    before = plan(one)
    with torch.no_grad():
        last_bias(one.planning.cost_map)[3] = 1e6
    after = plan(one)
    assert (after[:, 0].abs() < 0.9 * before[:, 0].abs()).all()
    assert not torch.allclose(after[:, 1:], before[:, 1:])


@each_length
def test_learning_what_it_writes_changes_no_value(per_step: bool) -> None:
    """Weights and physics that are learnt stand as logarithms in the problem; the network writes the same either way."""
    made = []
    for learn in ((), ("weights", "goal", "physics")):
        torch.manual_seed(0)
        made.append(shaken(learn=learn, cost_map=settings(writes=("weights", "goal", "dynamics.mass"), per_step=per_step)))
    written = [one.planning.cost_map(SEEN) for one in made]
    for name in ("stage_cost.weights", "stage_cost.goal", "dynamics.mass"):
        first, second = (values(one.problem, found, name) for one, found in zip(made, written, strict=True))
        torch.testing.assert_close(first, second, rtol=1e-12, atol=0.0)
        assert not torch.allclose(first[0], first[1])
    torch.testing.assert_close(*map(plan, made), rtol=0.0, atol=CONTROLS)


# How it is learnt.


@each_length
@pytest.mark.parametrize("learn", [("physics",), ("weights", "goal")])
def test_its_gradient_is_that_of_central_differences(learn: tuple[str, ...], per_step: bool) -> None:
    torch.manual_seed(1)
    one = shaken(learn=learn, cost_map=settings(per_step=per_step))
    share = torch.linspace(1.0, 2.0, 5 * HORIZON, dtype=torch.float64).view(5, HORIZON, 1)

    def value() -> Tensor:
        return (share * plan(one)).sum()

    value().backward()
    trained = {name: p for name, p in one.planning.named_parameters() if p.requires_grad}
    assert {name for name in trained if "cost_map" in name} == {
        f"cost_map.network.{layer}.{part}" for layer in (0, 2) for part in ("weight", "bias")
    }
    generator = torch.Generator().manual_seed(0)
    for name, parameter in trained.items():
        direction = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        step, found = 1e-5, []
        for sign in (1, -2, 1):  # forth, back, and home
            with torch.no_grad():
                parameter.add_(sign * step * direction)
            found.append(value().item())
        slope = (parameter.grad * direction).sum().item()
        # Differences of plans that are exact to 1e-11, divided by a step of 1e-5.
        assert slope == pytest.approx((found[0] - found[1]) / (2 * step), rel=1e-5, abs=1e-5), name
        assert slope != 0.0, name


def test_it_sees_everything_but_plans_from_the_state() -> None:
    one = model(PPO, batch(2, state_beside), policy_kwargs={"cost_map": settings(writes=("weights",))}).policy
    seen = both(observed(4))
    other = {**seen, "obs": seen["obs"] + np.float32(0.5)}
    np.testing.assert_array_equal(one.predict(seen)[0], one.predict(other)[0])
    shake(one.planning.cost_map, 0.3)
    assert (one.predict(seen)[0] != one.predict(other)[0]).all()
    plain = model(PPO, batch(2, state_beside)).policy
    np.testing.assert_array_equal(plain.predict(seen)[0], plain.predict(other)[0])


@each_length
def test_a_warm_start_solves_the_written_problem(per_step: bool) -> None:
    torch.manual_seed(2)
    one = shaken(warm_start=True, options=ILQROptions(tolerance=1e-9), cost_map=settings(per_step=per_step))
    seen = observed(4)
    actions, state, first = one.act(seen)
    from_zero = one.plan(seen)
    assert (first.cost <= from_zero.cost + 1e-6).all()
    assert not torch.allclose(first.cost, policy().plan(seen).cost, rtol=1e-3)
    unmoved = state._replace(controls=first.controls.numpy(), states=first.states.numpy(), gains=first.gains.numpy())
    again, _, second = one.act(seen, unmoved, np.zeros(4, dtype=bool))
    assert second.num_iterations.max() <= 1
    np.testing.assert_allclose(again, actions, rtol=0.0, atol=1e-6)  # float32
    mixed, _ = one.predict(seen, state, np.array([True, False, True, False]))
    np.testing.assert_array_equal(mixed[::2], actions[::2])


# What is refused.


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CostMap(writes=()), r"writes: expected a sequence of names, such as \(\"weights\", \"goal\"\), got \(\)"),
        (lambda: CostMap(writes="goal"), "writes: expected a sequence of names, .* got 'goal'"),
        (lambda: CostMap(writes=3), "writes: expected a sequence of names, .* got 3"),  # type: ignore[arg-type]
        (lambda: CostMap(hidden=8), r"hidden: expected widths of layers, such as \(64, 64\), got 8"),  # type: ignore[arg-type]
        (lambda: policy(cost_map=CostMap(hidden=(0,))), "hidden: expected positive integers, got 0"),
        (lambda: policy(cost_map=("weights",)), r"cost_map: expected a dilqr_rl.agents.CostMap or None, got \('weights',\)"),
        (
            lambda: policy(cost_map=settings(writes=("colour",))),
            r"cost_map: the problem has no parameter 'colour' to write; it has \[.*'dynamics.mass'.*'stage_cost.goal'\]",
        ),
        (lambda: policy(cost_map=settings(writes=("terminal",))), "cost_map: the problem has no parameter 'terminal'"),
        (
            lambda: policy(cost_map=settings(writes=("weights", "stage_cost.weights"))),
            r"cost_map: expected every parameter once, got writes=\('weights', 'stage_cost.weights'\)",
        ),
    ],
)
def test_what_can_not_be_written_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_weight_of_zero_is_refused() -> None:
    problem = pendulum()
    with torch.no_grad():
        problem.stage_cost.weights[2] = 0.0
    with pytest.raises(ValueError, match="cost_map: weights is multiplied by a factor, so it can't be 0"):
        network(problem)
