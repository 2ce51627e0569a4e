"""`MPCPolicy` as a controller and as a Stable-Baselines3 policy."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from gymnasium.wrappers import RescaleAction
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy

from dilqr_rl import ControlTask, ILQROptions, MultiStart, QuadraticCost, Solution, Status, find_task
from dilqr_rl.agents import MPCPolicy
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.plan_state import PlanState, like
from dilqr_rl.envs import PendulumDynamics
from dilqr_rl.multi_start import swings

IDS = ("dilqr_rl/Pendulum-v0", "dilqr_rl/CartPole-v0", "Pendulum-v1")
each_id = pytest.mark.parametrize("env_id", IDS)
PENDULUM_PARAMETERS = (
    *(f"dynamics.{name}" for name in ("mass", "length", "gravity", "damping", "wind")),
    "stage_cost.weights",
    "stage_cost.goal",
)


def make(env_id: str = "dilqr_rl/Pendulum-v0", **settings: Any) -> MPCPolicy:
    env = make_env(env_id)
    policy = MPCPolicy.for_env(env, **{"horizon": 5, **settings})
    env.close()
    return policy


def starts(env_id: str, count: int) -> NDArray[np.float32]:
    """Observations (count, k) of the environment."""
    env = make_env(env_id)
    seen = np.stack([env.reset(seed=seed)[0] for seed in range(count)])
    env.close()
    return seen


def near_upright(count: int, seed: int = 0) -> NDArray[np.float32]:
    """Pendulum observations (count, 3) whose best torque lies between the bounds."""
    angle, rate = np.random.default_rng(seed).uniform(-0.04, 0.04, (2, count))
    return np.stack((np.cos(angle), np.sin(angle), rate), axis=-1).astype(np.float32)


HASTY = ILQROptions(max_iterations=1)  # plans that are cut off show where they started


def learnt(policy: MPCPolicy) -> set[str]:
    named = {
        name.replace("parametrizations.", "").removesuffix(".original"): p for name, p in policy.problem.named_parameters()
    }
    return {name for name, parameter in named.items() if parameter.requires_grad}


def raw(policy: ActorCriticPolicy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=0.0, atol=0.0)


# A controller in one line.


@each_id
def test_for_env_gives_a_policy_of_sb3_that_acts(env_id: str) -> None:
    policy = make(env_id)
    (observation,) = starts(env_id, 1)
    action, _ = policy.predict(observation)
    assert isinstance(policy, ActorCriticPolicy)
    assert policy.problem.horizon == 5
    assert make(env_id, horizon=None).problem.horizon == policy.task.horizon
    assert policy.task.name == env_id
    assert policy.action_space.contains(action)


@pytest.mark.slow
@each_id
def test_for_env_in_a_fresh_process(env_id: str, tmp_path: Path) -> None:
    made = f'gym.make("{env_id}")' if env_id == "Pendulum-v1" else f'gym.make("dilqr_rl.envs:{env_id}")'
    program = f"""
