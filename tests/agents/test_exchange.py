"""Demonstrations go to Minari and come back bit by bit; what Minari itself or others made comes in too."""

from __future__ import annotations

import json
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from dilqr_rl.agents import Demonstrations, DemonstrationsError, Episode
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.exchange import from_imitation, from_minari, to_imitation, to_minari

OURS = ("dilqr_rl/Pendulum-v0", {"physics": {"mass": 2.0}, "max_episode_steps": 7})
NOT_TO_BE_MADE = ("Nowhere-v0", {"depth": 3})


def demonstrations(
    origin: tuple[str, dict[str, Any]] = OURS, dtype: Any = np.float32, open_loop: bool = False
) -> Demonstrations:
    rng = np.random.default_rng(0)
    episodes = tuple(
        Episode(
            rng.normal(size=(steps + 1, 3)).astype(dtype),
            rng.normal(size=(steps, 1)).astype(dtype),
            rng.normal(size=steps),
            *ends,
        )
        for steps, ends in [(3, (True, False)), (1, (False, True)), (4, (True, True)), (2, (False, False))]
    )
    return Demonstrations(*origin, episodes, open_loop)


def assert_same(a: Demonstrations, b: Demonstrations) -> None:
    assert (a.env_id, a.env_kwargs, a.open_loop, len(a)) == (b.env_id, b.env_kwargs, b.open_loop, len(b))
    for one, other in zip(a.episodes, b.episodes, strict=True):
        for name in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), strict=True)
        assert (one.terminated, one.truncated) == (other.terminated, other.truncated)


# Minari.


@pytest.fixture
def minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    return pytest.importorskip("minari")


@pytest.mark.parametrize("origin", [OURS, ("Pendulum-v1", {"g": 9.5}), NOT_TO_BE_MADE])
@pytest.mark.parametrize(("dtype", "open_loop"), [(np.float32, False), (np.float64, True)])
def test_a_round_trip_through_minari_keeps_every_bit(minari: Any, origin: Any, dtype: Any, open_loop: bool) -> None:
    given = demonstrations(origin, dtype, open_loop)
    written = to_minari(given, "pendulum/expert-v0")
    assert_same(from_minari(written), given)
    assert_same(from_minari("pendulum/expert-v0"), given)
    assert from_minari(minari.load_dataset("pendulum/expert-v0"), origin[0]).env_id == origin[0]


def test_minari_recovers_the_environment(minari: Any) -> None:
    to_minari(demonstrations(dtype=np.float64), "expert-v0", author="somebody", description="swings")
    found = minari.load_dataset("expert-v0")
    with make_env(*OURS) as expected, found.recover_environment() as env:
        assert env.unwrapped.observation_space == expected.unwrapped.observation_space
        assert env.reset(seed=1)[1]["physics"]["mass"] == 2.0
        assert (env.spec.id, env.spec.max_episode_steps) == (OURS[0], 7)
        assert found.action_space == spaces.Box(-1.0, 1.0, (1,), np.float64) == replaced(expected.action_space, np.float64)
    assert found.observation_space.dtype == np.float64  # as the data have it
    assert found.storage.metadata["author"] == {"somebody"}
    assert found.total_steps == 10


def replaced(space: Any, dtype: Any) -> spaces.Box:
    return spaces.Box(space.low.astype(dtype), space.high.astype(dtype), dtype=dtype)


def test_an_environment_that_can_not_be_made_has_spaces_without_bounds(minari: Any) -> None:
    found = to_minari(demonstrations(NOT_TO_BE_MADE), "expert-v0")
    assert found.observation_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert found.action_space == spaces.Box(-np.inf, np.inf, (1,), np.float32)
    assert found.env_spec is None


def made_by_minari(minari: Any, **change: Any) -> Any:
    """A data set that somebody else made, of a `Pendulum-v1` of seven steps."""
    from minari.data_collector import EpisodeBuffer

    fields: dict[str, Any] = {
        "observations": np.arange(12.0).reshape(4, 3),
        "actions": np.arange(3.0)[:, None],
        "rewards": np.arange(3.0),
        "terminations": np.array([False, False, True]),
        "truncations": np.zeros(3, dtype=bool),
        "infos": {},
    }
    env = gym.make("Pendulum-v1", g=9.0, max_episode_steps=7)
    settings = {key: change.pop(key) for key in ("env", "observation_space", "action_space") if key in change}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # no author, no description, ...
        dataset = minari.create_dataset_from_buffers(
            "theirs-v0", [EpisodeBuffer(**{**fields, **change})], **{"env": env, **settings}
        )
    env.close()
    return dataset


