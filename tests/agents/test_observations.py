"""Observations as one array or as named ones: from every form in which people have them, to files, folders and learners."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_data import ENV, episodes, equal, expert, make, moved, quick, tensors

from dilqr_rl import MPCPolicy
from dilqr_rl.agents import Demonstrations, DemonstrationsError, SystemIdentification, check_disjoint, record
from dilqr_rl.agents.exchange import from_imitation, from_minari, to_minari

NAMES = st.lists(
    st.sampled_from(["state", "frames", "depth", "touch", "goal", "robot/arm", "robot/hand.2", "clock", "time"]),
    min_size=1,
    max_size=5,
    unique=True,
)


def seen(names: list[str], steps: int, seed: int) -> dict[str, Any]:
    """Named arrays of one episode: bytes and other whole numbers for frames, flat or plain numbers for the rest."""
    rng = np.random.default_rng(seed)
    made: dict[str, Any] = {name: rng.normal(size=(steps + 1, 3)) for name in names}
    kinds = {
        "frames": rng.integers(0, 256, (steps + 1, 4, 5, 2)).astype(np.uint8),
        "depth": rng.integers(0, 2**16, (steps + 1, 4, 5)).astype(np.uint16),
        "touch": rng.integers(0, 2, (steps + 1, 2)).astype(bool),
        "time": 2**60 + np.arange(steps + 1),  # nanoseconds
        "clock": rng.normal(size=steps + 1).astype(np.float32),
        "goal": rng.normal(size=(steps + 1, 2)).astype(np.float32),
    }
    return made | {name: part for name, part in kinds.items() if name in made}


def demonstrations(names: list[str], lengths: list[int]) -> Demonstrations:
    return Demonstrations.from_arrays(
        ENV,
        [seen(names, steps, seed) for seed, steps in enumerate(lengths)],
        [np.random.default_rng(seed).normal(size=(steps, 1)) for seed, steps in enumerate(lengths)],
    )


def assert_same(a: Demonstrations, b: Demonstrations) -> None:
    assert (a.env_id, a.env_kwargs, a.open_loop, len(a)) == (b.env_id, b.env_kwargs, b.open_loop, len(b))
    for one, other in zip(a.episodes, b.episodes, strict=True):
        parts = [e.observations if isinstance(e.observations, dict) else {"": e.observations} for e in (one, other)]
        assert parts[0].keys() == parts[1].keys()
        for name in parts[0]:
            np.testing.assert_array_equal(parts[0][name], parts[1][name], strict=True)
        np.testing.assert_array_equal(one.actions, other.actions, strict=True)
        np.testing.assert_array_equal(one.rewards, other.rewards, strict=True)
        assert (one.terminated, one.truncated) == (other.terminated, other.truncated)


@given(names=NAMES, lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4))
@settings(max_examples=15)
def test_files_and_folders_keep_every_bit(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], lengths: list[int]
) -> None:
    data, folder = demonstrations(names, lengths), tmp_path_factory.mktemp("observations")
    data.save(folder / "file.npz")
    data.save(folder / "again.npz")
    data.save_folder(folder / "mapped")
    assert_same(Demonstrations.load(folder / "file.npz"), data)
    assert (folder / "file.npz").read_bytes() == (folder / "again.npz").read_bytes()
    mapped = Demonstrations.load(folder / "mapped")
    assert_same(mapped, data)
    for one in mapped.episodes:
        for part in one.observations.values():  # type: ignore[union-attr]
            assert isinstance(part, np.memmap)
            assert not part.flags.writeable
    assert mapped.overlap(data) == data.overlap(data)


def test_every_form_in_which_people_have_them_is_the_same() -> None:
    names, steps = ["state", "frames", "robot/arm"], 3
    parts = [seen(names, steps, seed) for seed in range(2)]
    actions = np.zeros((2, steps, 1))
    nested = [{**{n: e[n] for n in names[:2]}, "robot": {"arm": e["robot/arm"]}} for e in parts]
    stepwise = [
        [{"state": e["state"][t], "frames": e["frames"][t], "robot": {"arm": e["robot"]["arm"][t]}} for t in range(steps + 1)]
        for e in nested
    ]
    columns = {name: np.stack([e[name] for e in parts]) for name in names}
    expected = Demonstrations.from_arrays(ENV, parts, actions)
    for form in (nested, stepwise, columns, tuple(nested)):
        assert_same(Demonstrations.from_arrays(ENV, form, actions), expected)
        chosen = Demonstrations.from_arrays(ENV, form, actions, key="robot/arm")
        assert_same(chosen, expected.part("robot/arm"))
        np.testing.assert_array_equal(chosen.episodes[1].observations, parts[1]["robot/arm"])
    parts[0]["state"][:] = 7.0
    assert not (expected.episodes[0].state_observations == 7.0).any()  # they were copied


@pytest.mark.parametrize(
    ("observations", "key", "message"),
    [
        ([{"a": np.zeros((4, 3))}], "b", r"key: expected the part .* one of \['a'\], got no part 'b'"),
        ([{"a": np.zeros((4, 3))}], 3, r"one of \['a'\], got no part 3"),
        (np.zeros((1, 4, 3)), "a", "key: expected None, since the observations are arrays without names, got 'a'"),
        ([{"a": np.zeros((4, 3)), "f": np.zeros((4, 2, 2))}], "f", r"flat numbers \(k,\), .* got 'f' of shape \(2, 2\)"),
        ([{"a": np.array([["x"]] * 4)}], None, r"observations\[0\]\['a'\]: expected an array of numbers, got ndarray"),
        ([{"a": np.zeros((3, 3))}], None, r"expected observations/a of shape \(4, 3\), got \(3, 3\)\. An episode has one"),
        ([{"a": np.full((4, 3), np.nan)}], None, "observations/a hold NaN"),
        ([{}], None, r"observations: expected parts, got an empty dictionary\."),
        ([{1: np.zeros((4, 3))}], None, r"expected names of parts, texts of at most 250 bytes .*, got 1\."),
        (
            {"a": np.zeros((1, 4, 3)), "b": np.zeros((2, 4, 3))},
            None,
            "equally many episodes in every part, got {'a': 1, 'b': 2}",
        ),
        ([[{"a": [0.0]}, {"b": [0.0]}, {"a": [0.0]}, {"a": [0.0]}]], None, "expected the same parts in every step"),
    ],
)
def test_what_holds_no_observations_is_refused_by_name(observations: Any, key: Any, message: str) -> None:
    with pytest.raises(DemonstrationsError, match=message):
        Demonstrations.from_arrays(ENV, observations, np.zeros((1, 3, 1)), key=key)


def test_episodes_with_other_parts_are_refused() -> None:
    parts = [{"state": np.zeros((4, 3))}, {"state": np.zeros((4, 3)), "goal": np.zeros((4, 2))}]
    with pytest.raises(DemonstrationsError, match=r"episode 1: expected \['observations/state'\], as the first one has, got"):
        Demonstrations.from_arrays(ENV, parts, np.zeros((2, 3, 1)))


# Folders.


def test_maps_are_shared_and_written_onto_themselves(tmp_path: Path) -> None:
    np.save(tmp_path / "frames.npy", np.zeros((2, 4, 8, 8, 3), np.uint8))
    frames = np.load(tmp_path / "frames.npy", mmap_mode="r")
    data = Demonstrations.from_arrays(ENV, {"state": np.zeros((2, 4, 3)), "frames": frames}, np.zeros((2, 3, 1)))
    assert np.shares_memory(data.episodes[1].observations["frames"], frames)  # type: ignore[call-overload]
    data.save_folder(tmp_path / "data")
    with pytest.raises(FileExistsError, match="exists already"):
        data.save_folder(tmp_path / "data")
    loaded = Demonstrations.load(tmp_path / "data")
    loaded.save_folder(tmp_path / "data", overwrite=True)  # onto itself
    assert_same(Demonstrations.load(tmp_path / "data"), data)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "frames.npy"]
    (tmp_path / "mine").mkdir()
    with pytest.raises(FileExistsError, match=r"mine exists already and can't be overwritten: it holds no demon"):
        data.save_folder(tmp_path / "mine", overwrite=True)  # no demonstrations, so nothing to overwrite
    with pytest.raises(FileNotFoundError, match=r"the folder .* doesn't exist"):
        data.save_folder(tmp_path / "nowhere" / "data")


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    data = Demonstrations.from_arrays(ENV, [{"../state": np.zeros((4, 3))}], np.zeros((1, 3, 1)))
    with pytest.raises(DemonstrationsError, match=r"got 'observations/\.\./state'\. Rename it, or write a \.npz"):
        data.save_folder(tmp_path / "data")
    assert list(tmp_path.iterdir()) == []
    data.save(tmp_path / "data.npz")
    assert_same(Demonstrations.load(tmp_path / "data.npz"), data)


def _without(folder: Path) -> None:
    (folder / "actions.npy").unlink()


def _objects(folder: Path) -> None:
    np.save(folder / "actions.npy", np.array([{}] * 7, dtype=object), allow_pickle=True)


def _cut_short(folder: Path) -> None:
    path = folder / "observations" / "state.npy"
    path.write_bytes(path.read_bytes()[:-8])


def _elsewhere(folder: Path) -> None:
    header = json.loads((folder / "header.json").read_text())
    np.save(folder.parent / "state.npy", np.zeros((9, 3)))
    (folder / "header.json").write_text(json.dumps({**header, "parts": ["../../state"]}))


def _other_format(folder: Path) -> None:
    header = json.loads((folder / "header.json").read_text())
    (folder / "header.json").write_text(json.dumps({**header, "version": 9}))


def _no_header(folder: Path) -> None:
    (folder / "header.json").write_bytes(b"\xff\xfe")


def _too_few(folder: Path) -> None:
    np.save(folder / "rewards.npy", np.zeros(2))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without, r"or a damaged one \(no actions\.npy\)"),
        (_objects, r"actions\.npy: "),
        (_cut_short, r"observations/state\.npy: ValueError"),
        (_elsewhere, r"no observations/\.\./\.\./state\.npy"),
        (_other_format, "version 1, got .*9"),
        (_no_header, r"header\.json: no text"),
        (_too_few, r"rewards: expected 7 rows for 2 episodes of 7 steps, got shape \(2,\)"),
    ],
)
def test_a_folder_that_is_something_else_is_refused(tmp_path: Path, damage: Any, message: str) -> None:
    demonstrations(["state", "goal"], [3, 4]).save_folder(tmp_path / "data")
    damage(tmp_path / "data")
    with pytest.raises(DemonstrationsError, match=message):
        Demonstrations.load(tmp_path / "data")


# Long logs.


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), steps=st.integers(1, 6))
@settings(max_examples=30)
def test_pieces_put_together_are_the_episodes(lengths: list[int], steps: int) -> None:
    data = demonstrations(["state", "frames"], lengths)
    pieces = list(data.in_pieces(steps).episodes)
    for whole in data.episodes:
        own = [pieces.pop(0) for _ in range(max(1, len(whole) // steps))]
        assert all(len(one) == steps for one in own[:-1])
        assert min(steps, len(whole)) <= len(own[-1]) < 2 * steps
        np.testing.assert_array_equal(np.concatenate([one.actions for one in own]), whole.actions)
        for name, part in whole.observations.items():  # type: ignore[union-attr]
            joined = [one.observations[name][:-1] for one in own] + [own[-1].observations[name][-1:]]  # type: ignore[call-overload]
            np.testing.assert_array_equal(np.concatenate(joined), part)
        assert [one.truncated for one in own[:-1]] == [True] * (len(own) - 1)
        assert (own[-1].terminated, own[-1].truncated) == (whole.terminated, whole.truncated)
        assert not any(one.terminated for one in own[:-1])
    assert not pieces


def test_parts_in_time_follow_each_other() -> None:
    data = demonstrations(["state"], [10, 20])
    train, validation, test = data.split_in_time()
    assert [[len(one) for one in part.episodes] for part in (train, validation, test)] == [[6, 12], [2, 4], [2, 4]]
    check_disjoint(train=train, validation=validation, test=test)
    for whole, *parts in zip(data.episodes, *(part.episodes for part in (train, validation, test)), strict=True):
        np.testing.assert_array_equal(np.concatenate([one.actions for one in parts]), whole.actions)
    with pytest.raises(DemonstrationsError, match=r"long enough to be divided in time .* got one of 2 actions"):
        demonstrations(["state"], [20, 2]).split_in_time()
    with pytest.raises(DemonstrationsError, match=r"two shares above 0 .*, got 0\.5 and 0\.5"):
        data.split_in_time(0.5, 0.5)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        data.in_pieces(0)
    plans = replace(data, open_loop=True)
    for cut in (plans.split_in_time, lambda: plans.in_pieces(2)):
        with pytest.raises(DemonstrationsError, match="got plans that were carried out as made"):
            cut()


# Learning.


def named(data: Demonstrations) -> Demonstrations:
    """The same with frames beside the state."""
    parts = [{"state": one.observations, "frames": np.zeros((len(one) + 1, 8, 8), np.uint8)} for one in data.episodes]
    return Demonstrations.from_arrays(data.env_id, parts, [one.actions for one in data.episodes])


def test_learners_read_the_state(tmp_path: Path) -> None:
    data, held = episodes(4), episodes(2, seed=1)
    named(data).save_folder(tmp_path / "data")
    learners = [make("mlp") for _ in range(2)]
    learners[0].fit(data, held, quick("adam"))
    learners[1].fit(Demonstrations.load(tmp_path / "data"), named(held), quick("adam"))
    assert equal(tensors(learners[0]), tensors(learners[1]))
    seen = data.episodes[0].observations
    expected = learners[0].predict(seen)[0]
    np.testing.assert_array_equal(learners[0].predict({"state": seen, "frames": np.zeros((len(seen), 8, 8))})[0], expected)
    with pytest.raises(ValueError, match=r'observation: expected a part "state", .* got \[\'angle\'\]'):
        learners[0].predict({"angle": seen})
    other = Demonstrations.from_arrays(
        ENV, [{"pose": e.observations} for e in data.episodes], [e.actions for e in data.episodes]
    )
    with pytest.raises(DemonstrationsError, match=r"one of \['pose'\], got none that is called 'state', and no key="):
        learners[0].fit(other, held, quick("adam"))
    assert learners[0].imitation_loss(other.part("pose")) == learners[0].imitation_loss(data)


def test_of_one_log_the_last_fifth_validates(caplog: pytest.LogCaptureFixture) -> None:
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (1, 60, 1))
    controls = torch.as_tensor(make("sysid").task.control_per_action * actions)
    states = moved(expert(), np.array([[1.0, 0.0, 0.0]]), controls)
    learner = SystemIdentification(ENV, physics={"mass": 2.0}, learn=("dynamics.mass",))
    with caplog.at_level("INFO", "dilqr_rl"):
        learner.fit(Demonstrations.from_arrays(ENV, states, actions))
    assert "the last fifth of its 60 actions is held out" in caplog.text
    assert float(learner.readable_parameters()["dynamics.mass"]) == pytest.approx(1.0, abs=1e-9)


# Environments and other libraries.


class Camera(gym.ObservationWrapper[Any, Any, Any]):
    """The state, and beside it what a camera and a clock show."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        frames = spaces.Box(0, 255, (1, 40, 40), np.uint8)
        self.observation_space = spaces.Dict({"state": env.observation_space, "frames": frames, "clock": spaces.Discrete(9)})
        self._reused: dict[str, Any] = {"frames": np.zeros((1, 40, 40), np.uint8), "clock": 0}

    def observation(self, observation: Any) -> Any:
        self._reused["frames"][:] = int(100 + 10 * observation[0])
        return {"state": observation, **self._reused}