import sys, torch, gymnasium as gym
from dilqr_rl import MPCPolicy
torch.set_num_threads(1)
assert "dilqr_rl.envs" not in sys.modules
env = {made}
print(MPCPolicy.for_env(env, horizon=3).predict(env.reset(seed=0)[0])[0].shape)
"""
    arguments = [sys.executable, "-W", "error::UserWarning", "-c", program]
    run = subprocess.run(arguments, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert run.stdout == "(1,)\n", run.stderr


def test_an_environment_without_a_model_is_refused_by_name() -> None:
    env = gym.make("CartPole-v1")
    with pytest.raises(ValueError, match=r"no model is known for 'CartPole-v1'; known ids: .*Pendulum-v1"):
        MPCPolicy.for_env(env)


def test_for_env_takes_a_task_for_an_environment_without_a_model() -> None:
    task = make("Pendulum-v1").task
    unregistered = PendulumEnv()
    with pytest.raises(ValueError, match="no model is known for 'PendulumEnv'"):
        MPCPolicy.for_env(unregistered)
    policy = MPCPolicy.for_env(unregistered, task=task)
    assert policy.task is task
    assert policy.settings["warm_start"]


@each_id
def test_plan_gives_the_whole_solution(env_id: str) -> None:
    policy, seen = make(env_id), starts(env_id, 3)
    plan = policy.plan(seen)
    n, m = policy.task.state_size, policy.task.control_size
    assert isinstance(plan, Solution)
    assert plan.states.shape == (3, 6, n)
    assert plan.controls.shape == (3, 5, m)
    assert plan.converged.all()
    single = policy.plan(seen[1])
    assert single.states.shape == (6, n)
    torch.testing.assert_close(single.controls, plan.controls[1], rtol=0.0, atol=1e-6)


@each_id
def test_a_plan_is_differentiable_in_the_learnt_physics(env_id: str) -> None:
    policy = make(env_id, options=ILQROptions(tolerance=1e-10))
    seen = torch.as_tensor(starts(env_id, 3) if "CartPole" in env_id else near_upright(3), dtype=torch.float64)
    weights = torch.linspace(1.0, 2.0, 15, dtype=torch.float64).view(3, 5, 1)

    def value() -> torch.Tensor:
        return (weights * policy.plan(seen).controls).sum()

    value().backward()
    parameters = [p for p in policy.problem.parameters() if p.requires_grad]
    assert len(parameters) >= 3
    for parameter in parameters:
        step, values = 1e-5, []
        for sign in (1, -2, 1):  # forth, back, and home
            with torch.no_grad():
                parameter.add_(sign * step)
            values.append(value().item())
        numeric = (values[0] - values[1]) / (2 * step)
        # Differences of solutions that are exact to 1e-10 divided by a step of 1e-5.
        assert parameter.grad is not None
        assert parameter.grad.item() == pytest.approx(numeric, rel=1e-5, abs=1e-4)
        assert parameter.grad.item() != 0.0


# SB3's predict.


@each_id
def test_predict_has_the_shapes_of_sb3(env_id: str) -> None:
    policy, seen = make(env_id), starts(env_id, 3)
    m = policy.task.control_size
    actions, state = policy.predict(seen)
    assert actions.shape == (3, m)
    assert actions.dtype == policy.action_space.dtype
    n = policy.task.state_size
    shapes = [(3,), (3, 5, m), (3, 6, n), (3, 5, m, n), (3, m), (3, 0)]
    assert [part.shape for part in state or ()] == shapes
    action, state = policy.predict(seen[0])
    assert action.shape == (m,)
    action, again = policy.predict(seen[0], state, np.zeros(1, dtype=bool))
    assert action.shape == (m,)
    assert [part.shape for part in again or ()] == [(1, *shape[1:]) for shape in shapes]


@each_id
def test_the_state_starts_the_next_plan(env_id: str) -> None:
    policy, seen = make(env_id), starts(env_id, 3)
    _, state, plan = policy.act(seen)
    np.testing.assert_array_equal(state.version, 1)
    np.testing.assert_array_equal(state.controls[:, :-1], plan.controls[:, 1:].numpy())
    np.testing.assert_array_equal(state.controls[:, -1], 0.0)
    np.testing.assert_array_equal(state.states[:, :-1], plan.states[:, 1:].numpy())
    np.testing.assert_array_equal(state.gains[:, :-1], plan.gains[:, 1:].numpy())
    np.testing.assert_array_equal(state.previous, plan.controls[:, 0].numpy())
    # The last plan, not moved on, solves the same problem already.
    *_, again = policy.act(seen, plan_as_state(state, plan), np.zeros(3, dtype=bool))
    assert again.num_iterations.max() <= 1


def plan_as_state(state: PlanState, plan: Solution) -> PlanState:
    """What `predict` is given, with a plan that isn't moved on."""
    return state._replace(controls=plan.controls.numpy(), states=plan.states.numpy(), gains=plan.gains.numpy())