def test_a_data_set_of_others_names_its_environment(minari: Any) -> None:
    found = from_minari(made_by_minari(minari))
    assert (found.env_id, found.env_kwargs, found.open_loop) == ("Pendulum-v1", {"g": 9.0, "max_episode_steps": 7}, False)
    (episode,) = found.episodes
    np.testing.assert_array_equal(episode.observations, np.arange(12.0).reshape(4, 3))
    np.testing.assert_array_equal(episode.actions, np.arange(3.0)[:, None])
    np.testing.assert_array_equal(episode.rewards, np.arange(3.0))
    assert (episode.terminated, episode.truncated) == (True, False)
    with make_env(found.env_id, found.env_kwargs) as env:
        assert (env.unwrapped.g, env.spec.max_episode_steps) == (9.0, 7)


def test_a_data_set_of_another_environment_is_refused(minari: Any) -> None:
    made = made_by_minari(minari)
    for dataset in ("theirs-v0", made):
        with pytest.raises(
            DemonstrationsError, match="expected one of dilqr_rl/Pendulum-v0, got 'theirs-v0', which is of Pendulum-v1"
        ):
            from_minari(dataset, "dilqr_rl/Pendulum-v0")


def test_a_data_set_without_an_environment_needs_one(minari: Any) -> None:
    box = spaces.Box(-np.inf, np.inf, (3,))
    dataset = made_by_minari(minari, env=None, observation_space=box, action_space=spaces.Box(-1.0, 1.0, (1,)))
    with pytest.raises(
        DemonstrationsError, match="env_id: expected an environment's id, since 'theirs-v0' names none, got None"
    ):
        from_minari(dataset)
    assert from_minari(dataset, "Pendulum-v1").env_id == "Pendulum-v1"


def test_of_dictionaries_a_part_may_be_kept(minari: Any) -> None:
    space = spaces.Dict({"angle": spaces.Box(-1.0, 1.0, (3,))})
    dataset = made_by_minari(minari, observations={"angle": np.ones((4, 3))}, observation_space=space)
    np.testing.assert_array_equal(from_minari(dataset, key="angle").episodes[0].observations, np.ones((4, 3)))
    with pytest.raises(DemonstrationsError, match=r"one of \['angle'\], got none that is called 'state', and no key="):
        from_minari(dataset).episodes[0].state_observations  # noqa: B018


def test_the_members_of_a_tuple_are_parts_and_not_steps(minari: Any) -> None:
    """As many as there are steps, which dictionaries of each step are as well."""
    place, member = spaces.Box(-9, 9, (2,), np.float64), np.arange(8.0).reshape(4, 2)
    made = made_by_minari(
        minari,
        env=None,
        observation_space=spaces.Dict({"state": place, "arms": spaces.Tuple([spaces.Dict({"at": place})] * 4)}),
        action_space=spaces.Box(-9, 9, (1,), np.float64),
        observations={"state": member, "arms": tuple({"at": member + number} for number in range(4))},
    )
    seen = from_minari(made, "Pendulum-v1").episodes[0].observations
    assert sorted(seen) == [*(f"arms/{number}/at" for number in range(4)), "state"]
    for number in range(4):
        np.testing.assert_array_equal(seen[f"arms/{number}/at"], member + number)


def test_pictures_and_discrete_actions_are_refused_with_what_to_do(minari: Any) -> None:
    space = spaces.Box(-1.0, 1.0, (8, 8, 3))
    dataset = made_by_minari(
        minari,
        env=None,
        observations=np.zeros((4, 8, 8, 3), np.float32),
        observation_space=space,
        actions=np.zeros(3, np.int64),
        action_space=spaces.Discrete(2),
    )
    with pytest.raises(
        DemonstrationsError, match=r"observations\[0\]: expected two axes, .* got shape \(4, 8, 8, 3\)\. Keep the numbers"
    ):
        from_minari(dataset, "Pendulum-v1")
    with pytest.raises(DemonstrationsError, match=r"actions\[0\]: expected two axes, .* got shape \(3,\)"):
        Demonstrations.from_arrays("Pendulum-v1", OBSERVATIONS, [episode.actions for episode in dataset])


OBSERVATIONS = np.zeros((1, 4, 3))


