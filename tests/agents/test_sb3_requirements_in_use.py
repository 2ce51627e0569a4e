"""What CONVENTIONS.md asks of a policy on stock Stable-Baselines3 while it is in use, P8 to P13: each has a test of its name."""

from __future__ import annotations

import ast
import copy
import csv
import gc
import inspect
import os
import sys
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import learner_data
import numpy as np
import pytest
import torch
from policy_data import (
    ENV,
    HORIZON,
    STEPS,
    TINY,
    assert_same,
    batch,
    described,
    model,
    near_upright,
    observed,
    policy,
    tensors,
)
from requirements_data import EXAMPLES, SMALL_MAP, each_algorithm, each_kind
from stable_baselines3 import A2C, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from dilqr_rl import ILQROptions
from dilqr_rl.agents import MPCPolicy, PlanningPolicy, SolverHealthCallback
from dilqr_rl.agents.learners import RecurrentLearner

pytestmark = pytest.mark.slow  # once, with the checkout; not again with the wheel


# P8: predictions leave nothing behind.


@each_kind
def test_p8_predict_builds_no_graph(kind: type[PlanningPolicy]) -> None:
    one = policy(kind, cost_map=SMALL_MAP)
    _, _, plan = one.act(observed(2), deterministic=False)
    assert plan.controls.grad_fn is None
    assert not plan.cost.requires_grad
    assert torch.is_grad_enabled()
    assert one.plan(observed(2)).controls.requires_grad


@pytest.mark.slow
@each_kind
def test_p8_memory_stays_flat(kind: type[PlanningPolicy]) -> None:
    one, seen = policy(kind, warm_start=True), observed(1)[0]

    def predict(times: int) -> None:
        state = None
        for _ in range(times):
            _, state = one.predict(seen, state, np.zeros(1, dtype=bool), deterministic=False)
        gc.collect()

    predict(300)  # fills the interpreter's and torch's lists of free objects
    blocks, resident = sys.getallocatedblocks(), resident_bytes()
    predict(700)
    assert sys.getallocatedblocks() - blocks < 350  # one for every second call; a tensor that is kept takes three
    assert resident_bytes() - resident < 1_000_000  # 1.4 kB for each call, less than a plan's tensors take


def resident_bytes() -> int:
    path = Path("/proc/self/statm")
    if not path.exists():
        pytest.skip("no /proc")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# P9: other processes, and copies.


@pytest.mark.slow
def test_p9_it_trains_on_processes_as_in_one() -> None:
    processes = SubprocVecEnv([near_upright] * 2)
    for algorithm in (PPO, SAC):
        trained = [model(algorithm, envs).learn(STEPS).policy for envs in (processes, batch(2))]
        assert_same(*map(tensors, trained))
    processes.close()


@each_algorithm
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: cloudpickle.loads(cloudpickle.dumps(one))])
def test_p9_copies_are_the_same_and_go_on_alike(algorithm: type[Any], copied: Any) -> None:
    kwargs = {"cost_map": SMALL_MAP, "terminal_value": (5,), "learn": ("goal", "terminal")}
    one = model(algorithm, policy_kwargs=kwargs)
    one.learn(STEPS)
    original, other = one.policy, copied(one.policy)
    assert_same(tensors(other), tensors(original))
    assert described(other) == described(original)
    assert not {id(p) for p in other.parameters()} & {id(p) for p in original.parameters()}
    assert [p.requires_grad for p in other.parameters()] == [p.requires_grad for p in original.parameters()]
    for each in (original, other):
        owner = each if algorithm in (PPO, A2C) else each.actor
        owner.optimizer.zero_grad()
        each.plan(observed(3)).controls.sum().backward()
        owner.optimizer.step()
    assert_same(tensors(other), tensors(original))
    if algorithm in (SAC, TD3):
        states = [each.critic.optimizer.state_dict()["state"] for each in (original, other)]
        assert states[0].keys() == states[1].keys()
        assert states[0]