def test_next_to_a_plan_the_next_one_follows_it_with_feedback() -> None:
    """An unstable pole: replayed, the controls of a long plan lead away from it; with feedback they stay beside it."""
    policy, seen = make("dilqr_rl/CartPole-v0", horizon=60, options=ILQROptions(max_iterations=1)), np.zeros((1, 5), np.float32)
    seen[0, 2] = 1.0
    _, state, _ = make("dilqr_rl/CartPole-v0", horizon=60).act(seen)
    pushed = seen + np.array([[0.0, 0.0, 0.0, 0.1, 0.3]], dtype=np.float32)
    x0 = torch.as_tensor(pushed, dtype=torch.float64)
    guess = state.guess(torch.device("cpu"))
    replayed, followed = policy.planner(x0, u_init=guess.controls), policy.planner(x0, guess=guess)
    assert followed.cost.item() < 0.2 * replayed.cost.item()


@given(begins=st.lists(st.booleans(), min_size=4, max_size=4))
@settings(max_examples=5)
def test_episode_start_resets_these_entries_alone(begins: list[bool]) -> None:
    policy, some = make("dilqr_rl/CartPole-v0", horizon=15, options=HASTY), starts("dilqr_rl/CartPole-v0", 10)
    seen, before = some[[1, 3, 7, 9]], some[[0, 2, 6, 8]]  # from elsewhere zero controls may be the best start of both
    _, state = policy.predict(before)
    fresh, fresh_state = policy.predict(seen)
    carried, carried_state = policy.predict(seen, state, np.zeros(4, dtype=bool))
    mixed, mixed_state = policy.predict(seen, state, np.array(begins))
    assert fresh_state is not None
    assert carried_state is not None
    assert mixed_state is not None
    assert (fresh != carried).all()
    np.testing.assert_array_equal(mixed, np.where(np.array(begins)[:, None], fresh, carried))
    for part, new, old in zip(mixed_state, fresh_state, carried_state, strict=True):
        np.testing.assert_array_equal(part, np.where(like(np.array(begins), new), new, old))


def test_what_an_ended_episode_left_in_the_state_is_not_looked_at() -> None:
    policy, seen = make(), starts(IDS[0], 2)
    _, state = policy.predict(seen)
    state = tuple(np.full_like(part, np.nan) if part.dtype.kind == "f" else part for part in state or ())
    fresh, _ = policy.predict(seen)
    actions, _ = policy.predict(seen, state, np.ones(2, dtype=bool))
    np.testing.assert_array_equal(actions, fresh)


@given(order=st.permutations(range(4)))
@settings(max_examples=5)
def test_permuting_a_batch_permutes_the_actions_and_the_state(order: list[int]) -> None:
    policy, seen = make("dilqr_rl/CartPole-v0", horizon=15, options=HASTY), starts("dilqr_rl/CartPole-v0", 4)
    _, state = policy.predict(seen)
    assert state is not None
    begins = np.array([True, False, False, True])
    actions, after = policy.predict(seen, state, begins)
    permuted, permuted_after = policy.predict(seen[order], tuple(part[order] for part in state), begins[order])
    assert after is not None
    assert permuted_after is not None
    np.testing.assert_array_equal(permuted, actions[order])
    for part, other in zip(permuted_after, after, strict=True):
        np.testing.assert_array_equal(part, other[order])


@given(angle=st.floats(-np.pi, np.pi), rate=st.floats(-8.0, 8.0))
@settings(max_examples=20)
def test_planned_actions_are_within_the_bounds_without_clipping(angle: float, rate: float) -> None:
    policy = SHARED
    seen = torch.tensor([[np.cos(angle), np.sin(angle), rate]], dtype=torch.float32)
    with torch.no_grad():
        mean, _, _ = policy(seen, deterministic=True)
    assert policy.action_space.contains(mean.numpy()[0])
    action, _ = policy.predict(seen.numpy()[0])
    assert policy.action_space.contains(action)


@each_id
def test_without_a_warm_start_predict_is_the_mean_of_the_distribution(env_id: str) -> None:
    policy, seen = make(env_id, warm_start=False), starts(env_id, 4)
    first, state = policy.predict(seen)
    second, _ = policy.predict(seen, state, np.zeros(4, dtype=bool))
    observations = torch.as_tensor(seen)
    with torch.no_grad():
        forward, _, _ = policy(observations, deterministic=True)
        mode = policy.get_distribution(observations).mode()
    for other in (second, forward.numpy(), mode.numpy()):
        np.testing.assert_array_equal(first, other)