def test_nan_in_a_data_set_is_refused(minari: Any) -> None:
    with pytest.raises(DemonstrationsError, match="episode 0: rewards hold NaN or infinity"):
        from_minari(made_by_minari(minari, rewards=np.full(3, np.nan)))


def test_an_unknown_data_set_is_refused_with_the_known_ones(minari: Any) -> None:
    to_minari(demonstrations(), "mine-v0")
    with pytest.raises(
        DemonstrationsError, match=r"on this machine, one of \['mine-v0'\], got 'yours-v0'\. minari\.download_dataset"
    ):
        from_minari("yours-v0")


def test_a_data_set_that_names_code_to_run_is_not_run(minari: Any, tmp_path: Path) -> None:
    to_minari(demonstrations(), "mine-v0")
    file = tmp_path / "mine-v0" / "data" / "metadata.json"
    held = json.loads(file.read_text(encoding="utf-8"))
    del held["observation_space"]
    held["env_spec"] = held["env_spec"].replace("dilqr_rl.envs.pendulum:PendulumEnv", "malicious_module:Env")
    file.write_text(json.dumps(held), encoding="utf-8")
    with pytest.raises(ModuleNotFoundError, match="malicious_module"):  # what Minari does
        minari.load_dataset("mine-v0")
    with pytest.raises(
        DemonstrationsError, match=r"that describes its spaces, got 'mine-v0' without \['observation_space'\]\. If you trust"
    ):
        from_minari("mine-v0")


@pytest.mark.parametrize("header", [{"env_id": "Pendulum-v1"}, [1], {"env_id": "x", "env_kwargs": 3, "open_loop": True}])
def test_a_damaged_entry_is_refused(minari: Any, header: Any) -> None:
    dataset = to_minari(demonstrations(), "mine-v0")
    dataset.storage.update_metadata({"dilqr_rl": header})
    with pytest.raises(DemonstrationsError, match="'mine-v0' has a damaged entry 'dilqr_rl'"):
        from_minari("mine-v0")