@pytest.mark.skipif(not EXAMPLES, reason="not in a checkout")
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_p9_examples_do_nothing_when_they_are_imported(path: Path) -> None:
    *body, last = ast.parse(path.read_text()).body
    assert isinstance(last, ast.If)
    assert ast.unparse(last.test) == "__name__ == '__main__'"
    quiet = ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign
    for statement in body:
        docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
        assert docstring or isinstance(statement, quiet), ast.unparse(statement)


# P10: the solver's health is data.


def logged(one: Any, folder: Path, **arguments: Any) -> list[dict[str, str]]:
    one.set_logger(configure(str(folder), ["csv"]))
    one.learn(2 * STEPS, log_interval=1, **arguments)
    one.logger.close()
    with (folder / "progress.csv").open() as file:
        return list(csv.DictReader(file))


@each_algorithm
def test_p10_health_and_physics_are_logged(algorithm: type[Any], tmp_path: Path) -> None:
    one = model(algorithm, policy_kwargs={"physics": {"mass": 1.5}}, learning_rate=0.01)
    rows = logged(one, tmp_path, callback=SolverHealthCallback())
    told = [row for row in rows if row["mpc/converged"]]
    assert len(told) >= 2
    for row in told:
        assert float(row["mpc/converged"]) == 1.0
        assert 1.0 <= float(row["mpc/iterations"]) <= 50.0
        assert 0.0 <= float(row["mpc/residual"]) <= 1e-5  # the tolerance
        assert float(row["mpc/dynamics.length"]) > 0
    masses = [float(row["mpc/dynamics.mass"]) for row in told]
    assert masses[0] == pytest.approx(1.5, abs=0.1)
    assert masses[-1] != masses[0]


class Repair(BaseCallback):
    """From the fourth step on, every plan converges."""

    def _on_step(self) -> bool:
        if self.n_calls == 3:
            self.model.policy.planner.options = ILQROptions(tolerance=1e-10)
        return True


@each_algorithm
def test_p10_plans_that_do_not_converge_are_seen(algorithm: type[Any], tmp_path: Path) -> None:
    """The first plans are cut off, those just before the log's first line aren't."""
    starts = {"learning_starts": 1} if algorithm in (SAC, TD3) else {}
    one = model(algorithm, batch(1), policy_kwargs={"options": ILQROptions(max_iterations=1, tolerance=1e-12)}, **starts)
    rows = [row for row in logged(one, tmp_path, callback=[SolverHealthCallback(), Repair()]) if row["mpc/converged"]]
    assert float(rows[0]["mpc/converged"]) < 0.9
    assert float(rows[0]["mpc/residual"]) > 1e-10


def test_p10_a_policy_that_does_not_plan_is_refused() -> None:
    ppo = PPO("MlpPolicy", ENV, n_steps=4, batch_size=4, device="cpu")
    with pytest.raises(ValueError, match=r"model: expected one whose policy plans, such as MPCPolicy, got ActorCriticPolicy"):
        ppo.learn(4, callback=SolverHealthCallback())


