"""Observations at the door: nothing of them is lost without a word, and no more of them is read than is asked for."""

from __future__ import annotations

import json
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from learner_data import ENV, HORIZON, episodes, make, quick

from dilqr_rl.agents import Demonstrations, DemonstrationsError, Episode, archives, check_disjoint, demonstrations, record
from dilqr_rl.agents.learners import segments

STATE, ACTIONS = np.zeros((1, 4, 3)), np.zeros((1, 3, 1))


def of(parts: Any, actions: Any = ACTIONS, **settings: Any) -> Demonstrations:
    return Demonstrations.from_arrays(ENV, parts, actions, **settings)


def one(observations: Any, actions: Any = ACTIONS[0]) -> Demonstrations:
    return Demonstrations(ENV, {}, (Episode(observations, actions, np.zeros(3), terminated=False, truncated=True),))


# Names.


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"robot": {"arm": 1}, "robot/arm": 2}, r"every name once, got two parts 'robot/arm'"),
        ({"robot": {"arm": {"x": 1}}, "robot/arm": 2}, r"'robot/arm' as a part or as a group, got 'robot/arm/x' beside it"),
        ({"a": 1, "b": {}}, r"got an empty dictionary in 'b'"),
        ({"a//b": 1}, r"something before and after each '/', got 'a//b'"),
        ({"/a": 1}, r"got '/a'"),
        ({"a": {"": 1}}, r"got 'a/'"),
        ({"a\0b": 1}, r"got 'a\\x00b'"),
        ({"\ud800": 1}, r"got '\\ud800'"),
        ({"a" * 300: 1}, r"at most 250 bytes .*, got 'a+"),
        ({"a": {3: 1}}, r"got 3\."),
    ],
)
def test_names_that_would_lose_a_part_are_refused(parts: Any, message: str) -> None:
    def filled(value: Any) -> Any:
        return {name: filled(part) for name, part in value.items()} if isinstance(value, dict) else STATE[0] + value

    with pytest.raises(DemonstrationsError, match=message):
        of([filled(parts)])


def test_names_are_checked_in_episodes_made_by_hand() -> None:
    with pytest.raises(DemonstrationsError, match=r"'a' as a part or as a group, got 'a/b' beside it\. Rename one"):
        one({"a": STATE[0], "a/b": STATE[0]})
    with pytest.raises(DemonstrationsError, match=r"expected names of parts, .* got 'a\\x00b'"):
        one({"a\0b": STATE[0]})
    with pytest.raises(DemonstrationsError, match="at least one part of the observations, got none"):
        one({})


def test_steps_of_other_parts_or_shapes_are_refused() -> None:
    steps: list[Any] = [{"x": {"y": [0.0]}} for _ in range(4)]
    for last, message in (
        (
            {"x": {"y": [0.0], "z": [1.0]}},
            r"observations\['x'\]: expected the same parts in every step, \['y'\] .*'z'\] in step 3",
        ),
        ({"x": [0.0]}, r"observations\['x'\]: .* got list in step 3"),
        ({"x": {"y": [0.0, 1.0]}}, r"observations\['x/y'\]: expected an array of one shape in every step"),
    ):
        with pytest.raises(DemonstrationsError, match=message):
            of([[*steps[:3], last]])


@pytest.mark.parametrize(("a", "b"), [("a", "a.npy/b"), ("Arm", "arm"), ("x", "X.npy/y")])
def test_parts_whose_files_would_be_one_are_refused(a: str, b: str, tmp_path: Path) -> None:
    data = of({a: STATE, b: STATE + 1.0})
    with pytest.raises(DemonstrationsError, match="expected parts whose files can lie beside each other"):
        data.save_folder(tmp_path / "data")
    data.save(tmp_path / "data.npz")
    assert (Demonstrations.load(tmp_path / "data.npz").part(b).episodes[0].state_observations == 1.0).all()


# Arguments.


