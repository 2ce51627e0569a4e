"""What of an environment a policy's checkpoint holds: its spaces, as they were, and no wrapper."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from policy_data import ENV, POLICIES, StateBeside
from safetensors import safe_open
from safetensors.torch import save_file

from dilqr_rl import find_task
from dilqr_rl.agents import CheckpointError, CostMap, MPCPolicy, PhysicsLearner, PlanningPolicy
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.space_files import space_from_json, space_to_json
from dilqr_rl.envs import ContextObservation

each_kind = pytest.mark.parametrize("kind", sorted(set(POLICIES.values()), key=str))


@each_kind
def test_a_dict_of_parts_comes_back(kind: type[PlanningPolicy], tmp_path: Path) -> None:
    policy = kind.for_env(StateBeside(gym.make(ENV)), horizon=3, cost_map=CostMap())
    policy.save(tmp_path / "policy.safetensors")
    again = kind.load(tmp_path / "policy.safetensors")
    assert again.observation_space == policy.observation_space
    policy.observation_space.seed(0)
    seen = policy.observation_space.sample()
    assert np.array_equal(again.predict(seen)[0], policy.predict(seen)[0])
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "policy.safetensors").read_bytes()


class Marked(gym.ObservationWrapper[Any, Any, Any]):
    """A part that a checkpoint has no words for."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"state": env.observation_space, "marks": spaces.MultiBinary(2)})

    def observation(self, observation: Any) -> Any:
        return {"state": observation, "marks": np.zeros(2, np.int8)}


def test_parts_without_words_are_refused_by_name(tmp_path: Path) -> None:
    policy = MPCPolicy.for_env(Marked(gym.make(ENV)), horizon=3)
    with pytest.raises(ValueError, match=r"policy: expected Box, Discrete or Dict spaces, got MultiBinary\(2\), which"):
        policy.save(tmp_path / "policy.safetensors")
    assert not list(tmp_path.iterdir())


def test_another_reading_of_observations_is_refused(tmp_path: Path) -> None:
    own = find_task(gym.make(ENV))
    backwards = replace(own, observation_to_state=lambda seen: own.observation_to_state(-seen))
    with pytest.raises(ValueError, match="policy: expected the model of Pendulum-v1, got one with other settings or functions"):
        MPCPolicy.for_env(gym.make(ENV), task=backwards).save(tmp_path / "policy.safetensors")


def test_spaces_that_ask_for_much_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.safetensors"
    MPCPolicy.for_env(StateBeside(gym.make(ENV)), horizon=3, net_arch=[]).save(path)
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    box = {"kind": "box", "dtype": "float32", "low": -1.0, "high": 1.0}
    for parts, message in ((1, "far more numbers"), (4, "no space that can be read")):
        config = json.loads(metadata["config"])
        config["spaces"][0]["spaces"].update({str(number): {**box, "shape": [3_000_000]} for number in range(parts)})
        save_file(tensors, path, {**metadata, "config": json.dumps(config)})
        with pytest.raises(CheckpointError, match=message):
            MPCPolicy.load(path)


def test_a_learner_of_another_task_is_whole(tmp_path: Path) -> None:
    learner = PhysicsLearner(ENV, horizon=3)
    learner.save(tmp_path / "learner.safetensors")
    other = replace(learner.task, u_max=1.0)
    with pytest.raises(CheckpointError, match=r"learner\.safetensors: it was made with .* pass the same as task="):
        PhysicsLearner.load(tmp_path / "learner.safetensors", task=other)


def test_parts_of_an_observation_keep_their_order() -> None:
    """Features stand in it."""
    parts = OrderedDict((name, spaces.Box(-1.0, 1.0, (2,))) for name in ("state", "b", "a"))
    found: Any = space_from_json(json.loads(json.dumps(space_to_json(spaces.Dict(parts)))))
    assert list(found.spaces) == ["state", "b", "a"]


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (3,), np.float64),
        spaces.Box(np.array([-1.0, -np.inf]), np.array([1.0, 2.0]), dtype=np.float64),
        spaces.Box(0, 255, (4, 8, 8), np.uint8),
        spaces.Discrete(3, start=-1),
        spaces.Dict({"state": spaces.Box(-1.0, 1.0, (2,)), "picture": spaces.Box(0, 255, (3, 8, 8), np.uint8)}),
    ],
)
def test_spaces_come_back_from_json(space: spaces.Space[Any]) -> None:
    assert space_from_json(json.loads(json.dumps(space_to_json(space)))) == space


@pytest.mark.parametrize(
    "told", [None, {}, {"kind": "box", "shape": [10**9], "dtype": "uint8", "low": 0, "high": 1}, {"kind": "dict", "spaces": 3}]
)
def test_what_is_no_space_is_refused(told: Any) -> None:
    with pytest.raises(ValueError, match="no space that can be read"):
        space_from_json(told)
    with pytest.raises(ValueError, match="policy: expected Box, Discrete or Dict spaces, got MultiBinary"):
        space_to_json(spaces.MultiBinary(3))


def test_a_wrapped_environment_is_not_kept_and_says_so(tmp_path: Path) -> None:
    policy = MPCPolicy.for_env(ContextObservation(make_env("dilqr_rl/Pendulum-v0")), horizon=3)
    with pytest.raises(
        ValueError, match=r"policy: expected observations \(3,\), as dilqr_rl/Pendulum-v0 has them, got \(8,\)\."
    ):
        policy.save(tmp_path / "policy.safetensors")
    assert not list(tmp_path.iterdir())