def test_a_random_action_is_a_sample_around_the_plan() -> None:
    policy, seen = make(log_std_init=-4.0), np.repeat(near_upright(1), 200, axis=0)
    torch.manual_seed(0)
    mean, _ = policy.predict(seen)
    sampled, _ = policy.predict(seen, deterministic=False)
    assert len(np.unique(sampled)) > 150
    assert np.abs(sampled - mean).max() < 6 * np.exp(-4.0)
    assert (sampled - mean).std() == pytest.approx(np.exp(-4.0), rel=0.2)


@each_id
def test_evaluate_actions_agrees_with_forward(env_id: str) -> None:
    policy, observations = make(env_id), torch.as_tensor(starts(env_id, 4))
    torch.manual_seed(0)
    with torch.no_grad():
        actions, values, log_prob = policy(observations)
        again, log_prob_again, entropy = policy.evaluate_actions(observations, actions)
        parts = [policy.evaluate_actions(observations[i : i + 1], actions[i : i + 1])[1] for i in range(4)]
    torch.testing.assert_close(again, values, rtol=0.0, atol=0.0)
    torch.testing.assert_close(log_prob_again, log_prob, rtol=0.0, atol=0.0)
    torch.testing.assert_close(torch.cat(parts), log_prob, rtol=1e-5, atol=1e-5)
    assert entropy is not None
    assert entropy.isfinite().all()


@each_id
def test_sb3_evaluates_the_policy(env_id: str) -> None:
    make_env(env_id).close()  # registers the id
    env = Monitor(gym.make(env_id, max_episode_steps=4))
    returns, lengths = evaluate_policy(make(env_id), env, n_eval_episodes=2, return_episode_rewards=True)
    assert lengths == [4, 4]
    assert np.isfinite(returns).all()


def test_predict_builds_no_graph_and_leaves_grad_mode_alone() -> None:
    policy = make()
    _, _, plan = policy.act(near_upright(1))
    assert not plan.controls.requires_grad
    assert torch.is_grad_enabled()
    assert policy.plan(near_upright(1)).controls.requires_grad
    assert all(parameter.grad is None for parameter in policy.parameters())


@pytest.mark.parametrize(
    "state",
    [(), (np.zeros((2, 5, 1)),), (np.zeros((3, 4, 1)),), (np.zeros((3, 5, 1)),) * 2, np.zeros((3, 5, 1)), (None,)],
    ids=["nothing", "batch", "horizon", "two", "no tuple", "None"],
)
def test_a_state_of_another_shape_is_refused(state: Any) -> None:
    with pytest.raises(
        ValueError, match=r"state: expected what the last predict returned, 6 arrays of shapes \[\(3,\), \(3, 5, 1\)"
    ):
        make().predict(starts(IDS[0], 3), state, np.zeros(3, dtype=bool))


@pytest.mark.parametrize("shape", [(2,), (3, 1), ()])
def test_an_episode_start_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    policy, seen = make(), starts(IDS[0], 3)
    for state in (policy.predict(seen)[1], None):
        with pytest.raises(ValueError, match=r"episode_start: expected the shape \(3,\)"):
            policy.predict(seen, state, np.zeros(shape, dtype=bool))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_observation_that_is_no_number_is_refused(bad: float) -> None:
    seen = near_upright(2)
    seen[1, 2] = bad
    with pytest.raises(ValueError, match=r"expected finite numbers, got (nan|inf)"):
        make().predict(seen)


def test_an_observation_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        make().predict(np.zeros(5, dtype=np.float32))


# Starts of an episode.


@each_id
def test_the_first_plan_of_an_episode_is_the_best_of_the_swings(env_id: str) -> None:
    policy, seen = make(env_id, horizon=15, warm_start=True), starts(env_id, 6)
    *_, first = policy.act(seen)
    with torch.no_grad():
        from_zero = policy.plan(seen)
        from_swings = MultiStart(policy.planner)(policy.task.observation_to_state(torch.as_tensor(seen)))
    assert torch.equal(first.controls, from_swings.controls)
    assert (first.cost <= from_zero.cost * (1 + 1e-5)).all()  # float32