class Table:
    """Has a length, but nothing at 0, as a table of named columns has."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, name: str) -> Any:
        raise KeyError(name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"observations": {"state": Table()}}, r"observations\['state'\]: expected a list, .* got Table\. For a single"),
        ({"observations": {"mass": 1.0}}, r"observations\['mass'\]: expected a list, .* got float"),
        ({"observations": None}, r"observations: expected a list, .* got NoneType"),
        ({"actions": (row for row in ACTIONS)}, r"actions: expected a list, .* got generator"),
        ({"rewards": 1.0}, r"rewards: expected a list, .* got float"),
        ({"observations": {"state": STATE}, "key": ["state"]}, r"one of \['state'\], got no part \['state'\]"),
        (
            {"observations": {"state": STATE[0]}, "actions": ACTIONS[0]},
            r"got {.*4.*3}\. For a single episode give \[ \.\.\. \]",
        ),
        ({"observations": [{"state": row} for row in STATE[0]]}, r"got {.*4.*1}\. For a single episode give \[ \.\.\. \]"),
        ({"observations": {"state": STATE, "goal": STATE[0]}}, r"in every part, .*\. For a single episode give \[ \.\.\. \]"),
    ],
)
def test_what_is_given_for_no_episode_is_named(given: Any, message: str) -> None:
    with pytest.raises(DemonstrationsError, match=message):
        Demonstrations.from_arrays(ENV, **{"observations": STATE, "actions": ACTIONS, **given})


@pytest.mark.parametrize(
    ("observations", "message"),
    [
        ({"a": np.full((4, 1), np.nan + 1j)}, r"expected observations/a as an array of numbers, .* got complex128"),
        (
            {"a": STATE[0].astype(">f8" if sys.byteorder == "little" else "<f8")},
            r"observations/a as .*machine's byte order, got [<>]f8",
        ),
        ({"a": [[0.0]] * 4}, r"observations/a as an array of numbers, .* got list\. Demonstrations\.from_arrays makes"),
        (np.zeros((4, 3, 3)), r'observations of shape \(4, k\), got \(4, 3, 3\)\. Frames go beside the state: {"state"'),
    ],
)
def test_episodes_made_by_hand_hold_what_files_can(observations: Any, message: str) -> None:
    with pytest.raises(DemonstrationsError, match=message):
        one(observations)


def test_what_a_division_is_asked_for_is_checked() -> None:
    data = of(np.zeros((1, 12, 3)), np.zeros((1, 11, 1)))
    with pytest.raises(ValueError, match="validation: expected a share, got 'a'"):
        data.split_in_time("a")  # type: ignore[arg-type]
    for shares in ([0.0], [0.5, 0.5, 1.0], [0.0, 1.5]):
        with pytest.raises(DemonstrationsError, match="shares: expected two or more from 0 to 1, ascending"):
            data.in_time(shares)
    for cut, message in (
        ((1990, 5000), "first: .* 10, got 1990"),
        ((3, 5000), "end: .* 11, got 5000"),
        ((3, 3), "end: .* 4, one"),
    ):
        with pytest.raises(ValueError, match=message):
            data.episodes[0].between(*cut)
    with pytest.raises(ValueError, match="numbers: expected at most 0, got 1"):
        data.select([1])
    with pytest.raises(DemonstrationsError, match="numbers: expected at least one"):
        data.select([])


def test_advice_can_be_followed() -> None:
    data = of(STATE)
    plans = replace(data, open_loop=True)
    with pytest.raises(DemonstrationsError, match=r"got 1\. Record more\.$"):
        plans.split()
    with pytest.raises(DemonstrationsError, match=r"\(open_loop\)\. Record more, and use `split`\.$"):
        plans.in_pieces(2)
    with pytest.raises(DemonstrationsError, match=r"shares of 0, 0\.6, 0\.8, 1, got one of 2 actions\. Record longer ones\.$"):
        of(STATE[:, :3], ACTIONS[:, :2]).split_in_time()


# What is kept.


def test_whole_numbers_of_parts_keep_every_bit_and_are_floats_where_the_state_is_read(tmp_path: Path) -> None:
    clock = 2**60 + np.arange(4)
    data = of([{"state": np.arange(4, dtype=np.uint16)[:, None], "clock": clock, "big": np.uint64(2**63) + clock.astype("u8")}])
    data.save_folder(tmp_path / "data")
    for found in (data, Demonstrations.load(tmp_path / "data")):
        seen = found.episodes[0].observations
        assert {name: part.dtype.name for name, part in seen.items()} == {"state": "uint16", "clock": "int64", "big": "uint64"}
        np.testing.assert_array_equal(seen["clock"], clock)  # type: ignore[call-overload]
        assert found.episodes[0].state_observations.dtype == found.part("state").episodes[0].observations.dtype == np.float64
    data.part("state").save(tmp_path / "part.npz")
    assert Demonstrations.load(tmp_path / "part.npz").overlap(data) == [(0, 0)]


def test_a_read_only_mapping_is_saved_and_loaded(tmp_path: Path) -> None:
    data = one(MappingProxyType({"state": STATE[0], "goal": STATE[0] + 1.0}))
    data.save(tmp_path / "data.npz")
    data.save_folder(tmp_path / "data")
    for path in ("data", "data.npz"):
        assert sorted(Demonstrations.load(tmp_path / path).episodes[0].observations) == ["goal", "state"]


def test_whole_numbers_by_hand_are_saved_as_floats_and_loaded(tmp_path: Path) -> None:
    data = one(np.arange(12).reshape(4, 3), np.ones((3, 1), np.int8))
    data.save_folder(tmp_path / "data")
    data.save(tmp_path / "data.npz")
    for path in ("data", "data.npz"):
        assert Demonstrations.load(tmp_path / path).overlap(data) == [(0, 0)]


def test_frames_that_hardly_change_are_saved_so_that_they_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_SMALL", 2**16)  # as if these were the 64 MiB that are always let through
    for dtype in (np.float32, np.uint8):
        path = tmp_path / f"{np.dtype(dtype)}.npz"
        of({"state": STATE, "frames": np.zeros((1, 4, 256, 256), dtype)}).save(path)
        assert Demonstrations.load(path).episodes[0].observations["frames"].shape == (4, 256, 256)  # type: ignore[call-overload]
    noise = np.random.default_rng(0).integers(0, 2, (1, 4, 64, 64)).astype(np.uint8)
    of({"state": STATE, "frames": noise}).save(tmp_path / "noise.npz")
    assert (tmp_path / "noise.npz").stat().st_size < noise.nbytes / 2  # frames are packed, too


def test_episodes_of_unlike_types_are_saved_if_one_type_holds_all(tmp_path: Path) -> None:
    few, many = ([{"clock": 2**60 + np.arange(4)}, {"clock": np.arange(4.0)}][::order] for order in (1, -1))
    for given, number in ((few, 0), (many, 1)):
        data = of(given, np.zeros((2, 3, 1)))
        for write in (lambda data=data: data.save(tmp_path / "a.npz"), lambda data=data: data.save_folder(tmp_path / "a")):
            with pytest.raises(
                DemonstrationsError, match=rf"episode {number}: expected observations/clock of one type .* got int64"
            ):
                write()
    of([{"clock": np.arange(4)}, {"clock": np.arange(4) / 2}], np.zeros((2, 3, 1))).save(tmp_path / "a.npz")
    clocks = [each.observations["clock"].tolist() for each in Demonstrations.load(tmp_path / "a.npz").episodes]  # type: ignore[call-overload]
    assert clocks == [[0.0, 1.0, 2.0, 3.0], [0.0, 0.5, 1.0, 1.5]]


def test_a_header_that_no_reader_takes_is_not_written(tmp_path: Path) -> None:
    data = of(STATE, env_kwargs={"map": "x" * 2**20})
    with pytest.raises(DemonstrationsError, match=r"no more than a header of 1048576 bytes holds, got 1048\d{3}"):
        data.save_folder(tmp_path / "data")
    data.save(tmp_path / "data.npz")
    assert Demonstrations.load(tmp_path / "data.npz").env_kwargs == data.env_kwargs


class Growing(gym.ObservationWrapper[Any, Any, Any]):
    """One of its parts has another length in every step."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict({"car": spaces.Dict({"seen": spaces.Box(-9, 9, (1,))})})
        self.count = 0

    def observation(self, observation: Any) -> Any:
        self.count += 1
        return {"car": {"seen": observation[:1].repeat(self.count)}}


