"""`predict`: what a controller carries from one decision to the next, and where its plans start."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from controller_data import HASTY, IDS, each_id, make, near_upright, starts
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from dilqr_rl import ILQROptions, MultiStart, Solution, Status
from dilqr_rl.agents import PlanState
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.plan_state import like
from dilqr_rl.multi_start import swings

# SB3's predict.


@each_id
def test_predict_has_the_shapes_of_sb3(env_id: str) -> None:
    policy, seen = make(env_id), starts(env_id, 3)
    m = policy.task.control_size
    actions, state = policy.predict(seen)
    assert actions.shape == (3, m)
    assert actions.dtype == policy.action_space.dtype
    n = policy.task.state_size
    shapes = [(3,), (3, 5, m), (3, 6, n), (3, 5, m, n), (3, m), (3, m), (3, 0)]
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


@pytest.mark.parametrize(
    "state",
    [(), (np.zeros((2, 5, 1)),), (np.zeros((3, 4, 1)),), (np.zeros((3, 5, 1)),) * 2, np.zeros((3, 5, 1)), (None,)],
    ids=["nothing", "batch", "horizon", "two", "no tuple", "None"],
)
def test_a_state_of_another_shape_is_refused(state: Any) -> None:
    with pytest.raises(
        ValueError, match=r"state: expected what the last predict returned, 7 arrays of shapes \[\(3,\), \(3, 5, 1\)"
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
    _, state = make("dilqr_rl/Pendulum-v0", horizon=5, warm_start=True).predict(starts(IDS[0], 2))
    policy = overflowing(warm_start=True)
    assert state is not None
    actions, after, plan = policy.act(starts(IDS[0], 2), state, np.array([False, True]))
    assert (plan.status == Status.NONFINITE).all()
    assert "2 of 2 plans aren't finite" in caplog.text
    np.testing.assert_allclose(actions[0], state[1][0, 0] / policy.task.control_per_action, rtol=1e-6)
    np.testing.assert_array_equal(actions[1], 0.0)  # the middle
    np.testing.assert_array_equal(after.controls[0, :-1], state[1][0, 1:])


def overflowing(**settings: Any) -> Any:
    policy = make("dilqr_rl/Pendulum-v0", horizon=5, **settings)
    with torch.no_grad():
        policy.problem.dynamics.parametrizations.length.original.fill_(-400.0)  # a length of 1e-174: rates overflow
    return policy


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_forward_pass_says_once_that_the_middle_of_the_bounds_is_in_a_plans_place(caplog: pytest.LogCaptureFixture) -> None:
    policy, seen = overflowing(), torch.as_tensor(starts(IDS[0], 3))
    caplog.set_level(logging.INFO, "dilqr_rl")
    for _ in range(3):
        mean, _, _ = policy(seen, deterministic=True)
        policy.evaluate_actions(seen, mean.detach())
    assert (mean == 0.0).all()
    assert warnings_of(caplog) == ["3 of 3 plans aren't finite: the middle of the bounds is in their place"]
    assert len([one for one in caplog.messages if "aren't finite" in one]) == 6  # the others at level INFO


@pytest.mark.parametrize("warm", [False, True])
def test_a_budget_that_holds_no_iteration_is_said_once(warm: bool, caplog: pytest.LogCaptureFixture) -> None:
    seen, enough = starts(IDS[0], 3), ILQROptions(max_seconds=60.0)
    for options, said in ((enough, 0), (ILQROptions(max_seconds=1e-6), 1)):
        policy, state = make("dilqr_rl/Pendulum-v0", horizon=5, warm_start=warm, options=options), None
        for _ in range(7):
            _, state, plan = policy.act(seen, state, np.zeros(3, dtype=bool) if state else None)
        told = [message for message in warnings_of(caplog) if "too short for a single iteration with 3 problems" in message]
        assert len(told) == said
        assert (plan.num_iterations == 0).all() == bool(said)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": np.full(3, 7)}, r"state: expected version 1 of its layout, got \[7\]\. Another release"),
        ({"controls": np.zeros((3, 5, 1), dtype=complex)}, r"state: expected what the last predict returned.*complex128"),
        ({"gains": np.full((3, 5, 1, 3), None)}, r"state: expected what the last predict returned.*object"),
    ],
)
def test_a_state_of_another_release_or_of_no_numbers_is_refused(change: dict[str, Any], message: str) -> None:
    policy, seen = make(), starts(IDS[0], 3)
    _, state, _ = policy.act(seen)
    with pytest.raises(ValueError, match=message):
        policy.predict(seen, state._replace(**change), np.zeros(3, dtype=bool))


SHARED = make("Pendulum-v1")
