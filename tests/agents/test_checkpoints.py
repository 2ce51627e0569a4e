"""Checkpoints: what goes in comes out, bit for bit; and a file is nothing that could be executed."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike

from dilqr_rl import ILQROptions, find_task, register_task, tasks
from dilqr_rl.agents import CheckpointError, MPCPolicy
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.files import write_whole

SETTINGS: dict[str, Any] = {
    "horizon": 6,
    "physics": {"mass": 2.0, "gravity": 9.0},
    "learn": ("physics", "goal"),
    "options": ILQROptions(max_iterations=30, tolerance=1e-6, line_search_steps=7),
    "gradient": "diffmpc",
    "warm_start": False,
    "net_arch": {"pi": [], "vf": [5, 4]},
    "log_std_init": -1.5,
    "optimizer_kwargs": {"eps": 1e-3},
}
KEPT = (*SETTINGS, "ortho_init", "normalize_images", "observation_space", "action_space")


def make(env_id: str = "dilqr_rl/Pendulum-v0", env_kwargs: dict[str, Any] | None = None, **settings: Any) -> MPCPolicy:
    """A policy whose every tensor has been moved from where it starts."""
    env = make_env(env_id, env_kwargs)
    policy = MPCPolicy.for_env(env, **{"horizon": 6, **settings})
    env.close()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return policy


def observations(policy: MPCPolicy, count: int = 4) -> NDArray[np.float32]:
    policy.observation_space.seed(0)
    return np.float32(0.1) * np.stack([policy.observation_space.sample() for _ in range(count)])


def parts(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        return {**file.metadata(), "config": json.loads(file.metadata()["config"])}, tensors


def put(path: Path, metadata: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, path, {**metadata, "config": json.dumps(metadata["config"])})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "policy.safetensors"
    make().save(path)
    return path


@pytest.mark.parametrize(
    ("env_id", "env_kwargs"),
    [
        ("dilqr_rl/Pendulum-v0", {"physics": {"length": 0.7}, "max_torque": 3.0}),
        ("dilqr_rl/CartPole-v0", {"max_force": 30.0}),
        ("Pendulum-v1", {"g": 9.81}),
    ],
)
def test_a_round_trip_keeps_every_bit(env_id: str, env_kwargs: dict[str, Any], tmp_path: Path) -> None:
    policy = make(env_id, env_kwargs)
    policy.save(tmp_path / "policy.safetensors")
    loaded = MPCPolicy.load(tmp_path / "policy.safetensors")
    seen = observations(policy)
    (actions, state), (again, state_again) = policy.predict(seen), loaded.predict(seen)
    np.testing.assert_array_equal(actions, again)
    for part, part_again in zip(state or (), state_again or (), strict=True):
        np.testing.assert_array_equal(part, part_again)
    assert loaded.state_dict().keys() == policy.state_dict().keys()
    for name, tensor in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert loaded.task.name == env_id
    assert loaded.task.env_kwargs == env_kwargs
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in policy.parameters()]


def test_a_round_trip_keeps_every_setting(tmp_path: Path) -> None:
    policy = make(**SETTINGS)
    policy.save(tmp_path / "policy.safetensors")
    loaded = MPCPolicy.load(tmp_path / "policy.safetensors").constructor_arguments()
    assert {name: loaded[name] for name in KEPT} == {name: policy.constructor_arguments()[name] for name in KEPT}


@pytest.mark.parametrize("kind", [RMSpropTFLike, torch.optim.SGD])
def test_known_optimisers_are_kept_by_name(kind: type[torch.optim.Optimizer], tmp_path: Path) -> None:
    make(optimizer_class=kind, optimizer_kwargs={"weight_decay": 0.1}).save(tmp_path / "policy.safetensors")
    loaded = MPCPolicy.load(tmp_path / "policy.safetensors")
    assert type(loaded.optimizer) is kind
    assert loaded.optimizer.param_groups[0]["weight_decay"] == 0.1


def test_what_was_loaded_is_saved_as_it_was(saved: Path, tmp_path: Path) -> None:
    MPCPolicy.load(saved).save(tmp_path / "again.safetensors")
    (metadata, tensors), (metadata_again, tensors_again) = parts(saved), parts(tmp_path / "again.safetensors")
    assert metadata_again == metadata
    assert tensors_again.keys() == tensors.keys()
    assert all(torch.equal(tensors_again[name], tensor) for name, tensor in tensors.items())


@pytest.mark.slow
def test_a_fresh_process_acts_alike(tmp_path: Path) -> None:
    policy = make(**SETTINGS)
    policy.save(tmp_path / "policy.safetensors")
    seen = observations(policy)
    np.save(tmp_path / "seen.npy", seen)
    program = """