class Written(gym.ObservationWrapper[Any, Any, Any]):
    """Shows what is no array."""

    observation_space = spaces.Dict({"state": spaces.Box(-9, 9, (1,)), "car": spaces.Dict({"name": spaces.Text(3)})})


def test_recordings_are_what_their_files_are(tmp_path: Path) -> None:
    car = gym.make("MountainCarContinuous-v0", max_episode_steps=2)
    box = spaces.Box(-9, 9, (2,), np.int32)
    data = record(TransformObservation(car, lambda seen: np.int32(9 * seen), box), lambda _: [0.0], episodes=1)
    data.save(tmp_path / "data.npz")
    loaded = Demonstrations.load(tmp_path / "data.npz").episodes[0]
    for name in ("observations", "actions", "rewards"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(data.episodes[0], name), strict=True)
    with pytest.raises(DemonstrationsError, match=r"observations\['car/seen'\]: expected an array of one shape in every step"):
        record(Growing(car), lambda _: [0.0], episodes=1)
    with pytest.raises(ValueError, match=r"got Dict.*, of which 'car/name' holds no array"):
        record(Written(car), lambda _: [0.0], episodes=1)


# What is read.


class Untouched(np.ndarray[Any, Any]):
    """Frames of which nobody may read a byte."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        pytest.fail("frames were read")

    __array_ufunc__ = __array_function__ = astype = tobytes = copy = _refuse


def with_frames(data: Demonstrations) -> Demonstrations:
    frames = np.zeros((9, 8, 8), np.uint8).view(Untouched)
    named = [replace(each, observations={"state": each.observations, "frames": frames}) for each in data.episodes]
    return replace(data, episodes=tuple(named))


def test_learners_and_divisions_read_no_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    data, held = with_frames(episodes(4)), with_frames(episodes(2, seed=1))
    make("mlp").fit(data, held, quick("adam"))
    monkeypatch.setattr(demonstrations, "check_episode", lambda *_: pytest.fail("checked twice"))
    for part in (*data.split(), *data.split_in_time(), data.in_pieces(2), data.part("state"), data.without_duplicates()):
        assert len(part) > 0


def test_an_episode_is_the_same_whatever_lies_beside_its_state() -> None:
    data = episodes(3)
    frames = [
        Demonstrations.from_arrays(
            ENV,
            [{"state": each.observations, "frames": np.full((9, 2, 2), value, np.uint8)} for each in data.episodes],
            [each.actions for each in data.episodes],
        )
        for value in range(2)
    ]
    for one_set, other in ((frames[0], data), (data, frames[0]), (frames[0], frames[1])):
        with pytest.raises(DemonstrationsError, match="these are the same: train 0 = validation 0"):
            make("mlp").fit(one_set, other, quick("adam"))
    poses = [of([{"pose": STATE[0] + value, "frames": np.zeros((4, 2, 2))}]) for value in range(2)]
    assert poses[0].overlap(poses[1]) == []  # without a state, all that is flat tells them apart
    pictures = [of([{"frames": np.full((4, 2, 2), value)}]) for value in range(2)]
    check_disjoint(a=pictures[0], b=pictures[1])  # and with nothing flat, all there is


def test_large_parts_are_looked_at_some_bytes_at_a_time(tmp_path: Path) -> None:
    frames = np.ones((1, 4, 2, 1024, 1024), np.float32)  # 32 MiB, in rows of 8
    data = of({"state": STATE, "frames": frames})
    tracemalloc.start()
    data.save_folder(tmp_path / "data")
    loaded = Demonstrations.load(tmp_path / "data")
    of({"state": STATE, "frames": [loaded.episodes[0].observations["frames"]]})  # type: ignore[call-overload]
    assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    tracemalloc.stop()


def test_pieces_of_one_log_train_learners_that_compare_several_steps() -> None:
    steps = 3 * HORIZON + 1
    pieces = of(np.ones((1, steps + 1, 3)), np.zeros((1, steps, 1))).in_pieces(HORIZON)
    assert [len(each) for each in pieces.episodes] == [HORIZON, HORIZON, HORIZON + 1]
    learner = make("nn")
    assert learner.segment_length(pieces) == HORIZON
    assert len(segments.cut(learner.task, pieces, HORIZON, learner.device)) == len(pieces)


# Folders that somebody made to fill the memory.


def _sparse(path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    with path.open("wb") as file:
        np.lib.format.write_array_header_2_0(
            file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        )
        file.truncate(file.tell() + np.dtype(dtype).itemsize * int(np.prod(shape)))


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "message"),
    [
        (
            "lengths",
            "i8",
            (2 * 10**8,),
            r"lengths: expected positive integers \(episodes,\), got int64 of shape \(200000000,\)",
        ),
        ("lengths", "V8", (2 * 10**8,), r"lengths: expected positive integers .* got \|V8"),
        ("actions", "u2", (3, 10**8), r"actions: expected floats as save_folder writes them on this machine, got uint16"),
        (
            "observations/state",
            ">f8" if sys.byteorder == "little" else "<f8",
            (4, 10**8),
            r"observations/state: expected numbers as save",
        ),
        ("observations/frames", "i8", (4, 10**8), None),
    ],
)
def test_much_that_takes_no_space_takes_no_memory(
    name: str, dtype: str, shape: Any, message: str | None, tmp_path: Path
) -> None:
    of({"state": STATE, "frames": STATE}).save_folder(tmp_path / "data")
    _sparse(tmp_path / "data" / f"{name}.npy", dtype, shape)
    tracemalloc.start()
    if message is None:
        assert Demonstrations.load(tmp_path / "data").episodes[0].observations["frames"].shape == shape  # type: ignore[call-overload]
    else:
        with pytest.raises(DemonstrationsError, match=message):
            Demonstrations.load(tmp_path / "data")
    assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("parts", "message"),
    [(["state"] * 50000, "names a part twice"), (["a" * 5000], "at most 250 bytes"), (["a", "a/b"], "as a part or as a group")],
)
def test_names_in_a_header_are_checked_before_files_are_opened(parts: list[str], message: str, tmp_path: Path) -> None:
    of({"state": STATE}).save_folder(tmp_path / "data")
    header = json.loads((tmp_path / "data" / "header.json").read_text())
    (tmp_path / "data" / "header.json").write_text(json.dumps({**header, "parts": parts}))
    with pytest.raises(DemonstrationsError, match=message):
        Demonstrations.load(tmp_path / "data")