SPOILT = [
    ("main_data.hdf5", lambda content: b""),
    ("main_data.hdf5", lambda content: content[: len(content) // 2]),
    ("main_data.hdf5", lambda content: b"x" * len(content)),
    ("metadata.json", lambda content: changed(content, env_spec="{")),
    ("metadata.json", lambda content: changed(content, observation_space="{")),
    ("metadata.json", lambda content: changed(content, total_episodes=9)),
    ("metadata.json", lambda content: changed(content, total_episodes="x")),
    ("metadata.json", lambda content: changed(content, data_format="os")),
    ("metadata.json", lambda content: b"[" * 100_000),
]


def changed(content: bytes, **changes: Any) -> bytes:
    kept = json.loads(content)
    kept.pop("dilqr_rl")  # so that Minari's own entries count
    return json.dumps({**kept, **changes}).encode()


@pytest.mark.filterwarnings("ignore")  # Minari's own, about what it doesn't understand
@pytest.mark.parametrize(("name", "change"), SPOILT)
def test_what_minari_stumbles_over_is_told_as_ours(minari: Any, tmp_path: Path, name: str, change: Any) -> None:
    to_minari(demonstrations(), "pendulum/expert-v0")
    (file,) = tmp_path.rglob(name)
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(DemonstrationsError, match=r"^dataset: expected .* got 'pendulum/expert-v0'"):
        from_minari("pendulum/expert-v0")


def test_what_minari_does_not_take_is_told_as_ours(minari: Any) -> None:
    with pytest.raises(ValueError, match=r"dataset_id: Minari can't write 'expert-v0': TypeError: .*colour"):
        to_minari(demonstrations(), "expert-v0", colour=1)


@pytest.mark.parametrize("dataset_id", ["", "mine", "mine-v", "mine-0"])
def test_an_id_without_a_version_is_refused(minari: Any, dataset_id: str) -> None:
    with pytest.raises(ValueError, match="dataset_id: expected a name with a version"):
        to_minari(demonstrations(), dataset_id)


def test_a_taken_id_is_refused(minari: Any) -> None:
    to_minari(demonstrations(), "mine-v0")
    with pytest.raises(ValueError, match="mine-v0 already exists"):
        to_minari(demonstrations(), "mine-v0")


def test_what_wrappers_made_of_an_environment_is_written_with_spaces_of_its_own(
    minari: Any, caplog: pytest.LogCaptureFixture
) -> None:
    wrapped = demonstrations(("MountainCarContinuous-v0", {}))
    with caplog.at_level("INFO", "dilqr_rl"):
        found = to_minari(wrapped, "mine-v0")
    assert (
        "MountainCarContinuous-v0 has observations and actions of shapes ((2,), (1,)), the data have ((3,), (1,))"
        in caplog.text
    )
    assert found.env_spec is None
    assert found.observation_space == spaces.Box(-np.inf, np.inf, (3,), np.float32)
    assert_same(from_minari("mine-v0"), wrapped)


def test_arguments_that_no_file_holds_are_named(minari: Any, tmp_path: Path) -> None:
    given = demonstrations(("Nowhere-v0", {"map": np.zeros(3)}))
    for write in (
        lambda: to_minari(given, "mine-v0"),
        lambda: given.save(tmp_path / "a.npz"),
        lambda: given.save_folder(tmp_path / "a"),
    ):
        with pytest.raises(DemonstrationsError, match=r"env_kwargs: expected what JSON holds .* Give arrays as lists"):
            write()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "call"),
    [
        ("minari", lambda: from_minari("mine-v0")),
        ("minari", lambda: to_minari(demonstrations(), "mine-v0")),
        ("imitation", lambda: to_imitation(demonstrations())),
    ],
)
def test_what_is_missing_is_named_with_how_to_install_it(module: str, call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [module, *(name for name in sys.modules if name.startswith(f"{module}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{module} is needed for this .* Install it: pip install .*{module}"):
        call()


# Trajectories of `imitation`; its own classes are tested in tests/clients.


def trajectory(**change: Any) -> Any:
    fields = {"obs": np.zeros((4, 3)), "acts": np.ones((3, 1)), "infos": None, "terminal": True}
    return SimpleNamespace(**{**fields, **change})


@pytest.mark.parametrize(
    ("change", "ends"),
    [
        ({}, (True, False)),
        ({"terminal": False}, (False, True)),
        ({"infos": np.array([{}, {}, {"TimeLimit.truncated": True}])}, (False, True)),
        ({"infos": np.array([{}, {}, {"TimeLimit.truncated": False}])}, (True, False)),
        ({"infos": np.array([{}, {}, {}]), "terminal": False}, (False, True)),
    ],
)
def test_the_last_info_tells_a_time_limit(change: dict[str, Any], ends: tuple[bool, bool]) -> None:
    (episode,) = from_imitation(iter([trajectory(**change)]), "Pendulum-v1").episodes
    assert (episode.terminated, episode.truncated) == ends


def test_trajectories_become_episodes() -> None:
    given = [trajectory(rews=np.arange(3.0)), trajectory(obs=np.ones((2, 3)), acts=np.zeros((1, 1)))]
    found = from_imitation(given, "Pendulum-v1", {"g": 9.0}, open_loop=True)
    assert (found.env_id, found.env_kwargs, found.open_loop) == ("Pendulum-v1", {"g": 9.0}, True)
    assert found.returns.tolist() == [3.0, 0.0]
    np.testing.assert_array_equal(found.episodes[1].observations, np.ones((2, 3)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            [trajectory(), 3],
            r"trajectories\[1\]: expected a Trajectory of `imitation`, got int without \['obs', 'acts', 'terminal'\]",
        ),
        (
            [trajectory(obs={"angle": np.zeros(3)})],
            r"expected observations/angle of shape \(4,\), got \(3,\)\. An episode has one",
        ),
        ([trajectory(acts=np.zeros((3, 2))), trajectory()], r"episode 1: expected actions of shape \(3, 2\), got \(3, 1\)"),
        ([trajectory(acts=np.zeros(3))], r"actions\[0\]: expected two axes"),
        ([trajectory(obs=np.zeros((3, 3)))], "one observation more than actions"),
        ([], "expected at least one, got none"),
    ],
)
def test_what_is_no_trajectory_is_refused(given: list[Any], message: str) -> None:
    with pytest.raises(DemonstrationsError, match=message):
        from_imitation(given, "Pendulum-v1")


def test_one_trajectory_alone_can_not_be_split() -> None:
    with pytest.raises(DemonstrationsError, match=r"expected at least 3 episodes, .* got 1"):
        from_imitation([trajectory()], "Pendulum-v1").split()
    assert len(replace(demonstrations(), episodes=demonstrations().episodes[:3]).split()) == 3
