"""What CONVENTIONS.md asks of a policy on stock Stable-Baselines3, P1 to P13: each has a test of its name."""

from __future__ import annotations

import ast
import copy
import csv
import gc
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import learner_data
import numpy as np
import pytest
import torch
from gymnasium.wrappers import NormalizeObservation
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_data import (
    ENV,
    HORIZON,
    POLICIES,
    STEPS,
    TINY,
    assert_same,
    batch,
    both,
    described,
    model,
    near_upright,
    observed,
    planning,
    policy,
    shake,
    state_beside,
    tensors,
)
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

from dilqr_rl import ILQROptions, find_task
from dilqr_rl.agents import CostMap, MPCPolicy, MPCSACPolicy, MPCTD3Policy, PlanningPolicy, SolverHealthCallback
from dilqr_rl.agents.learners import RecurrentLearner

pytestmark = pytest.mark.slow  # once, with the checkout; not again with the wheel

SMALL_MAP = CostMap(hidden=(4,))
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
each_algorithm = pytest.mark.parametrize("algorithm", POLICIES)
each_kind = pytest.mark.parametrize("kind", [MPCPolicy, MPCSACPolicy, MPCTD3Policy])
# Everything of `PlanningPolicy`'s own, other than its default.
OWN: dict[str, Any] = {
    "horizon": 3,
    "physics": {"mass": 1.5},
    "learn": ("goal", "terminal"),
    "options": ILQROptions(max_iterations=9, tolerance=1e-4),
    "gradient": "diffmpc",
    "model_rate": 2.0,
    "cost_map": CostMap(("weights",), per_step=False, hidden=(3,)),
    "terminal_value": (5,),
    "activation_fn": torch.nn.ELU,
    "optimizer_kwargs": {"eps": 1e-4},
}
OWN_BY_KIND: dict[type[PlanningPolicy], dict[str, Any]] = {
    MPCPolicy: {
        "warm_start": True,  # which off-policy algorithms refuse
        "plan_cost_feature": True,
        "share_features_extractor": False,
        "net_arch": {"pi": [], "vf": [6]},
        "log_std_init": -0.5,
        "ortho_init": False,
    },
    MPCSACPolicy: {
        "squash_margin": 0.1,
        "share_features_extractor": True,
        "n_critics": 3,
        "net_arch": {"pi": [3], "qf": [6]},
        "log_std_init": -2.0,
    },
    MPCTD3Policy: {"share_features_extractor": True, "n_critics": 1, "net_arch": {"pi": [], "qf": [6]}},
}


def run(program: str, folder: Path) -> str:
    """What a fresh process prints."""
    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    arguments = [sys.executable, "-W", "error::UserWarning", "-c", "import torch; torch.set_num_threads(1)\n" + program]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def means(a_policy: Any, seen: Any) -> torch.Tensor:
    """The actor's mean actions (B, m), as training sees them: in the environment's unit, or within [-1, 1] off policy."""
    seen = {name: torch.as_tensor(part) for name, part in seen.items()} if isinstance(seen, dict) else torch.as_tensor(seen)
    with torch.no_grad():
        if isinstance(a_policy, MPCPolicy):
            return a_policy(seen, deterministic=True)[0]
        return a_policy.actor(seen, deterministic=True) if isinstance(a_policy, MPCSACPolicy) else a_policy.actor(seen)


# P1: stock algorithms, by class and by name.


@pytest.mark.parametrize(("algorithm", "kind"), [*POLICIES.items(), (DDPG, MPCTD3Policy)])
def test_p1_by_class_and_by_name(algorithm: type[Any], kind: type[PlanningPolicy]) -> None:
    by_class = algorithm(kind, ENV, policy_kwargs=planning(), device="cpu")
    by_name = algorithm("MPCPolicy", ENV, policy_kwargs=planning(), device="cpu")
    assert type(by_class.policy) is type(by_name.policy) is kind
    seen = observed(2)
    np.testing.assert_array_equal(*(one.predict(seen, deterministic=True)[0] for one in (by_class, by_name)))


@pytest.mark.slow
def test_p1_importing_the_agents_is_enough_and_patches_nothing(tmp_path: Path) -> None:
    program = f"""
from stable_baselines3 import A2C, DDPG, PPO, SAC, TD3
classes = {{base for one in (A2C, DDPG, PPO, SAC, TD3) for base in one.__mro__}}
def picture():
    return {{(one, name): id(value) for one in classes for name, value in vars(one).items()}}
before = picture()
import dilqr_rl.agents, sys
assert picture() == before
assert "sb3_contrib" not in sys.modules
for one in (PPO, A2C, SAC, TD3, DDPG):
    print(type(one("MPCPolicy", "{ENV}", policy_kwargs={{"task": "{ENV}"}}, device="cpu").policy).__name__)
"""
    assert run(program, tmp_path).split() == ["MPCPolicy", "MPCPolicy", "MPCSACPolicy", "MPCTD3Policy", "MPCTD3Policy"]