import numpy as np, torch
from dilqr_rl import MPCPolicy
torch.set_num_threads(1)
np.save("actions.npy", MPCPolicy.load("policy.safetensors").predict(np.load("seen.npy"))[0])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "actions.npy"), policy.predict(seen)[0])


def test_numbers_of_numpy_among_the_settings_are_kept(tmp_path: Path) -> None:
    make(physics={"mass": np.float32(2.5)}, env_kwargs={"max_torque": np.float32(1.5)}).save(tmp_path / "policy.safetensors")
    loaded = MPCPolicy.load(tmp_path / "policy.safetensors")
    assert loaded.settings["physics"] == {"mass": 2.5}
    assert loaded.task.env_kwargs == {"max_torque": 1.5}


# What is no checkpoint.


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize(
    "write", [lambda path, bomb: path.write_bytes(pickle.dumps(bomb)), lambda path, bomb: torch.save(bomb, path)]
)
def test_a_crafted_pickle_is_refused_and_not_executed(write: Callable[[Path, Bomb], Any], tmp_path: Path) -> None:
    path, marker = tmp_path / "policy.pt", tmp_path / "executed"
    write(path, Bomb(marker))
    with pytest.raises(CheckpointError, match=r"expected a safetensors file as save writes it.*Pickles are never read"):
        MPCPolicy.load(path)
    assert not marker.exists()
    if path.read_bytes().startswith(b"PK"):
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert marker.exists()  # the bomb was live


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(share: float, saved: Path) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="expected a safetensors file"):
        MPCPolicy.load(saved)


def test_a_damaged_file_is_refused_or_read_never_anything_else(saved: Path) -> None:
    whole = saved.read_bytes()
    refused = 0
    for place in range(0, 4000, 53):
        damaged = bytearray(whole)
        damaged[place] ^= 0x11
        saved.write_bytes(damaged)
        try:
            MPCPolicy.load(saved)
        except CheckpointError:
            refused += 1
    assert refused > 40  # of 76; a flipped digit makes another number


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors: there is no such file"):
        MPCPolicy.load(tmp_path / "nowhere.safetensors")


def test_a_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "policy.safetensors")
    with pytest.raises(
        CheckpointError, match="expected format 'dilqr_rl MPCPolicy', version '1', got format None, version None"
    ):
        MPCPolicy.load(tmp_path / "policy.safetensors")


@pytest.mark.parametrize(("key", "value"), [("format", "another"), ("version", "2"), ("version", "")])
def test_another_format_or_version_is_refused(key: str, value: str, saved: Path) -> None:
    metadata, tensors = parts(saved)
    put(saved, {**metadata, key: value}, tensors)
    with pytest.raises(CheckpointError, match=rf"expected format 'dilqr_rl MPCPolicy', version '1', got .*{key} '{value}'"):
        MPCPolicy.load(saved)