def test_a_hanging_pendulum_is_not_left_hanging() -> None:
    """From rest, zero torque is a saddle of the cost: by symmetry the plan from it stays there."""
    hanging = torch.tensor([[-1.0, 0.0, 0.0]], dtype=torch.float64)
    policy = make(horizon=40)
    with torch.no_grad():
        still = policy.plan(hanging, u_init=torch.zeros(1, 40, 1, dtype=torch.float64))
        planned = policy.plan(hanging)
    assert still.controls.abs().max() < 1e-6
    assert still.singular.all()
    assert planned.converged.all()
    assert planned.cost.item() < 0.9 * still.cost.item()


def test_several_starts_are_what_every_plan_begins_from() -> None:
    """Training and predicting alike: without a warm start equal observations give equal actions."""
    policy, seen = make(horizon=30, starts=5, warm_start=False), starts(IDS[0], 6)
    with torch.no_grad():
        forward, _, _ = policy(torch.as_tensor(seen), deterministic=True)
        expected = MultiStart(policy.planner, swings(policy.problem)[:5])(torch.as_tensor(seen))
    np.testing.assert_array_equal(policy.predict(seen)[0], forward.numpy())
    assert torch.equal(policy.plan(seen).cost, expected.cost)
    policy.plan(seen).cost.sum().backward()
    assert policy.problem.get_parameter("dynamics.parametrizations.mass.original").grad is not None


@pytest.mark.parametrize(
    ("starts", "message"), [(0, "expected from 1 to 19"), (20, "expected from 1 to 19"), (True, "got True")]
)
def test_a_number_of_starts_that_there_is_not_is_refused(starts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"starts: .*{message}"):
        make(starts=starts)
    with pytest.raises(ValueError, match='starts: expected 1 with gradient="unroll"'):
        make(starts=2, gradient="unroll")


def test_with_little_time_an_episode_that_begins_beside_others_gets_its_share() -> None:
    """Rows that begin are planned apart from those that go on: with time enough, as if each kind were alone."""
    options = ILQROptions(max_iterations=50, tolerance=1e-5, max_seconds=60.0)
    policy = make("dilqr_rl/CartPole-v0", horizon=20, options=options, warm_start=True)
    seen, fresh = starts("dilqr_rl/CartPole-v0", 5), np.array([True, False, False, True, False])
    _, state = policy.predict(starts("dilqr_rl/CartPole-v0", 10)[5:])
    assert state is not None
    mixed, after, _ = policy.act(seen, state, fresh)
    begun, _, _ = policy.act(seen[fresh])
    going, left, _ = policy.act(seen[~fresh], tuple(part[~fresh] for part in state))
    np.testing.assert_array_equal(mixed[fresh], begun)
    np.testing.assert_array_equal(mixed[~fresh], going)
    np.testing.assert_array_equal(after.gains[~fresh], left.gains)


def test_a_plan_that_is_not_finite_is_replaced_by_the_last_one(caplog: pytest.LogCaptureFixture) -> None:
    policy = make("dilqr_rl/Pendulum-v0", horizon=5, warm_start=True)
    _, state = policy.predict(starts(IDS[0], 2))
    assert state is not None
    with torch.no_grad():
        policy.problem.dynamics.parametrizations.length.original.fill_(-400.0)  # a length of 1e-174: rates overflow
    actions, after, plan = policy.act(starts(IDS[0], 2), state, np.array([False, True]))
    assert (plan.status == Status.NONFINITE).all()
    assert "2 of 2 plans aren't finite" in caplog.text
    np.testing.assert_allclose(actions[0], state[1][0, 0] / policy.task.control_per_action, rtol=1e-6)
    np.testing.assert_array_equal(actions[1], 0.0)  # the middle
    np.testing.assert_array_equal(after.controls[0, :-1], state[1][0, 1:])


# What is learnt.


@given(names=st.sets(st.sampled_from(PENDULUM_PARAMETERS)))
@settings(max_examples=20)
def test_exactly_what_learn_names_requires_a_gradient(names: set[str]) -> None:
    assert learnt(make(learn=tuple(names))) == names