def test_environments_with_named_observations_are_recorded() -> None:
    env = Camera(gym.make("Pendulum-v1", max_episode_steps=3))
    policy = MPCPolicy.for_env(env, horizon=4)
    learner = make("mlp", task="Pendulum-v1")
    for actor in (policy, learner):
        first = record(env, actor, episodes=2, seed=3).episodes[0].observations
        assert isinstance(first, dict)
        assert {name: (part.shape, part.dtype.name) for name, part in first.items()} == {
            "state": ((4, 3), "float32"),
            "frames": ((4, 1, 40, 40), "uint8"),
            "clock": ((4,), "int64"),
        }
        np.testing.assert_array_equal(first["frames"][:, 0, 0, 0], (100 + 10 * first["state"][:, 0]).astype(np.uint8))
    bare = record(env.env, learner, episodes=2, seed=3).episodes[0].observations
    np.testing.assert_array_equal(first["state"], bare)


def test_minari_s_dictionaries_go_there_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    pytest.importorskip("minari")
    data = replace(
        demonstrations(["state", "frames", "depth", "touch", "time", "robot/arm", "robot/hand.2"], [3, 2]), env_id="Nowhere-v0"
    )
    to_minari(data, "named-v0")
    assert_same(from_minari("named-v0"), data)
    assert_same(from_minari("named-v0", key="robot/arm"), data.part("robot/arm"))
    with pytest.raises(DemonstrationsError, match=r"one of \['depth', 'frames', 'robot/arm', .* got no part 'arm'"):
        from_minari("named-v0", key="arm")


def test_trajectories_with_dictionaries_come_in() -> None:
    class Wrapped:
        def __init__(self, parts: dict[str, Any]) -> None:
            self.parts = parts

        def unwrap(self) -> dict[str, Any]:
            return self.parts

    class Trajectory:
        obs, acts, terminal = Wrapped(seen(["state", "goal"], 3, 0)), np.zeros((3, 1)), True

    found = from_imitation([Trajectory()], ENV)
    np.testing.assert_array_equal(found.episodes[0].state_observations, Trajectory.obs.parts["state"])
    assert_same(from_imitation([Trajectory()], ENV, key="goal"), found.part("goal"))