def _in_settings(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda config: config["settings"].update(changes)


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda config: config.update(env_id="os:Foo-v0"), "environment 'os:Foo-v0' is not among the known ones"),
        (lambda config: config.update(env_id="FrozenLake-v1"), "environment 'FrozenLake-v1' is not among the known ones"),
        (lambda config: config.update(env_id=["Pendulum-v1"]), "is not among the known ones"),
        (lambda config: config.update(env_kwargs={"colour": 1}), "colour"),
        (lambda config: config.update(env_kwargs=3), "not a whole checkpoint"),
        (lambda config: config.update(env_kwargs={"max_episode_steps": "many"}), "not a whole checkpoint"),
        (lambda config: config.pop("settings"), "settings"),
        (lambda config: config.update(settings=[]), "not a whole checkpoint"),
        (lambda config: config["settings"].pop("warm_start"), "warm_start"),
        (lambda config: config["settings"].pop("physics"), "physics"),
        (lambda config: config["settings"]["options"].pop("tolerance"), "tolerance"),
        (lambda config: config["settings"]["options"].update(colour=1), "colour"),
        (lambda config: config["network"].pop("log_std_init"), "log_std_init"),
        (lambda config: config["network"].update(net_arch="wide"), "not a whole checkpoint"),
        (lambda config: config["network"].update(activation_fn="os.system"), "activation_fn"),
        (
            lambda config: config["network"].update(optimizer_class="os.system"),
            r"optimizer_class: expected one of \['RMSpropTFLike'",
        ),
        (lambda config: config["network"].update(features_extractor_class="os.system"), "features_extractor_class"),
        (_in_settings(colour=1), "colour"),
        (_in_settings(horizon=-1), "horizon: expected a positive integer"),
        (_in_settings(horizon="six"), "horizon: expected a positive integer"),
        (_in_settings(learn=["colour"]), "learn: the problem has nothing called 'colour'"),
        (_in_settings(learn=5), "not a whole checkpoint"),
        (_in_settings(learn=[]), "not a whole checkpoint"),
        (_in_settings(physics={"mass": -1.0}), "physics: expected a number above 0"),
        (_in_settings(physics=[1]), "not a whole checkpoint"),
        (_in_settings(physics={"mass": "heavy"}), "not a whole checkpoint"),
        (_in_settings(gradient="magic"), "gradient: expected one of"),
        (_in_settings(options=None), "not a whole checkpoint"),
    ],
)
def test_tampered_settings_are_refused(tamper: Callable[[dict[str, Any]], Any], message: str, saved: Path) -> None:
    metadata, tensors = parts(saved)
    tamper(metadata["config"])
    put(saved, metadata, tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        MPCPolicy.load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("config", ["", "{", "[]", "3", "null"])
def test_settings_that_are_no_json_object_are_refused(config: str, saved: Path) -> None:
    metadata, tensors = parts(saved)
    save_file(tensors, saved, {**metadata, "config": config})
    with pytest.raises(CheckpointError, match="its settings"):
        MPCPolicy.load(saved)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(bad: float, saved: Path) -> None:
    metadata, tensors = parts(saved)
    name = next(name for name in tensors if "mass" in name)
    put(saved, metadata, {**tensors, name: torch.full_like(tensors[name], bad)})
    with pytest.raises(CheckpointError, match=r"mass.* hold NaN or infinity"):
        MPCPolicy.load(saved)


def test_missing_further_or_reshaped_tensors_are_refused(saved: Path) -> None:
    metadata, tensors = parts(saved)
    name = next(name for name in tensors if "mass" in name)
    changed = [
        {key: tensor for key, tensor in tensors.items() if key != name},
        {**tensors, "more": torch.zeros(1)},
        {**tensors, name: torch.ones(3)},  # of several numbers, torch 2.8 would take the first,
        {**tensors, name: torch.ones(1)},  # and any torch a single one
    ]
    for other in changed:
        put(saved, metadata, other)
        with pytest.raises(CheckpointError, match="not a whole checkpoint of this version"):
            MPCPolicy.load(saved)


# Writing.


def test_nothing_is_overwritten_without_being_asked(saved: Path) -> None:
    before = saved.read_bytes()
    other = make(physics={"mass": 3.0})
    with pytest.raises(FileExistsError, match=r"policy\.safetensors exists already.*overwrite=True"):
        other.save(saved)
    assert saved.read_bytes() == before
    other.save(saved, overwrite=True)
    assert MPCPolicy.load(saved).settings["physics"] == {"mass": 3.0}
    assert list(saved.parent.iterdir()) == [saved]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere doesn't exist"):
        make().save(tmp_path / "nowhere" / "policy.safetensors")


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_write_that_fails_leaves_all_as_it_was(overwrite: bool, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Path.write_bytes

    def fail(path: Path, content: bytes) -> None:
        write(path, content[:99])
        raise OSError(28, "the disk is full")

    monkeypatch.setattr(Path, "write_bytes", fail)
    before, path = saved.read_bytes(), saved if overwrite else saved.with_name("other.safetensors")
    with pytest.raises(OSError, match=rf"could not be written: the disk is full: '{path}'"):
        make().save(path, overwrite=overwrite)
    assert list(saved.parent.iterdir()) == [saved]
    assert saved.read_bytes() == before


def test_somebody_who_was_faster_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write(temporary: Path) -> None:
        temporary.write_text("ours")
        path.write_text("theirs")

    with pytest.raises(FileExistsError):
        write_whole(path, write, overwrite=False)
    assert path.read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_file_has_the_permissions_of_any_new_file(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_a_policy_whose_task_nobody_knows_is_kept_without_its_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_registered", dict(tasks._registered))
    register_task("Mine-v0", "dilqr_rl.envs.pendulum_v1:pendulum_v1_task")
    monkeypatch.setitem(gym.registry, "Mine-v0", EnvSpec("Mine-v0", gym.spec("Pendulum-v1").entry_point))
    env = make_env("Mine-v0")
    task = replace(find_task(env), name="Mine-v0")
    policy = MPCPolicy(env.observation_space, env.action_space, lambda _: 0.0, task=task, horizon=3)
    policy.save(tmp_path / "known.safetensors")
    del tasks._registered["Mine-v0"]
    file = tmp_path / "unknown.safetensors"
    policy.save(file)
    with pytest.raises(
        CheckpointError, match=r"unknown\.safetensors: its environment 'Mine-v0' is not among the known ones, .* as task="
    ):
        MPCPolicy.load(file)
    with pytest.raises(CheckpointError, match=r"unknown\.safetensors: task: expected that of 'Mine-v0', got that of"):
        MPCPolicy.load(file, task=find_task(gym.make("Pendulum-v1")))
    again = MPCPolicy.load(file, task=task)
    assert again.observation_space == policy.observation_space
    assert again.action_space == policy.action_space
    seen = np.array([0.99, 0.1, 0.0], np.float32)
    for kept in (again, MPCPolicy.load(tmp_path / "known.safetensors", task=task)):  # that one's id was known when it was saved
        assert np.array_equal(kept.predict(seen)[0], policy.predict(seen)[0])
    with pytest.raises(CheckpointError, match=r"task: expected one with .*'u_max': 2.0.*, got one with .*'u_max': 0.5"):
        MPCPolicy.load(file, task=replace(task, u_max=0.5))


def test_observations_are_tried_from_their_space(tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1")
    task = find_task(env)

    def strict(observation: torch.Tensor) -> torch.Tensor:
        if bool((observation[..., :2].abs() > 1.001).any()):
            raise ValueError("a cosine or sine above 1")
        return task.observation_to_state(observation)

    policy = MPCPolicy.for_env(env, task=replace(task, observation_to_state=strict))
    policy.save(tmp_path / "policy.safetensors")
    assert MPCPolicy.load(tmp_path / "policy.safetensors").task.name == "Pendulum-v1"


def test_other_discrete_controls_than_the_environments_are_told_on_saving(tmp_path: Path) -> None:
    env = gym.make("CartPole-v1")
    swapped = replace(find_task(env), discrete_controls=[[10.0], [-10.0]])
    with pytest.raises(ValueError, match="policy: expected the model of CartPole-v1, got one with other settings"):
        MPCPolicy.for_env(env, task=swapped).save(tmp_path / "swapped.safetensors")


def test_code_is_not_kept_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy: \['activation_fn'\] can't be kept in a checkpoint"):
        make(activation_fn=torch.nn.ReLU).save(tmp_path / "policy.safetensors")
    assert not list(tmp_path.iterdir())