@pytest.mark.parametrize(
    ("learn", "expected"),
    [
        (("physics",), {"dynamics.mass", "dynamics.length", "dynamics.gravity"}),  # the others are zero
        (("weights",), {"stage_cost.weights"}),
        (("goal",), {"stage_cost.goal"}),
        (("goal", "dynamics.wind"), {"stage_cost.goal", "dynamics.wind"}),
        ((), set()),
    ],
)
def test_learn_has_names_for_groups(learn: tuple[str, ...], expected: set[str]) -> None:
    assert learnt(make(learn=learn)) == expected


@pytest.mark.parametrize("name", ["dynamics.colour", "mass", "terminal", "dynamics", "", "stage_cost"])
def test_a_name_that_the_problem_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"learn: the problem has nothing called '{name}'; it has .*physics.*dynamics\.mass"):
        make(learn=(name,))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_must_be_positive_stays_so_after_a_huge_step(sign: float) -> None:
    policy = make(learn=("physics", "weights"))
    optimiser = torch.optim.Adam(policy.problem.parameters(), lr=50.0)
    for parameter in policy.problem.parameters():
        parameter.grad = sign * torch.ones_like(parameter)
    optimiser.step()
    values = policy.parameter_values()
    for name in ("dynamics.mass", "dynamics.length", "stage_cost.weights"):
        assert (values[name] > 0).all()
        assert not torch.isclose(values[name], make().parameter_values()[name]).any()


def test_learning_does_not_change_what_a_parameter_is_worth() -> None:
    plain, every = make(learn=()), make(learn=PENDULUM_PARAMETERS)
    assert plain.parameter_values().keys() == every.parameter_values().keys() == set(PENDULUM_PARAMETERS)
    for name, value in plain.parameter_values().items():
        torch.testing.assert_close(every.parameter_values()[name], value, rtol=1e-15, atol=0.0)


def test_the_values_are_a_snapshot() -> None:
    policy = make(learn=("physics", "goal"))
    before = policy.parameter_values()
    with torch.no_grad():
        for parameter in policy.problem.parameters():
            parameter.add_(0.5)
    for name, value in policy.parameter_values().items():
        assert not torch.equal(before[name], value), name


def test_physics_replace_the_models() -> None:
    policy, seen = make(physics={"mass": 2.0, "gravity": -3.0}), near_upright(1)
    values = policy.parameter_values()
    assert values["dynamics.mass"].item() == pytest.approx(2.0, rel=1e-15)
    assert values["dynamics.gravity"].item() == pytest.approx(-3.0, rel=1e-15)
    assert values["dynamics.length"].item() == 1.0
    assert not np.allclose(policy.predict(seen)[0], make().predict(seen)[0])


def test_neither_the_environment_nor_another_policy_shares_the_parameters() -> None:
    env = make_env(IDS[0])
    task = find_task(env)
    first, second = (MPCPolicy(env.observation_space, env.action_space, lambda _: 0.0, task=task, horizon=5) for _ in range(2))
    with torch.no_grad():
        for parameter in first.problem.parameters():
            parameter.add_(1.0)
    assert second.parameter_values()["dynamics.mass"] == 1.0
    assert find_task(env).dynamics.mass == task.dynamics.mass == 1.0


