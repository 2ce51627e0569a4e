"""One contract for every learner: fit, predict, plan, save, load in a fresh process, copies. test_resume.py has the rest."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_data import CHANGED, ENV, HORIZON, TINY, WRONG, episodes, equal, make, moved, plans, quick, tensors, upright
from safetensors import safe_open
from safetensors.torch import save_file
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from dilqr_rl.agents import CheckpointError, Demonstrations, MPCPolicy
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.learners import LEARNERS, Learner, PlanningLearner, load_learner

each_learner = pytest.mark.parametrize("name", LEARNERS)
OPTIONS: dict[str, dict[str, Any]] = {  # other than `quick` has them
    "nn": {"optimizer": "adam", "epochs": 25},
    "mlp": {"optimizer": "adam", "epochs": 25},
    "cost": {"epochs": 12},
    "cost_dx": {"epochs": 12},
    "lqr": {"epochs": 12},
}


@pytest.fixture(scope="module")
def data() -> dict[str, Demonstrations]:
    return {"plans": plans(8), "episodes": episodes(8)}


def mean_square(learner: Learner, data: Demonstrations) -> float:
    """Of the planned less the demonstrated controls, in their unit; by NumPy."""
    errors = []
    for episode in data.episodes:
        shown = learner.task.control_per_action * episode.actions
        if data.open_loop:
            errors.append(learner.plan(episode.observations[0]).numpy() - shown)
        else:
            errors.append(learner.plan(episode.observations[:-1])[:, 0].numpy() - shown)
    return float(np.square(np.concatenate(errors)).mean())


@each_learner
@pytest.mark.parametrize("kind", ["plans", "episodes"])
def test_a_fit_imitates_better_than_the_start(name: str, kind: str, data: dict[str, Demonstrations]) -> None:
    learner, (train, held_out) = make(name), (data[kind], {"plans": plans, "episodes": episodes}[kind](3, seed=1))
    before = mean_square(learner, held_out)
    assert learner.imitation_loss(held_out) == pytest.approx(before, rel=1e-5, abs=1e-12)  # the networks compute in float32
    result = learner.fit(train, held_out, quick(**OPTIONS.get(name, {})))
    after = mean_square(learner, held_out)
    assert after < 0.9 * before
    assert learner.imitation_loss(held_out) == pytest.approx(after, rel=1e-5, abs=1e-12)
    assert result.best_validation_loss < 0.9 * result.start_loss
    assert not learner.training
    assert result.seconds > 0


@each_learner
def test_plans_and_actions_have_their_shapes_and_units(name: str) -> None:
    learner, seen = make(name), upright(4, seed=2)
    before = tensors(learner)
    planned = learner.plan(seen)
    assert planned.shape == (4, HORIZON, 1)
    assert (planned.dtype, planned.requires_grad) == (torch.float64, False)
    one = learner.plan(seen[0])
    assert one.shape == (HORIZON, 1)
    torch.testing.assert_close(one, planned[0], rtol=1e-5, atol=1e-6)  # the networks compute in float32
    torch.testing.assert_close(learner.plan(torch.as_tensor(seen[:1])), planned[:1], rtol=1e-5, atol=1e-6)
    if isinstance(learner, PlanningLearner):
        hanging = learner.plan(np.array([[0.0, 1.0, 3.0]]))  # where torque is short
        assert hanging.abs().max() <= learner.task.u_max == 2.0
    assert equal(tensors(learner), before)
    for batch in (seen.astype(np.float32), seen[0].astype(np.float32)):
        action, _ = learner.predict(batch, deterministic=True)
        assert action.dtype == np.float32
        assert action.shape == (*batch.shape[:-1], 1)
        assert np.abs(action).max() <= 1.0  # the environment's own range; a torque of 2 N m is an action of 1
    assert not planned.grad_fn
    assert learner.training  # as it was before


@each_learner
def test_the_first_planned_control_is_the_action(name: str) -> None:
    learner, seen = make(name), upright(4, seed=2)
    expected = np.clip(learner.plan(seen)[:, 0].numpy() / 2.0, -1.0, 1.0)
    np.testing.assert_allclose(learner.predict(seen)[0], expected, atol=1e-6)


@each_learner
def test_stable_baselines3_evaluates_it(name: str) -> None:
    learner = make(name)

    def short() -> Any:
        return make_env(ENV, {"max_episode_steps": 5})

    returns, lengths = evaluate_policy(
        learner, DummyVecEnv([short, short]), n_eval_episodes=2, return_episode_rewards=True, warn=False
    )
    assert lengths == [5, 5]
    assert np.isfinite(returns).all()


@each_learner
def test_it_is_made_for_an_environment(name: str) -> None:
    env = make_env(ENV)
    learner = LEARNERS[name].for_env(env, **{**TINY[name], "horizon": 3})
    env.close()
    assert learner.task.name == ENV
    assert learner.plan(upright(1, 0)).shape == (1, 3, 1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Learner]]:
    """Of each learner a checkpoint of one that isn't as it starts."""
    folder = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for name in LEARNERS:
        learner = make(name, **CHANGED[name])
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in learner.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        learner.save(folder / name)
        found[name] = (folder / name, learner)
    return found