# P2: nothing is hidden.

VARIANTS: dict[str, dict[str, Any]] = {
    "gaussian": {},
    "sde": {"use_sde": True},
    "cost map": {"policy_kwargs": {"cost_map": SMALL_MAP, "learn": ("physics", "weights")}},
    "cost feature": {"policy_kwargs": {"plan_cost_feature": True}},
    "sde, cost map and feature": {"use_sde": True, "policy_kwargs": {"cost_map": SMALL_MAP, "plan_cost_feature": True}},
    "warm start": {"policy_kwargs": {"warm_start": True}},
    "extractors apart": {"policy_kwargs": {"share_features_extractor": False, "plan_cost_feature": True}},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_p2_ppo_at_rate_zero_logs_no_divergence(variant: str) -> None:
    ppo = model(PPO, batch(3), learning_rate=0.0, **VARIANTS[variant])
    shake(ppo.policy)
    before = tensors(ppo.policy)
    ppo.learn(STEPS)
    assert ppo.logger.name_to_value["train/approx_kl"] == 0.0
    assert ppo.logger.name_to_value["train/clip_fraction"] == 0.0
    assert_same(tensors(ppo.policy), before)


@pytest.mark.parametrize("variant", VARIANTS)
def test_p2_a2c_finds_the_log_probabilities_that_its_rollout_stored(variant: str) -> None:
    a2c = model(A2C, batch(3), learning_rate=0.0, **VARIANTS[variant])
    shake(a2c.policy)
    a2c.learn(STEPS)
    (stored,) = a2c.rollout_buffer.get(batch_size=None)
    _, log_prob, _ = a2c.policy.evaluate_actions(stored.observations, stored.actions)
    assert torch.equal(log_prob, stored.old_log_prob)


# P3: a batch is its members.


@given(order=st.permutations(range(5)))
@settings(max_examples=5)
def test_p3_permuting_a_batch_permutes_what_is_evaluated(order: list[int]) -> None:
    one, seen = EVALUATED, torch.as_tensor(observed(5, spread=0.3))
    with torch.no_grad():
        actions, values, log_prob = one(seen)
        evaluated, again, entropy = one.evaluate_actions(seen, actions)
        permuted = one.evaluate_actions(seen[order], actions[order])
    assert torch.equal(log_prob, again)
    assert torch.equal(values, evaluated)
    for part, whole in zip(permuted, (values, log_prob, entropy), strict=True):
        torch.testing.assert_close(part, whole[order], rtol=1e-6, atol=1e-6)  # float32


@given(at=st.integers(1, 4))
@settings(max_examples=4)
def test_p3_splitting_a_batch_splits_what_is_evaluated(at: int) -> None:
    one, seen = EVALUATED, torch.as_tensor(observed(5, spread=0.3))
    with torch.no_grad():
        actions, values, log_prob = one(seen)
        parts = [one.evaluate_actions(seen[half], actions[half])[:2] for half in (slice(0, at), slice(at, 5))]
    for index, whole in enumerate((values, log_prob)):
        torch.testing.assert_close(torch.cat([part[index] for part in parts]), whole, rtol=1e-6, atol=1e-6)  # float32


@each_kind
def test_p3_a_batch_of_means_is_a_loop_over_its_members(kind: type[PlanningPolicy]) -> None:
    one, seen = policy(kind, cost_map=SMALL_MAP), observed(5, spread=0.3)
    shake(one)
    whole = means(one, seen)
    singly = torch.cat([means(one, seen[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(singly, whole, rtol=1e-6, atol=1e-6)  # float32
    assert torch.equal(means(one, seen[::-1].copy()), whole.flip(0))


EVALUATED = policy(cost_map=SMALL_MAP, plan_cost_feature=True)
shake(EVALUATED)


# P4: within the bounds, without clipping.


@given(angle=st.floats(-np.pi, np.pi), rate=st.floats(-8.0, 8.0))
@settings(max_examples=30)
def test_p4_means_lie_within_the_bounds(angle: float, rate: float) -> None:
    seen = np.array([[np.cos(angle), np.sin(angle), rate]], dtype=np.float32)
    for one in BOUNDED:
        low, high = (-2.0, 2.0) if isinstance(one, MPCPolicy) else (-1.0, 1.0)
        assert low <= means(one, seen).item() <= high


@each_kind
@pytest.mark.parametrize("bounds", [(-0.3, 1.1, 0.7), (-1.7, -0.1, 1.3)])
def test_p4_bounds_may_be_any_and_in_other_units(kind: type[PlanningPolicy], bounds: tuple[float, float, float]) -> None:
    low, high, unit = bounds
    task = find_task(gym.make(ENV))
    task = task.__class__(**{**vars(task), "u_min": low, "u_max": high, "control_per_action": unit})
    actions = gym.spaces.Box(np.float32(low / unit), np.float32(high / unit), (1,))
    one: Any = kind(gym.spaces.Box(-9.0, 9.0, (3,)), actions, lambda _: 0.0, **planning(task=task))
    found = means(one, np.concatenate((observed(20), observed(20, spread=3.0)))).numpy()
    low, high = (actions.low, actions.high) if kind is MPCPolicy else (-1.0, 1.0)
    assert len(np.unique(found)) > 2
    # A bound divided by a unit is rounded, once to the space's float32 and once on the way.
    assert (found >= low - 2e-7).all()
    assert (found <= high + 2e-7).all()


BOUNDED = [policy(kind) for kind in (MPCPolicy, MPCSACPolicy, MPCTD3Policy)]


# P5: states as they are.


def normalised(make: Any = near_upright, **arguments: Any) -> VecNormalize:
    return VecNormalize(batch(2, make), **arguments)


@each_algorithm
@pytest.mark.parametrize(("make", "keys"), [(near_upright, None), (state_beside, None), (state_beside, ["state"])])
def test_p5_normalised_states_are_refused_at_construction(algorithm: type[Any], make: Any, keys: Any) -> None:
    with pytest.raises(ValueError, match=r"env: .*normalised by a VecNormalize\. .*norm_obs=False .*norm_obs_keys="):
        model(algorithm, normalised(make, norm_obs_keys=keys))


@each_algorithm
def test_p5_normalised_states_are_refused_on_loading(algorithm: type[Any], tmp_path: Path) -> None:
    model(algorithm).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"env: expected states as they are, got them normalised"):
        algorithm.load(tmp_path / "model", env=normalised())
    algorithm.load(tmp_path / "model", env=normalised(norm_obs=False)).learn(STEPS)


@each_algorithm
def test_p5_normalised_states_are_refused_where_they_come_later(algorithm: type[Any]) -> None:
    one = model(algorithm)
    one.set_env(normalised())
    with pytest.raises(ValueError, match=r"env: expected states as they are, got them normalised"):
        one.learn(STEPS)


@each_algorithm
def test_p5_the_wrapper_of_gymnasium_is_refused(algorithm: type[Any]) -> None:
    with pytest.raises(ValueError, match=r"env: expected raw observations, got a NormalizeObservation wrapper"):
        model(algorithm, batch(2, lambda: NormalizeObservation(near_upright())))


@each_algorithm
def test_p5_normalised_rewards_are_fine(algorithm: type[Any]) -> None:
    model(algorithm, normalised(norm_obs=False)).learn(STEPS)


@each_algorithm
def test_p5_a_plan_starts_from_the_raw_state_beside_normalised_observations(algorithm: type[Any]) -> None:
    envs = normalised(state_beside, norm_obs_keys=["obs"])
    one = model(algorithm, envs)
    one.learn(STEPS)
    seen = both(observed(5, spread=0.3))
    told = envs.normalize_obs(seen)
    assert not np.allclose(told["obs"], seen["obs"])
    learnt = {name: one.policy.parameter_values()[f"dynamics.{name}"].item() for name in ("mass", "length", "gravity")}
    expected, _ = policy(physics=learnt).predict(seen["state"])
    np.testing.assert_allclose(one.predict(told, deterministic=True)[0], expected, rtol=0.0, atol=1e-6)  # float32


# P6: what is saved comes back, in any process.


def changed(kind: type[PlanningPolicy]) -> Any:
    one = policy(kind, **{**OWN, **OWN_BY_KIND[kind]})
    shake(one)
    return one


@each_algorithm
def test_p6_every_argument_and_every_bit_comes_back(algorithm: type[Any], tmp_path: Path) -> None:
    kwargs = {**OWN, **OWN_BY_KIND[POLICIES[algorithm]]}
    # A2C's own RMSprop takes the place of whatever optimizer_kwargs say.
    saved = model(algorithm, policy_kwargs=kwargs, **({"use_rms_prop": False} if algorithm is A2C else {}))
    saved.learn(STEPS)
    saved.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model")
    arguments = loaded.policy.constructor_arguments()
    assert {name: arguments[name] for name in kwargs} == kwargs
    assert described(loaded.policy) == described(saved.policy)
    assert_same(tensors(loaded.policy), tensors(saved.policy))


@pytest.mark.slow
def test_p6_a_fresh_process_loads_the_same(tmp_path: Path) -> None:
    saved, seen = {}, observed(4, spread=0.3)
    np.save(tmp_path / "seen.npy", seen)
    for algorithm in (PPO, SAC, TD3):
        one = saved[algorithm.__name__] = model(algorithm, policy_kwargs={**OWN, **OWN_BY_KIND[POLICIES[algorithm]]})
        shake(one.policy)
        one.save(tmp_path / algorithm.__name__)
    program = """
import json, numpy as np, stable_baselines3 as sb3
from policy_data import described
import dilqr_rl.agents
arguments = {}
for name in ("PPO", "SAC", "TD3"):
    model = getattr(sb3, name).load(name)
    np.save(name + "_actions.npy", model.predict(np.load("seen.npy"), deterministic=True)[0])
    arguments[name] = described(model.policy)
print(arguments)
"""
    assert run(program, tmp_path) == f"{ {name: described(one.policy) for name, one in saved.items()} }\n"
    for name, one in saved.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}_actions.npy"), one.predict(seen, deterministic=True)[0])


@each_kind
def test_p6_safetensors_keep_every_argument_and_every_bit(kind: type[PlanningPolicy], tmp_path: Path) -> None:
    given = {**OWN, **OWN_BY_KIND[kind]}
    del given["activation_fn"]  # code
    saved = policy(kind, **given)
    shake(saved)
    saved.save(tmp_path / "policy.safetensors")
    loaded: Any = kind.load(tmp_path / "policy.safetensors", device="cpu")
    arguments = loaded.constructor_arguments()
    assert {name: arguments[name] for name in given} == given
    assert described(loaded) == described(saved)
    assert_same(tensors(loaded), tensors(saved))
    np.testing.assert_array_equal(*(one.predict(observed(3, spread=0.3))[0] for one in (loaded, saved)))


# P7: the traps.


@each_algorithm
@pytest.mark.parametrize("learn", [("physics", "weights", "goal"), ("terminal",)])
def test_p7_the_optimiser_owns_every_parameter_once(algorithm: type[Any], learn: tuple[str, ...]) -> None:
    one = model(algorithm, policy_kwargs={"learn": learn, "cost_map": CostMap(("goal",), hidden=(4,)), "terminal_value": (5,)})
    owner = one.policy if algorithm in (PPO, A2C) else one.actor
    owned = [id(parameter) for group in owner.optimizer.param_groups for parameter in group["params"]]
    assert sorted(owned) == sorted(id(parameter) for parameter in owner.parameters())
    assert {id(parameter) for parameter in one.policy.planning.parameters()} <= set(owned)
    if algorithm in (SAC, TD3):
        critics = {id(parameter) for group in one.critic.optimizer.param_groups for parameter in group["params"]}
        assert not critics & set(owned)


@pytest.mark.parametrize("ortho_init", [True, False])
def test_p7_networks_in_the_model_keep_the_weights_they_were_drawn_with(ortho_init: bool) -> None:
    one = policy(cost_map=SMALL_MAP, terminal_value=(5,), learn=("terminal",), ortho_init=ortho_init)
    planned = one.planning
    for network in (planned.cost_map.network, planned.planner.problem.terminal_cost.network):
        first, last = network[0], network[-1]
        assert not last.weight.any()
        assert not last.bias.any()
        assert first.bias.all()  # orthogonal layers have biases of zero
        assert first.weight.abs().max() <= 1 / np.sqrt(first.in_features)


@each_kind
@pytest.mark.parametrize("gradient", ["implicit", "diffmpc", "unroll"])
def test_p7_it_plans_without_gradients(kind: type[PlanningPolicy], gradient: Any) -> None:
    one, seen = policy(kind, gradient=gradient, cost_map=SMALL_MAP), torch.as_tensor(observed(3))
    with torch.no_grad():
        without = one.planning(seen, seen)
    assert not without.requires_grad
    torch.testing.assert_close(without, one.planning(seen, seen).detach(), rtol=0.0, atol=1e-5)  # the solver's tolerance


@each_algorithm
def test_p7_what_is_learnt_moves_and_nothing_else(algorithm: type[Any]) -> None:
    one = model(algorithm, policy_kwargs={"learn": ("physics", "goal"), "physics": {"mass": 1.5}}, learning_rate=0.01)
    before = one.policy.parameter_values()
    one.learn(STEPS)
    moved = {name for name, value in one.policy.parameter_values().items() if not torch.equal(value, before[name])}
    assert moved == {"dynamics.mass", "dynamics.length", "dynamics.gravity", "stage_cost.goal"}


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