@pytest.mark.parametrize(
    ("physics", "message"),
    [
        ({"colour": 1.0}, "physics: 'colour' is no parameter of this model; it has .*'mass'"),
        ({"mass": -1.0}, "physics: expected a number above 0 for 'mass', got -1.0"),
        ({"length": 0.0}, "physics: expected a number above 0 for 'length', got 0.0"),
        ({"gravity": float("nan")}, "physics: expected a finite number for 'gravity', got nan"),
        ({"mass": float("inf")}, "physics: expected a number above 0 for 'mass', got inf"),
    ],
)
def test_impossible_physics_are_refused(physics: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(physics=physics)


# A policy of SB3.


@each_id
def test_deepcopy_and_cloudpickle_act_alike(env_id: str) -> None:
    policy, seen = make(env_id, learn=("physics", "goal"), physics={"gravity": 9.0}), starts(env_id, 3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    for other in (copy.deepcopy(policy), cloudpickle.loads(cloudpickle.dumps(policy))):
        np.testing.assert_array_equal(other.predict(seen)[0], policy.predict(seen)[0])
        assert_same_tensors(raw(other), raw(policy))
        assert learnt(other) == learnt(policy)
        assert other.settings == policy.settings
        assert other.optimizer.state_dict() == policy.optimizer.state_dict()
        owned = {id(p) for group in other.optimizer.param_groups for p in group["params"]}
        assert owned == {id(p) for p in other.parameters()}
        assert not owned & {id(p) for p in policy.parameters()}


def test_every_argument_comes_back() -> None:
    given: dict[str, Any] = {
        "horizon": 4,
        "physics": {"mass": 2.0},
        "learn": ("goal", "dynamics.mass"),
        "options": ILQROptions(max_iterations=7, tolerance=1e-3),
        "gradient": "diffmpc",
        "warm_start": False,
        "net_arch": {"pi": [], "vf": [3]},
        "log_std_init": -1.0,
        "activation_fn": torch.nn.ReLU,
        "optimizer_kwargs": {"eps": 1e-3},
    }
    policy = make(**given)
    arguments = policy.constructor_arguments()
    assert {name: arguments[name] for name in given} == given
    rebuilt = MPCPolicy(**arguments)
    rebuilt.load_state_dict(policy.state_dict())
    again = rebuilt.constructor_arguments()
    assert again.keys() == arguments.keys()
    for name in arguments.keys() - {"lr_schedule"}:
        assert again[name] == arguments[name], name
    np.testing.assert_array_equal(rebuilt.predict(near_upright(2))[0], policy.predict(near_upright(2))[0])
    assert rebuilt.planner.options == given["options"]
    assert rebuilt.planner.gradient == "diffmpc"
    assert rebuilt.problem.horizon == 4


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_learning_at_rate_zero_changes_nothing(algorithm: type[PPO | A2C]) -> None:
    kwargs: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1} if algorithm is PPO else {"n_steps": 8}
    model = algorithm(
        MPCPolicy,
        "Pendulum-v1",
        policy_kwargs={"task": "Pendulum-v1", "horizon": 5},
        learning_rate=0.0,
        device="cpu",
        seed=0,
        **kwargs,
    )
    assert isinstance(model.policy, MPCPolicy)
    before = raw(model.policy)
    model.learn(16 if algorithm is PPO else 8)
    assert_same_tensors(raw(model.policy), before)
    if algorithm is PPO:
        assert model.logger.name_to_value["train/approx_kl"] == 0.0
    owned = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.policy.problem.parameters()} <= owned


def test_ppo_moves_what_is_learnt_alone() -> None:
    env = make_env("dilqr_rl/CartPole-v0")  # its forces are seldom at their bounds, where nothing can be learnt from them
    kwargs = {"task": find_task(env), "horizon": 5, "learn": ("dynamics.cart_mass", "goal"), "physics": {"cart_mass": 1.2}}
    model = PPO(MPCPolicy, env, policy_kwargs=kwargs, n_steps=16, batch_size=16, n_epochs=1, device="cpu", seed=0)
    assert isinstance(model.policy, MPCPolicy)
    before = model.policy.parameter_values()
    model.learn(16)
    moved = {name for name, value in model.policy.parameter_values().items() if not torch.equal(value, before[name])}
    assert moved == {"dynamics.cart_mass", "stage_cost.goal"}


def test_a_missing_task_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"task: expected a ControlTask or an environment's id, got None.*policy_kwargs.*for_env\(env\)"
    ):
        PPO(MPCPolicy, "Pendulum-v1", device="cpu")


