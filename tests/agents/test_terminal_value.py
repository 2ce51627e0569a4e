"""The learnt value at a plan's end: nothing at first, then whatever it has learnt, beside what the model has itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from policy_data import HORIZON, STEPS, model, observed, policy, shake, tensors
from stable_baselines3 import PPO, SAC
from torch import Tensor, nn

from dilqr_rl import ILQROptions, find_task
from dilqr_rl.agents import CostMap, MPCPolicy, MPCSACPolicy, MPCTD3Policy, PlanningPolicy, TerminalFit, fit_terminal_value
from dilqr_rl.agents.terminal_value import TerminalValue, with_terminal_value

HIDDEN = (5,)  # as the other tests have it, so that the machine code is shared
SEEN = torch.as_tensor(observed(5), dtype=torch.float64)
EXACT = ILQROptions(tolerance=1e-11)
CONTROLS = 1e-9  # to which plans with EXACT are the same
LEARNT: dict[str, Any] = {"terminal_value": HIDDEN, "learn": ("terminal",), "options": EXACT}


def value_of(one: Any) -> Any:
    return one.problem.terminal_cost


def plan(one: Any) -> Any:
    return one.planning.plan(SEEN, SEEN)


@pytest.mark.parametrize("kind", [MPCPolicy, MPCSACPolicy, MPCTD3Policy])
def test_at_first_it_changes_nothing(kind: type[PlanningPolicy]) -> None:
    plain, valued = policy(kind, learn=(), options=EXACT), policy(kind, **LEARNT)
    assert not value_of(valued)(SEEN).any()
    torch.testing.assert_close(plan(valued).controls, plan(plain).controls, rtol=0.0, atol=CONTROLS)
    torch.testing.assert_close(plan(valued).cost, plan(plain).cost, rtol=1e-12, atol=0.0)


def test_its_value_is_the_last_part_of_a_plan_s_cost() -> None:
    one = policy(**LEARNT)
    shake(one.planning, 0.5)
    found = plan(one)
    stages = one.problem.stage_cost(found.states[:, :-1], found.controls).sum(1)
    torch.testing.assert_close(found.cost, stages + value_of(one)(found.states[:, -1]), rtol=1e-9, atol=1e-12)
    assert (value_of(one)(found.states[:, -1]).abs() > 1e-3).all()


def test_plans_go_where_it_is_low() -> None:
    """A value that grows with the angular rate at the end, near zero: plans end slower than without it."""
    one = policy(**LEARNT)
    before = plan(one).states[:, -1, 2]
    first, _, last = value_of(one).network
    with torch.no_grad():
        first.weight.zero_()
        first.bias.zero_()
        first.weight[0, 2], last.weight[0, 0] = 0.1, 20.0
    after = plan(one).states[:, -1, 2]
    assert (after < before - 0.01).all()


def test_its_gradient_is_that_of_central_differences() -> None:
    torch.manual_seed(0)
    one = policy(**LEARNT)
    shake(one.planning, 0.3)
    share = torch.linspace(1.0, 2.0, 5 * HORIZON, dtype=torch.float64).view(5, HORIZON, 1)

    def value() -> Tensor:
        return (share * plan(one).controls).sum()

    value().backward()
    trained = {name: p for name, p in value_of(one).named_parameters() if p.requires_grad}
    assert trained.keys() == {"network.0.weight", "network.0.bias", "network.2.weight", "network.2.bias"}
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
        assert (slope == 0.0) == (name == "network.2.bias"), name  # a number that is added to every cost moves no plan


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_terminal_trains_it_and_it_alone(algorithm: type[Any]) -> None:
    one = model(algorithm, policy_kwargs={"terminal_value": HIDDEN, "learn": ("terminal",)}, learning_rate=0.01)
    before = tensors(one.policy.problem)
    one.learn(STEPS)
    moved = {name for name, tensor in tensors(one.policy.problem).items() if not torch.equal(tensor, before[name])}
    assert "terminal_cost.network.2.weight" in moved
    assert all(name.startswith("terminal_cost.network") for name in moved)


def test_without_terminal_among_what_is_learnt_it_rests() -> None:
    one = policy(terminal_value=HIDDEN, learn=("physics",))
    assert not any(parameter.requires_grad for parameter in value_of(one).parameters())


class EndCost(nn.Module):
    """|x|²"""

    def forward(self, x: Tensor) -> Tensor:
        return x.square().sum(-1)


def test_it_is_added_to_the_model_s_own_end() -> None:
    valued = TerminalValue(3, HIDDEN, EndCost())
    shake(valued, 0.3)
    states = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(valued(states), EndCost()(states) + valued.network(states)[..., 0], rtol=1e-12, atol=0.0)
    assert valued(states).shape == (4, 2)
    assert torch.equal(TerminalValue(3, HIDDEN, EndCost())(states), EndCost()(states))


def test_it_has_bounds_far_away() -> None:
    valued = TerminalValue(3, (8,))
    shake(valued, 0.3)
    far = valued(torch.full((1, 3), 1e12, dtype=torch.float64))
    assert far.abs() <= valued.network[-1].weight.abs().sum() + valued.network[-1].bias.abs()


def test_a_task_and_its_copies_keep_their_own() -> None:
    with gym.make("Pendulum-v1") as env:
        task = replace(find_task(env), terminal_cost=EndCost())
    valued = with_terminal_value(task, (4, 3))
    assert isinstance(valued.terminal_cost, TerminalValue)
    assert isinstance(task.terminal_cost, EndCost)
    assert with_terminal_value(task, None) is task
    first, second = policy(**LEARNT), policy(**LEARNT)
    shake(first.planning, 0.5)
    assert not value_of(second)(SEEN).any()
    np.testing.assert_array_equal(*(one.predict(SEEN.numpy())[0] for one in (second, policy(**LEARNT))))


def test_terminal_without_one_is_refused_with_what_to_give() -> None:
    with pytest.raises(
        ValueError,
        match=r"learn: the problem has nothing called 'terminal'; it has \['physics', 'weights', 'goal', 'dynamics\.mass'.*"
        r"Give the plans a learnt end with terminal_value=\(32, 32\), or the task a terminal_cost",
    ):
        policy(learn=("terminal",))


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        (8, r"terminal_value: expected widths of layers, such as \(32, 32\), or None, got 8"),
        ("8", r"terminal_value: expected widths of layers, .*, got '8'"),
        ((8, 0), "hidden: expected positive integers, got 0"),
        ((1.5,), "hidden: expected positive integers, got 1.5"),
    ],
)
def test_impossible_widths_are_refused(widths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy(terminal_value=widths)


# Learnt from longer plans.


def test_a_value_learnt_from_longer_plans_makes_a_short_plan_act_like_a_long_one() -> None:
    def upright(spread: float, count: int) -> np.ndarray[Any, Any]:
        angle, rate = np.random.default_rng(0).uniform(-spread, spread, (2, count))
        return np.stack((np.cos(angle), np.sin(angle), 2 * rate), axis=-1)

    env = gym.make("Pendulum-v1")
    short = MPCPolicy.for_env(env, horizon=3, terminal_value=(16, 16), learn=(), warm_start=False)
    long = MPCPolicy.for_env(env, horizon=10, warm_start=False)
    seen = upright(0.15, 50)
    wanted = long.plan(seen).controls[:, 0].detach()
    before = (short.plan(seen).controls[:, 0] - wanted).square().mean().item()
    loss = fit_terminal_value(short, upright(0.6, 2000), horizon=7, fit=TerminalFit(steps=1500))
    after = (short.plan(seen).controls[:, 0] - wanted).square().mean().item()
    assert loss < 0.1  # of two variances
    assert after < 0.1 * before
    assert not any(parameter.requires_grad for parameter in short.problem.parameters())


def test_a_fit_that_leaves_the_numbers_ends_with_the_last_good_ones() -> None:
    one, angles = policy(**LEARNT), np.linspace(-0.5, 0.5, 20)
    seen = np.stack((np.cos(angles), np.sin(angles), 0 * angles), axis=-1)
    with pytest.raises(FloatingPointError, match=r"training: .* The step was not taken"):
        fit_terminal_value(one, seen, horizon=7, fit=TerminalFit(steps=50, learning_rate=1e200))
    assert all(bool(parameter.isfinite().all()) for parameter in value_of(one).parameters())


def test_a_cost_map_has_no_longer_plans() -> None:
    policy = MPCPolicy.for_env(gym.make("Pendulum-v1"), horizon=3, terminal_value=(4,), cost_map=CostMap(hidden=(4,)))
    with pytest.raises(ValueError, match="policy: expected one without a cost map"):
        fit_terminal_value(policy, np.zeros((2, 3)), horizon=3)


def test_a_policy_without_a_terminal_value_is_refused() -> None:
    policy = MPCPolicy.for_env(gym.make("Pendulum-v1"), horizon=3)
    with pytest.raises(
        ValueError, match=r"policy: expected one with a terminal value, got none\. Make it with terminal_value="
    ):
        fit_terminal_value(policy, np.zeros((2, 3)), horizon=3)


@pytest.mark.parametrize("name", ["steps", "batch_size", "learning_rate"])
def test_settings_of_the_fit_are_above_zero(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected a (whole )?number above 0, got 0"):
        TerminalFit(**{name: 0})