# P11: callbacks, progress bar, TensorBoard.


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", [PPO, SAC])
@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_p11_callbacks_progress_bar_and_tensorboard(algorithm: type[Any], tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    evaluation = EvalCallback(
        batch(1), n_eval_episodes=1, eval_freq=3, best_model_save_path=str(tmp_path / "best"), verbose=0, warn=False
    )
    callbacks = [evaluation, CheckpointCallback(3, str(tmp_path / "all")), SolverHealthCallback()]
    one = model(algorithm, tensorboard_log=str(tmp_path / "board"))
    one.learn(2 * STEPS, callback=callbacks, progress_bar=True, log_interval=1, tb_log_name="run")
    assert np.isfinite(evaluation.best_mean_reward)
    seen = observed(3)
    for path in (tmp_path / "best" / "best_model.zip", *sorted((tmp_path / "all").glob("*.zip"))):
        assert algorithm.load(path).predict(seen)[0].shape == (3, 1)
    events = reading.EventAccumulator(str(tmp_path / "board" / "run_1"))
    events.Reload()
    assert {"mpc/converged", "mpc/residual", "mpc/dynamics.mass", "eval/mean_reward"} <= set(events.Tags()["scalars"])


# P12: the LSTM baseline is asked as Stable-Baselines3's own.


def recurrent() -> tuple[RecurrentLearner, Any]:
    contrib = pytest.importorskip("sb3_contrib")
    kwargs = {"lstm_hidden_size": 8, "net_arch": [4]}
    theirs = contrib.RecurrentPPO("MlpLstmPolicy", ENV, n_steps=4, batch_size=4, policy_kwargs=kwargs, device="cpu", seed=0)
    return RecurrentLearner(ENV, horizon=HORIZON, width=8), theirs


def test_p12_the_lstm_learner_is_called_as_recurrent_ppo() -> None:
    ours, theirs = recurrent()
    names = [list(inspect.signature(one.predict).parameters) for one in (ours, theirs, theirs.policy)]
    assert names[0] == names[1] == names[2]


@pytest.mark.parametrize("count", [None, 1, 3])
def test_p12_the_lstm_learner_returns_what_recurrent_ppo_returns(count: int | None) -> None:
    seen = observed(1)[0] if count is None else observed(count)
    found = []
    for one in recurrent():
        action, state = one.predict(seen, deterministic=True)
        again, after = one.predict(seen, state, np.zeros(count or 1, dtype=bool), deterministic=True)
        found.append([(type(part), part.shape, part.dtype) for part in (action, again, *state, *after)])
        assert isinstance(state, tuple)
    assert found[0] == found[1]


def test_p12_the_lstm_learner_keeps_its_state_as_recurrent_ppo() -> None:
    first, second, begins = observed(3), observed(3, seed=1), np.array([False, True, False])
    for one in recurrent():
        _, state = one.predict(first, episode_start=np.ones(3, dtype=bool), deterministic=True)
        kept = [part.copy() for part in state]
        mixed, after = one.predict(second, state, begins, deterministic=True)
        fresh, fresh_after = one.predict(second, None, np.ones(3, dtype=bool), deterministic=True)
        carried, carried_after = one.predict(second, state, np.zeros(3, dtype=bool), deterministic=True)
        np.testing.assert_allclose(mixed, np.where(begins[:, None], fresh, carried), atol=1e-6)
        for part, new, old in zip(after, fresh_after, carried_after, strict=True):
            np.testing.assert_allclose(part, np.where(begins[None, :, None], new, old), atol=1e-6)
        assert (np.abs(fresh_after[0] - carried_after[0]) > 1e-6).any()
        for part, before in zip(state, kept, strict=True):
            np.testing.assert_array_equal(part, before)


# P13: from cloning to reinforcement.


def own_pendulum(count: int, steps: int = 8) -> DummyVecEnv:
    return make_vec_env("dilqr_rl.envs:dilqr_rl/Pendulum-v0", count, env_kwargs={"max_episode_steps": steps})


@each_algorithm
def test_p13_the_first_evaluation_is_that_of_the_learner(algorithm: type[Any]) -> None:
    learner: Any = learner_data.make("cost_dx")
    learner.fit(learner_data.plans(4), learner_data.plans(2, seed=1), learner_data.quick(epochs=3))
    envs = own_pendulum(2)
    settings = {name: value for name, value in TINY[algorithm].items() if name != "action_noise"}
    one = learner.to_sb3(algorithm, envs, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu", learning_rate=0.01, **settings)
    returns = []
    for asked in (learner, one):
        envs.seed(7)
        returns.append(evaluate_policy(asked, envs, n_eval_episodes=4, return_episode_rewards=True)[0])
    assert returns[0] == returns[1]
    assert len(set(returns[0])) == 4
    assert one.policy.settings["learn"] == learner.learns
    before = one.policy.parameter_values()
    for name, value in learner.readable_parameters().items():
        torch.testing.assert_close(before[name], value, rtol=1e-12, atol=0.0)
    one.learn(STEPS)
    assert any(not torch.equal(one.policy.parameter_values()[name], before[name]) for name in learner.readable_parameters())


def test_p13_an_algorithm_that_has_no_planner_is_refused() -> None:
    learner: Any = learner_data.make("dx")
    with pytest.raises(ValueError, match=r"algorithm: expected PPO, A2C, SAC or TD3 of stable_baselines3, or .*contrib, got"):
        learner.to_sb3(MPCPolicy, own_pendulum(1))