LOAD = """
import json, sys
import numpy as np, torch
from dilqr_rl.agents.learners import load_learner
torch.set_num_threads(1)
folder, names = sys.argv[1], sys.argv[2:]
seen, settings, plans = np.load(f"{folder}/seen.npy"), {}, {}
for name in names:
    learner = load_learner(f"{folder}/{name}")
    settings[name], plans[name] = learner.settings, learner.plan(seen).numpy()
np.savez(f"{folder}/plans.npz", **plans)
print(json.dumps(settings))
"""


@pytest.fixture(scope="module")
def loaded(saved: dict[str, tuple[Path, Learner]]) -> tuple[dict[str, Any], Any]:
    """Settings and plans of each learner, from a process that has seen nothing but the files."""
    folder = next(iter(saved.values()))[0].parent
    np.save(folder / "seen.npy", upright(5, seed=4))
    done = subprocess.run([sys.executable, "-c", LOAD, folder, *saved], check=True, capture_output=True, text=True)
    return json.loads(done.stdout), np.load(folder / "plans.npz")


@each_learner
def test_a_fresh_process_loads_every_setting_and_plans_the_same(
    name: str, saved: dict[str, tuple[Path, Learner]], loaded: tuple[dict[str, Any], Any]
) -> None:
    learner, (settings, planned) = saved[name][1], loaded
    assert settings[name] == learner.settings
    assert {**settings[name], **CHANGED[name]} == settings[name]
    assert np.array_equal(planned[name], learner.eval().plan(upright(5, seed=4)).numpy())


@each_learner
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda learner: pickle.loads(pickle.dumps(learner))])
def test_copies_plan_the_same_and_go_their_own_way(name: str, duplicate: Any, saved: dict[str, tuple[Path, Learner]]) -> None:
    learner = saved[name][1].eval()
    first = next(learner.parameters())
    first.requires_grad_(not first.requires_grad)
    other = duplicate(learner)
    assert type(other) is type(learner)
    assert other.settings == learner.settings
    assert not other.training
    assert equal(tensors(other), tensors(learner))
    grads = [{key: value.requires_grad for key, value in one.named_parameters()} for one in (learner, other)]
    assert grads[0] == grads[1]
    first.requires_grad_(not first.requires_grad)
    before, planned = tensors(learner), learner.plan(upright(3, 0))
    assert torch.equal(other.plan(upright(3, 0)), planned)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    assert equal(tensors(learner), before)


@each_learner
def test_a_checkpoint_of_another_learner_is_refused(name: str, saved: dict[str, tuple[Path, Learner]]) -> None:
    other = next(known for known in LEARNERS if known != name)
    with pytest.raises(
        CheckpointError, match=f"expected a checkpoint of the learner {name!r}, got one of {other!r}. Use .*load_learner"
    ):
        LEARNERS[name].load(saved[other][0])


