"""Demonstrations: what goes in comes out, and what is none is refused in a sentence."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dilqr_rl.agents import Demonstrations, DemonstrationsError, Episode
from dilqr_rl.agents.demonstrations import check_disjoint

lengths_of_episodes = st.lists(st.integers(1, 7), min_size=1, max_size=8)


def episode(steps: int, seed: int, k: int = 3, m: int = 1) -> Episode:
    rng = np.random.default_rng(seed)
    return Episode(
        observations=rng.normal(size=(steps + 1, k)).astype(np.float32),
        actions=rng.uniform(-1, 1, (steps, m)).astype(np.float32),
        rewards=rng.normal(size=steps),
        terminated=bool(seed % 2),
        truncated=bool(seed % 3 == 0),
    )


def demonstrations(lengths: list[int], k: int = 3, m: int = 1) -> Demonstrations:
    episodes = tuple(episode(steps, seed, k, m) for seed, steps in enumerate(lengths))
    return Demonstrations("dilqr_rl/Pendulum-v0", {"physics": {"mass": 2.0}}, episodes)


def assert_same(a: Demonstrations, b: Demonstrations) -> None:
    assert (a.env_id, a.env_kwargs, a.open_loop, len(a)) == (b.env_id, b.env_kwargs, b.open_loop, len(b))
    for one, other in zip(a.episodes, b.episodes, strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
        assert (one.terminated, one.truncated) == (other.terminated, other.truncated)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    demonstrations([3, 1, 4]).save(tmp_path / "file.npz")
    return tmp_path / "file.npz"


def rewrite(path: Path, content: dict[str, Any]) -> None:
    np.savez(path, **content)


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


@given(lengths=lengths_of_episodes, k=st.integers(1, 4), m=st.integers(1, 2))
@settings(max_examples=30)
def test_a_round_trip_keeps_every_bit(tmp_path_factory: pytest.TempPathFactory, lengths: list[int], k: int, m: int) -> None:
    path = tmp_path_factory.mktemp("round_trip") / "file.npz"
    given = demonstrations(lengths, k, m)
    given.save(path)
    assert_same(Demonstrations.load(path), given)
    assert given.num_steps == sum(lengths)
    np.testing.assert_array_equal(given.returns, [one.rewards.sum() for one in given.episodes])


def test_the_name_is_kept_as_it_is(tmp_path: Path) -> None:
    demonstrations([1]).save(tmp_path / "no_suffix")
    assert [path.name for path in tmp_path.iterdir()] == ["no_suffix"]
    assert_same(Demonstrations.load(tmp_path / "no_suffix"), demonstrations([1]))


def test_the_file_holds_plain_arrays(saved: Path) -> None:
    held = arrays(saved)
    assert held["observations"].shape == (11, 3)
    assert held["actions"].shape == (8, 1)
    assert held["lengths"].tolist() == [3, 1, 4]
    assert held["terminated"].dtype == held["truncated"].dtype == np.bool_


def test_numbers_of_numpy_in_the_arguments_are_kept(tmp_path: Path) -> None:
    Demonstrations("Pendulum-v1", {"g": np.float32(9.5)}, (episode(2, 0),)).save(tmp_path / "file.npz")
    assert Demonstrations.load(tmp_path / "file.npz").env_kwargs == {"g": 9.5}


@pytest.mark.parametrize("open_loop", [False, True])
def test_a_file_says_whether_its_episodes_are_open_loops(open_loop: bool, tmp_path: Path) -> None:
    replace(demonstrations([2]), open_loop=open_loop).save(tmp_path / "file.npz")
    assert Demonstrations.load(tmp_path / "file.npz").open_loop is open_loop


def test_files_older_than_open_loops_are_read(saved: Path) -> None:
    held = arrays(saved)
    header = json.loads(str(held["header"]))
    assert set(header) - {"open_loop"} == {"format", "version", "env_id", "env_kwargs"}  # what the first files had
    del header["open_loop"]
    rewrite(saved, {**held, "header": np.array(json.dumps(header))})
    assert_same(Demonstrations.load(saved), demonstrations([3, 1, 4]))


@pytest.mark.parametrize("value", [1, "yes", None])
def test_a_file_that_is_neither_an_open_nor_a_closed_loop_is_refused(value: Any, saved: Path) -> None:
    held = arrays(saved)
    header = {**json.loads(str(held["header"])), "open_loop": value}
    rewrite(saved, {**held, "header": np.array(json.dumps(header))})
    with pytest.raises(DemonstrationsError, match="open_loop: expected true or false, got"):
        Demonstrations.load(saved)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_file_keeps_the_precision(dtype: Any, tmp_path: Path) -> None:
    third = np.full((3, 2), 1 / 3, dtype)
    Demonstrations("Pendulum-v1", {}, (Episode(third, third[1:], third[1:, 0], False, True),)).save(tmp_path / "file.npz")
    (found,) = Demonstrations.load(tmp_path / "file.npz").episodes
    for array in (found.observations, found.actions, found.rewards):
        assert array.dtype == dtype
        assert (array == dtype(1) / dtype(3)).all()


# From arrays.


@given(lengths=lengths_of_episodes)
@settings(max_examples=15)
def test_arrays_of_each_episode_make_it(lengths: list[int]) -> None:
    expected = replace(demonstrations(lengths), open_loop=True)
    found = Demonstrations.from_arrays(
        expected.env_id,
        [one.observations for one in expected.episodes],
        [one.actions for one in expected.episodes],
        [one.rewards for one in expected.episodes],
        terminated=[one.terminated for one in expected.episodes],
        truncated=[one.truncated for one in expected.episodes],
        env_kwargs=expected.env_kwargs,
        open_loop=True,
    )
    assert_same(found, expected)


def test_one_array_of_episodes_of_equal_length_makes_them_all() -> None:
    observations, actions = np.arange(24).reshape(2, 4, 3), np.arange(6.0).reshape(2, 3, 1)
    found = Demonstrations.from_arrays("Pendulum-v1", observations, actions, terminated=[True, False])
    observations[:], actions[:] = 0, 0.0  # what was given is copied
    for number, one in enumerate(found.episodes):
        np.testing.assert_array_equal(one.observations, np.arange(12.0).reshape(4, 3) + 12 * number, strict=True)
        np.testing.assert_array_equal(one.actions, np.arange(3.0)[:, None] + 3 * number, strict=True)
        np.testing.assert_array_equal(one.rewards, np.zeros(3), strict=True)
        assert (one.terminated, one.truncated) == (number == 0, number == 1)
    assert not found.open_loop
    assert found.env_kwargs == {}


OBSERVATIONS, ACTIONS = np.zeros((2, 4, 3)), np.zeros((2, 3, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": ACTIONS[:1]}, r"equally many in every argument, got {'observations': 2, 'actions': 1}"),
        ({"rewards": np.zeros((3, 3))}, r"got {'observations': 2, 'actions': 2, 'rewards': 3}"),
        ({"observations": [], "actions": []}, "episodes: expected at least one, got none"),
        ({"observations": OBSERVATIONS[0], "actions": ACTIONS[0, :]}, r"equally many"),
        (
            {"observations": OBSERVATIONS[0, :2]},
            r"observations\[0\]: expected two axes, .*, got shape \(3,\)\. .* for a single episode \[array\]",
        ),
        (
            {"actions": ACTIONS[..., 0]},
            r"actions\[0\]: expected two axes, .* got shape \(3,\)\. For one number per step give array\[:, None\]",
        ),
        ({"rewards": ACTIONS}, r"rewards\[0\]: expected one axis, steps, got shape \(3, 1\)"),
        (
            {"observations": np.zeros((2, 4, 8, 8, 3))},
            r"got shape \(4, 8, 8, 3\)\. Keep the numbers that the state can be read from; frames go beside them",
        ),
        ({"observations": [[[1.0, 2.0], [1.0]]] * 2}, r"observations\[0\]: expected an array of numbers: .*inhomogeneous"),
        (
            {"observations": [{"angle": 1.0}] * 2},
            r"observations\[0\]\['angle'\]: expected an axis of steps, got shape \(\)",
        ),
        ({"actions": [[["left"]] * 3] * 2}, r"actions\[0\]: expected an array of numbers, got list with elements of type <U4"),
        (
            {"observations": OBSERVATIONS[:, :3]},
            r"episode 0: expected observations of shape \(4, 3\), got \(3, 3\)\. An episode has one observation more",
        ),
        ({"actions": np.full((2, 3, 1), np.nan)}, "episode 0: actions hold NaN or infinity"),
        ({"terminated": [True]}, r"terminated: expected booleans, one or 2, got bool of shape \(1,\)"),
        ({"truncated": [0, 1]}, r"truncated: expected booleans, one or 2, got int64 of shape \(2,\)"),
        ({"env_id": "os:Pendulum-v1"}, "env_id: expected an id without a module in front"),
    ],
)
def test_arrays_that_make_no_episodes_are_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"env_id": "Pendulum-v1", "observations": OBSERVATIONS, "actions": ACTIONS}
    Demonstrations.from_arrays(**given)
    with pytest.raises(DemonstrationsError, match=message):
        Demonstrations.from_arrays(**{**given, **change})


# Splitting.


@given(lengths=st.lists(st.integers(1, 5), min_size=3, max_size=25), seed=st.integers(0, 100))
@settings(max_examples=30)
def test_a_split_shares_out_whole_episodes(lengths: list[int], seed: int) -> None:
    everything = demonstrations(lengths)
    parts = everything.split(seed)
    drawn = [id(one) for part in parts for one in part.episodes]
    assert sorted(drawn) == sorted(id(one) for one in everything.episodes)
    train, validation, test = (len(part) for part in parts)
    assert validation == test == max(1, len(lengths) // 5)
    assert train >= 1
    for part, again in zip(parts, everything.split(seed), strict=True):
        assert_same(part, again)
        assert (part.env_id, part.env_kwargs) == (everything.env_id, everything.env_kwargs)


def test_another_seed_splits_otherwise() -> None:
    everything = demonstrations([1] * 20)
    tests = {tuple(map(id, everything.split(seed)[2].episodes)) for seed in range(5)}
    assert len(tests) > 1


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_episodes_to_split_are_refused(count: int) -> None:
    with pytest.raises(
        DemonstrationsError, match=f"expected at least 3 episodes, to train, validate and test on .*, got {count}"
    ):
        demonstrations([2] * count).split()


@given(count=st.integers(3, 12), data=st.data())
@settings(max_examples=30)
def test_a_split_by_numbers_gives_so_many(count: int, data: st.DataObject) -> None:
    sizes = (data.draw(st.integers(1, count - 2)), 1, 1)
    everything = replace(demonstrations([2] * count), open_loop=True)
    parts = everything.split(5, sizes)
    assert tuple(len(part) for part in parts) == sizes
    assert len({id(one) for part in parts for one in part.episodes}) == sum(sizes)
    assert all(part.open_loop for part in parts)


def test_more_training_episodes_change_no_held_out_ones() -> None:
    everything = demonstrations([1] * 20)
    few, many = everything.split(1, (4, 3, 2)), everything.split(1, (15, 3, 2))
    assert_same(few[1], many[1])
    assert_same(few[2], many[2])
    assert_same(few[0], replace(many[0], episodes=many[0].episodes[:4]))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((3, 1, 1), r"sizes: expected at most 4 episodes in all, as many as there are, got \(3, 1, 1\)"),
        ((2, 1, 0), r"three numbers of episodes \(train, validation, test\), 1 or more, got \(2, 1, 0\)"),
        ((1, 1), "three numbers of episodes"),
        ((1.5, 1, 1), "three numbers of episodes"),
        ((-1, 1, 1), "three numbers of episodes"),
    ],
)
def test_impossible_sizes_of_a_split_are_refused(sizes: Any, message: str) -> None:
    with pytest.raises(DemonstrationsError, match=message):
        demonstrations([1] * 4).split(0, sizes)


# The same episode twice.


def test_overlap_names_the_pairs() -> None:
    a, b, c, d = demonstrations([2, 2, 3, 1]).episodes
    make = lambda *episodes: Demonstrations("Pendulum-v1", {}, episodes)  # noqa: E731
    assert make(a, b, a).overlap(make(c, a, b)) == [(0, 1), (1, 2), (2, 1)]
    assert make(a, b).overlap(make(c, d)) == []
    assert make(a).overlap(make(replace(a, rewards=a.rewards + 1.0, terminated=not a.terminated))) == [(0, 0)]
    assert make(a).overlap(make(replace(a, actions=np.nextafter(a.actions, np.float32(2.0))))) == []


def test_neither_precision_nor_the_sign_of_a_zero_makes_another_episode() -> None:
    one = Episode(np.zeros((2, 1), np.float32), np.full((1, 1), 0.1, np.float32), np.zeros(1), False, True)
    other = replace(one, observations=-np.zeros((2, 1)), actions=one.actions.astype(np.float64))
    assert Demonstrations("Pendulum-v1", {}, (one,)).overlap(Demonstrations("Pendulum-v1", {}, (other,))) == [(0, 0)]


def test_a_copy_inside_one_file_is_found_after_the_split(tmp_path: Path) -> None:
    given = demonstrations([2] * 5)
    doubled = replace(given, episodes=given.episodes * 2)
    doubled.save(tmp_path / "file.npz")
    train, validation, test = Demonstrations.load(tmp_path / "file.npz").split(0)
    with pytest.raises(DemonstrationsError, match="expected different episodes, but these are the same"):
        check_disjoint(train=train, validation=validation, test=test)
    alone = doubled.without_duplicates()
    assert_same(alone, given)
    train, validation, test = alone.split(0)
    check_disjoint(train=train, validation=validation, test=test)


def test_leaked_episodes_are_named() -> None:
    train = demonstrations([1] * 8)
    validation = demonstrations([2] * 2)
    test = replace(train, episodes=train.episodes[2:3])
    message = (
        r"train and test: expected different episodes, but these are the same: train 2 = test 0\. Merge the sets, remove what "
        r"is in there twice with `without_duplicates\(\)`, and divide them with `split`\."
    )
    with pytest.raises(DemonstrationsError, match=message):
        check_disjoint(train=train, validation=validation, test=test)
    with pytest.raises(DemonstrationsError, match="here 4 = there 4 and 3 more"):
        check_disjoint(here=train, there=train)


# What is no demonstration.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observations": np.zeros((3, 3))}, r"episode 1: expected observations of shape \(4, 3\), got \(3, 3\)"),
        ({"observations": np.zeros((4, 2))}, r"episode 1: expected observations of shape \(4, 3\), got \(4, 2\)"),
        ({"actions": np.zeros((3, 2))}, r"episode 1: expected actions of shape \(3, 1\), got \(3, 2\)"),
        ({"rewards": np.zeros(4)}, r"episode 1: expected rewards of shape \(3,\), got \(4,\)"),
        ({"observations": np.full((4, 3), np.nan)}, "episode 1: observations hold NaN or infinity"),
        ({"actions": np.full((3, 1), np.inf)}, "episode 1: actions hold NaN or infinity"),
        ({"rewards": np.full(3, np.nan)}, "episode 1: rewards hold NaN or infinity"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    first = Episode(np.zeros((4, 3)), np.zeros((3, 1)), np.zeros(3), terminated=False, truncated=True)
    second = replace(first, **change)
    with pytest.raises(DemonstrationsError, match=message):
        Demonstrations("Pendulum-v1", {}, (first, second))


def test_no_episodes_and_empty_episodes_are_refused() -> None:
    with pytest.raises(DemonstrationsError, match="expected at least one, got none"):
        Demonstrations("Pendulum-v1", {}, ())
    with pytest.raises(DemonstrationsError, match="episode 0: expected at least one action, got none"):
        demonstrations([0])


@pytest.mark.parametrize("observations", [np.zeros(4), np.zeros((4, 3, 2))])
def test_observations_that_are_no_vectors_are_refused(observations: NDArray[Any]) -> None:
    one = Episode(observations, np.zeros((3, 1)), np.zeros(3), False, True)
    with pytest.raises(DemonstrationsError, match="episode 0: expected observations of shape"):
        Demonstrations("Pendulum-v1", {}, (one,))


def test_a_file_does_not_choose_what_is_imported(saved: Path) -> None:
    """`gymnasium.make("module:id")` imports the module."""
    held = arrays(saved)
    header = {**json.loads(str(held["header"])), "env_id": "antigravity:Pendulum-v1"}
    rewrite(saved, {**held, "header": np.array(json.dumps(header))})
    with pytest.raises(
        DemonstrationsError, match="env_id: expected an id without a module in front, got 'antigravity:Pendulum-v1'"
    ):
        Demonstrations.load(saved)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: there is no such file"):
        Demonstrations.load(tmp_path / "nowhere.npz")


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("name", ["header", "actions", "lengths", "terminated", None])
def test_pickled_objects_are_refused_and_not_executed(name: str | None, saved: Path) -> None:
    marker = saved.with_name("executed")
    if name is None:
        saved.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        rewrite(saved, {**arrays(saved), name: np.array([Bomb(marker)], dtype=object)})
    with pytest.raises(
        DemonstrationsError, match=r"expected an \.npz file as `dilqr expert` writes it.*Pickled objects are never read"
    ):
        Demonstrations.load(saved)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_foreign_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file.npz").write_bytes(content)
    with pytest.raises(DemonstrationsError, match=r"file\.npz: expected an \.npz file"):
        Demonstrations.load(tmp_path / "file.npz")


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "file.npy", np.zeros(3))
    with pytest.raises(DemonstrationsError, match=r"file\.npy: expected an \.npz file"):
        Demonstrations.load(tmp_path / "file.npy")


def test_a_file_truncated_anywhere_is_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for size in range(0, len(whole) - 1, 41):
        saved.write_bytes(whole[:size])
        with pytest.raises(DemonstrationsError, match=r"expected an \.npz file"):
            Demonstrations.load(saved)


def test_a_damaged_file_is_refused_or_read_as_it_was(saved: Path) -> None:
    whole, given = saved.read_bytes(), demonstrations([3, 1, 4])
    refused = 0
    for place in range(0, len(whole), 3):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        saved.write_bytes(damaged)
        try:
            assert_same(Demonstrations.load(saved), given)  # zip files hold much that nobody looks at
        except DemonstrationsError:
            refused += 1
    assert refused > len(whole) // 6


@pytest.mark.parametrize("name", ["header", "observations", "actions", "rewards", "lengths", "terminated", "truncated"])
def test_a_missing_array_is_refused_by_name(name: str, saved: Path) -> None:
    rewrite(saved, {key: value for key, value in arrays(saved).items() if key != name})
    with pytest.raises(DemonstrationsError, match=name):
        Demonstrations.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": np.array([3, 1, 5])}, "observations: expected 12 rows for 3 episodes of 9 steps"),
        ({"lengths": np.array([3, 1])}, "observations: expected 6 rows for 2 episodes of 4 steps"),
        ({"lengths": np.array([4, 0, 4])}, "lengths: expected positive integers"),
        ({"lengths": np.array([9, -5, 4])}, "lengths: expected positive integers"),
        ({"lengths": np.array([3.0, 1.0, 4.0])}, "lengths: expected positive integers"),
        ({"lengths": np.array(8)}, "lengths: expected positive integers"),
        ({"lengths": np.array([], dtype=int)}, "rows for 0 episodes of 0 steps"),
        ({"lengths": np.array([2**63 - 1, 2**63 - 1, 10])}, "damaged or made by hand"),
        ({"terminated": np.zeros(2, dtype=bool)}, "terminated: expected 3 rows"),
        ({"truncated": np.array(True)}, "truncated: expected 3 rows"),
        ({"rewards": np.zeros((8, 1))}, "rewards of shape"),
        ({"actions": np.zeros(8)}, "actions of shape"),
        ({"actions": np.full((8, 1), np.nan)}, "actions hold NaN"),
        ({"actions": np.full((8, 1), "left")}, "damaged or made by hand"),
        ({"observations": np.full((11, 3), np.nan)}, "observations hold NaN"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, Any], message: str, saved: Path) -> None:
    rewrite(saved, {**arrays(saved), **change})
    with pytest.raises(DemonstrationsError, match=message) as caught:
        Demonstrations.load(saved)
    assert str(saved) in str(caught.value)


@pytest.mark.parametrize("change", [{"version": 2}, {"version": "1"}, {"format": "another"}, {"version": None}])
def test_another_format_or_version_is_refused(change: dict[str, Any], saved: Path) -> None:
    held = arrays(saved)
    header = {**json.loads(str(held["header"])), **change}
    rewrite(saved, {**held, "header": np.array(json.dumps(header))})
    with pytest.raises(DemonstrationsError, match="expected format 'dilqr_rl demonstrations', version 1, got"):
        Demonstrations.load(saved)


@pytest.mark.parametrize("header", ["[]", "3", "{", "null"])
def test_a_header_that_is_no_json_object_is_refused(header: str, saved: Path) -> None:
    rewrite(saved, {**arrays(saved), "header": np.array(header)})
    with pytest.raises(DemonstrationsError, match=r"file\.npz: expected"):
        Demonstrations.load(saved)


@pytest.mark.parametrize("missing", ["env_id", "env_kwargs"])
def test_a_header_without_the_environment_is_refused(missing: str, saved: Path) -> None:
    held = arrays(saved)
    header = {key: value for key, value in json.loads(str(held["header"])).items() if key != missing}
    rewrite(saved, {**held, "header": np.array(json.dumps(header))})
    with pytest.raises(DemonstrationsError, match=missing):
        Demonstrations.load(saved)


# Writing.


def test_nothing_is_overwritten_without_being_asked(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(FileExistsError, match=r"file\.npz exists already"):
        demonstrations([2]).save(saved)
    assert saved.read_bytes() == before
    demonstrations([2]).save(saved, overwrite=True)
    assert_same(Demonstrations.load(saved), demonstrations([2]))
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_write_that_fails_leaves_all_as_it_was(overwrite: bool, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(stream: Any, **_: Any) -> None:
        stream.write(b"half")
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "savez_compressed", fail)
    before, path = saved.read_bytes(), saved if overwrite else saved.with_name("other.npz")
    with pytest.raises(OSError, match="the disk is full"):
        demonstrations([2]).save(path, overwrite=overwrite)
    assert list(saved.parent.iterdir()) == [saved]
    assert saved.read_bytes() == before