def test_actions_in_another_unit_than_the_models_are_refused() -> None:
    env = RescaleAction(gym.make("Pendulum-v1"), np.float32(-1.0), np.float32(1.0))
    with pytest.raises(ValueError, match=r"action_space: expected actions from -2 to 2, the bounds of Pendulum-v1's model"):
        MPCPolicy.for_env(env)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (gym.spaces.Discrete(3), gym.spaces.Box(-2.0, 2.0, (1,)), "observation_space: expected a flat Box"),
        (gym.spaces.Box(-1.0, 1.0, (4, 3)), gym.spaces.Box(-2.0, 2.0, (1,)), "observation_space: expected a flat Box"),
        (gym.spaces.Box(-1.0, 1.0, (4,)), gym.spaces.Box(-2.0, 2.0, (1,)), r"observation_space: .*but its states have \(3,\)"),
        (gym.spaces.Box(-1.0, 1.0, (3,)), gym.spaces.Discrete(3), r"action_space: expected a Box of shape \(1,\)"),
        (gym.spaces.Box(-1.0, 1.0, (3,)), gym.spaces.Box(-2.0, 2.0, (2,)), r"action_space: expected a Box of shape \(1,\)"),
    ],
)
def test_spaces_that_do_not_fit_the_model_are_refused(observation_space: Any, action_space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MPCPolicy(observation_space, action_space, lambda _: 0.0, task="Pendulum-v1")


def test_state_dependent_noise_is_around_the_plan() -> None:
    policy, seen = make(use_sde=True, log_std_init=-4.0), np.repeat(near_upright(1), 50, axis=0)
    mean, _ = policy.predict(seen)
    policy.reset_noise(50)
    sampled, _ = policy.predict(seen, deterministic=False)
    assert len(np.unique(sampled)) == 50
    assert 0 < np.abs(sampled - mean).max() < 0.2


def test_squashing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"squash_output: expected False, got True\. Plans keep to the bounds"):
        make(use_sde=True, squash_output=True)


def test_layers_for_the_actor_are_refused() -> None:
    with pytest.raises(ValueError, match=r"net_arch: expected widths of the critic's layers, .*'pi': \[64\].*the actor plans"):
        make(net_arch={"pi": [64], "vf": [64]})


def test_a_plan_that_diverges_spoils_no_gradient_through_the_critic() -> None:
    class Diverging(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            return self.k * (x + u) * torch.where(x.abs() > 5, 1e30, 1.0) ** 12

    space = gym.spaces.Box(-10.0, 10.0, (1,))
    task = ControlTask(
        "Diverging", Diverging(), QuadraticCost([1.0, 1.0], [0.0, 0.0]), lambda seen: seen, horizon=3, state_size=1, control_size=1,
        u_min=-1.0, u_max=1.0,
    )  # fmt: skip
    actions = gym.spaces.Box(-1.0, 1.0, (1,))
    policy = MPCPolicy(space, actions, lambda _: 1e-3, task=task, learn=("dynamics.k",), plan_cost_feature=True)
    seen = torch.tensor([[0.3], [8.0]])
    assert not policy.plan(seen).cost[1].isfinite()
    values, log_prob, _ = policy.evaluate_actions(seen, torch.zeros(2, 1))
    (values.sum() + log_prob.sum()).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in policy.parameters())


@pytest.mark.parametrize("change", [{"control_per_action": 1.0}, {"horizon": 7}])
def test_a_changed_task_is_kept_or_refused(change: dict[str, Any], tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1")
    task = replace(find_task(env), **change)
    policy = MPCPolicy(env.observation_space, env.action_space, lambda _: 0.0, task=task)
    policy.save(tmp_path / "policy.safetensors")
    loaded = MPCPolicy.load(tmp_path / "policy.safetensors")
    assert loaded.problem.horizon == policy.problem.horizon
    np.testing.assert_array_equal(loaded.predict(near_upright(2))[0], policy.predict(near_upright(2))[0])


def test_a_task_with_other_functions_is_not_written(tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1")
    task = find_task(env)
    slower = replace(task, dynamics=PendulumDynamics(time_step=0.02))
    policy = MPCPolicy(env.observation_space, env.action_space, lambda _: 0.0, task=slower)
    with pytest.raises(ValueError, match="policy: expected the model of Pendulum-v1, got one with other settings or functions"):
        policy.save(tmp_path / "policy.safetensors")


SHARED = make("Pendulum-v1")