def rewrite(source: Path, target: Path, change: Any = None, **metadata: str) -> Path:
    """A checkpoint with other metadata, or another configuration."""
    with safe_open(source, framework="pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        found = file.metadata()
    config = json.loads(found["config"])
    if change is not None:
        change(config, kept)
    save_file(kept, target, {**found, "config": json.dumps(config), **metadata})
    return target


@pytest.mark.parametrize(
    ("change", "metadata", "message"),
    [
        (None, {"version": "99"}, "expected format 'dilqr_rl learner', version '1', got .* version '99'. Read it with"),
        (None, {"format": "a cake"}, "got format 'a cake'"),
        (lambda config, _: config.update(learner="oracle"), {}, "expected a checkpoint of one of .*, got one of 'oracle'"),
        (lambda config, _: config["settings"].pop("gradient"), {}, "its settings lack .*gradient"),
        (lambda config, _: config["settings"].update(more=1), {}, "not a whole checkpoint of this version"),
        (lambda config, _: config["settings"]["solver"].update(more=1), {}, "not a whole checkpoint of this version"),
        (lambda config, _: config.pop("settings"), {}, "not a whole checkpoint of this version"),
        (lambda config, _: config.update(env_id="os:path"), {}, "'os:path' is not among the known ones"),
        (lambda config, _: config["task"].update(u_max=3.0), {}, "it was made with .*'u_max': 3.0.*; pass the same as task="),
        (lambda config, _: config["settings"]["solver"].pop("tolerance"), {}, "its solver's settings lack.*tolerance"),
        (lambda _, kept: kept.popitem(), {}, "not a whole checkpoint of this version.*Missing key"),
        (lambda _, kept: next(iter(kept.values())).fill_(float("nan")), {}, "hold NaN or infinity"),
    ],
)
def test_a_checkpoint_that_is_not_whole_or_of_another_version_is_refused(
    change: Any, metadata: dict[str, str], message: str, saved: dict[str, tuple[Path, Learner]], tmp_path: Path
) -> None:
    path = rewrite(saved["dx"][0], tmp_path / "changed", change, **metadata)
    with pytest.raises(CheckpointError, match=message):
        load_learner(path)


class Trap:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('executed')",))


@pytest.mark.parametrize("content", [pickle.dumps(Trap()), b"", b"nothing of the kind"], ids=["pickle", "empty", "text"])
def test_other_files_are_refused_and_never_executed(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    for load in (load_learner, LEARNERS["dx"].load):
        with pytest.raises(CheckpointError, match=r"expected a safetensors file as save writes it, .* Pickles are never read"):
            load(path)


def test_half_a_file_and_none_are_refused(saved: dict[str, tuple[Path, Learner]], tmp_path: Path) -> None:
    path = tmp_path / "half"
    whole = saved["dx"][0].read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="expected a safetensors file"):
        load_learner(path)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load_learner(tmp_path / "none")


def test_a_checkpoint_of_a_policy_is_refused(tmp_path: Path) -> None:
    with make_env(ENV) as env:
        MPCPolicy.for_env(env).save(tmp_path / "policy")
    with pytest.raises(CheckpointError, match=r"expected format 'dilqr_rl learner'.*got format 'dilqr_rl MPCPolicy'"):
        load_learner(tmp_path / "policy")


def test_a_task_given_to_load_must_be_the_checkpoints(saved: dict[str, tuple[Path, Learner]]) -> None:
    path, learner = saved["dx"]
    assert equal(tensors(load_learner(path, learner.task)), tensors(learner))
    with make_env("dilqr_rl/CartPole-v0") as env:
        other = LEARNERS["dx"].for_env(env).task
    with pytest.raises(
        CheckpointError, match="expected a checkpoint for dilqr_rl/CartPole-v0, as task= says, got one for dilqr_rl/Pendulum-v0"
    ):
        load_learner(path, other)


def test_a_checkpoint_is_written_whole_and_never_over_another(saved: dict[str, tuple[Path, Learner]]) -> None:
    path, learner = saved["dx"]
    with pytest.raises(FileExistsError, match="exists already"):
        learner.save(path)
    learner.save(path, overwrite=True)
    assert sorted(file.name for file in path.parent.glob(".*")) == []


def test_the_physics_of_the_environment_come_back(tmp_path: Path) -> None:
    with make_env(ENV, {"physics": {"length": 0.7}}) as env:
        learner = LEARNERS["dx"].for_env(env, horizon=HORIZON)
    learner.save(tmp_path / "file")
    back = load_learner(tmp_path / "file")
    assert back.task.env_kwargs == learner.task.env_kwargs != {}
    start, controls = upright(2, 0), torch.ones(2, 3, 1, dtype=torch.float64)
    assert np.array_equal(moved(back, start, controls), moved(learner, start, controls))


def test_what_is_learnt_can_be_read(data: dict[str, Demonstrations]) -> None:
    learner = make("dx", gradient="diffmpc")
    assert {name: float(value) for name, value in learner.readable_parameters().items()} == pytest.approx(
        {"dynamics.gravity": 10.0, "dynamics.mass": WRONG["mass"], "dynamics.length": WRONG["length"]}
    )
    assert set(make("cost_dx").readable_parameters()) == {
        *learner.readable_parameters(),
        "stage_cost.weights",
        "stage_cost.goal",
    }
    assert make("cost").readable_parameters()["stage_cost.weights"].tolist() == pytest.approx([0.5] * 4)
