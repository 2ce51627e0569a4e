"""Demonstrations from and to the formats of others: Minari's data sets, and the trajectories of `imitation`.

Neither library is needed for anything else; each is imported when one of its functions here is called.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from dilqr_rl.agents.demonstration_files import json_of
from dilqr_rl.agents.demonstrations import Demonstrations, DemonstrationsError, Episode
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.observations import as_nested
from dilqr_rl.agents.origin import arguments_of

__all__ = ["from_imitation", "from_minari", "to_imitation", "to_minari"]

_log = logging.getLogger("dilqr_rl")

_HEADER = "dilqr_rl"  # our own entry among the metadata of a Minari data set
_CUT_OFF = "TimeLimit.truncated"  # Stable-Baselines3's name for it in an info


def from_minari(dataset: Any, env_id: str | None = None, *, key: str | None = None) -> Demonstrations:
    """The episodes of a Minari data set.

    Args:
        dataset: a `minari.MinariDataset`, or the id of one that lies on this machine.
        env_id: of the environment, needed where the data set doesn't say.
        key: of observations that are dictionaries, as those of robots and mazes are, the part to keep, such as "observation";
            "achieved_goal/kettle" is one within another, "0" the first of a Tuple. None: all.

    Raises:
        ImportError: Minari, or what it reads the data set with, isn't installed.
        DemonstrationsError: there is no such data set, or it can't be read; it is of another environment, or of none and
            `env_id` is None; its observations have no such part; they or its actions aren't arrays of numbers.
    """
    named_here = dataset if isinstance(dataset, str) else getattr(dataset, "id", dataset)
    try:
        if isinstance(dataset, str):
            dataset = _load_minari(dataset)
        (named, env_kwargs, open_loop), episodes = _origin(dataset), list(dataset.iterate_episodes())
        ends = {
            "terminated": np.array([bool(np.any(episode.terminations[-1:])) for episode in episodes]),
            "truncated": np.array([bool(np.any(episode.truncations[-1:])) for episode in episodes]),
        }
    except (DemonstrationsError, ImportError):
        raise
    except Exception as error:  # Minari's own, and those of the libraries that it reads files with
        raise DemonstrationsError(
            f"dataset: expected a Minari data set that can be read, got {named_here!r}: {type(error).__name__}: {error}."
        ) from error
    if env_id is not None and named not in {None, env_id}:
        raise DemonstrationsError(f"dataset: expected one of {env_id}, got {dataset.id!r}, which is of {named}.")
    if env_id is None and named is None:
        raise DemonstrationsError(f"env_id: expected an environment's id, since {dataset.id!r} names none, got None.")
    return Demonstrations.from_arrays(
        env_id or str(named),
        [_without_tuples(episode.observations) for episode in episodes],
        [episode.actions for episode in episodes],
        [episode.rewards for episode in episodes],
        **ends,
        env_kwargs=env_kwargs,
        open_loop=open_loop,
        key=key,
    )


def to_minari(demonstrations: Demonstrations, dataset_id: str, **metadata: Any) -> Any:
    """Write a Minari data set, where Minari keeps them; `from_minari` gives every bit back.

    Where the environment can be made and has these observations and actions, the data set has its spaces and can recover it;
    else, and where wrappers were put around it, the spaces are those of the data, without bounds.

    Args:
        demonstrations: what to write.
        dataset_id: as Minari wants it, "(namespace/)name-v0".
        **metadata: of `minari.create_dataset_from_buffers`, such as author, algorithm_name and description.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        ImportError: Minari isn't installed.
        ValueError: the id is malformed or taken, or Minari refuses something else.
        DemonstrationsError: `env_kwargs` holds what JSON doesn't.
    """
    if re.search(r"-v\d+$", dataset_id) is None:
        raise ValueError(f'dataset_id: expected a name with a version, such as "pendulum/expert-v0", got {dataset_id!r}.')
    minari = _optional("minari")
    header = json.loads(json_of(_header(demonstrations)))
    buffers = [_buffer(episode) for episode in demonstrations.episodes]
    env = _make_if_it_fits(demonstrations)
    try:
        observation_space, action_space = _spaces(demonstrations, env)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # one for each piece of metadata that isn't given
            dataset = minari.create_dataset_from_buffers(
                dataset_id, buffers, env=env, observation_space=observation_space, action_space=action_space, **metadata
            )
    except (ValueError, OSError, ImportError):
        raise
    except Exception as error:  # Minari's own
        raise ValueError(f"dataset_id: Minari can't write {dataset_id!r}: {type(error).__name__}: {error}.") from error
    finally:
        if env is not None:
            env.close()
    dataset.storage.update_metadata({_HEADER: header})
    return dataset


def from_imitation(
    trajectories: Iterable[Any],
    env_id: str,
    env_kwargs: Mapping[str, Any] | None = None,
    *,
    open_loop: bool = False,
    key: str | None = None,
) -> Demonstrations:
    """Episodes from trajectories of `imitation`, or what has their attributes: obs, acts, terminal, and maybe rews and infos.

    A trajectory tells an end by the environment from a time limit only in its infos, which `rollout` leaves out by default
    (exclude_infos=False keeps them). Without them, a terminal one counts as ended by the environment.

    Args:
        trajectories: `Trajectory` or `TrajectoryWithRew`; without rewards, these are zeros.
        env_id: of the environment, which trajectories don't name.
        env_kwargs: what it was made with.
        open_loop: see `Demonstrations`.
        key: of observations that are dictionaries, the part to keep; None: all.

    Raises:
        DemonstrationsError: it is something else; its observations have no such part; they or its actions aren't arrays of
            numbers.
    """
    given = list(trajectories)
    for number, one in enumerate(given):
        missing = [name for name in ("obs", "acts", "terminal") if not hasattr(one, name)]
        if missing:
            raise DemonstrationsError(
                f"trajectories[{number}]: expected a Trajectory of `imitation`, got {type(one).__name__} without {missing}."
            )
    rewards = [getattr(one, "rews", None) for one in given]
    return Demonstrations.from_arrays(
        env_id,
        [one.obs for one in given],
        [one.acts for one in given],
        [np.zeros(len(one.acts)) if gains is None else gains for one, gains in zip(given, rewards, strict=True)],
        terminated=np.array([bool(one.terminal) and not _cut_off(one) for one in given], dtype=bool),
        env_kwargs=env_kwargs,
        open_loop=open_loop,
        key=key,
    )


def to_imitation(demonstrations: Demonstrations) -> list[Any]:
    """The episodes as `imitation.data.types.TrajectoryWithRew`, for its `bc.BC(demonstrations=...)` and others.

    Each is terminal unless nothing ended it; the last info says whether a time limit did, as Stable-Baselines3 says it. So
    `from_imitation` gives back an episode that both ended as ended by the environment alone, and one that nothing ended as cut
    off. Named observations are a `DictObs`, with paths such as "robot/arm" for dictionaries within others.

    Raises:
        ImportError: `imitation` isn't installed.
    """
    types = _optional("imitation.data.types")
    return [
        types.TrajectoryWithRew(
            obs=types.maybe_wrap_in_dictobs(episode.observations),
            acts=episode.actions,
            rews=episode.rewards,
            infos=_infos(episode),
            terminal=episode.terminated or episode.truncated,
        )
        for episode in demonstrations.episodes
    ]


_HOW_TO_INSTALL = {
    "minari": 'pip install "dilqr_rl[minari]"',
    "imitation": 'pip install --no-deps "imitation>=1.0.1"; its own requirements are older releases of ours',
}


def _optional(module: str) -> Any:
    name = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{name} is needed for this and can't be imported: {error}. Install it: {_HOW_TO_INSTALL[name]}."
        ) from error


def _load_minari(dataset_id: str) -> Any:
    minari = _optional("minari")
    known = minari.list_local_datasets()
    if dataset_id not in known:
        raise DemonstrationsError(
            f"dataset: expected the id of a Minari data set on this machine, one of {sorted(known)}, got {dataset_id!r}. "
            "minari.download_dataset fetches one."
        )
    missing = [name for name in ("observation_space", "action_space") if name not in known[dataset_id]]
    if missing:  # Minari would make the environment, and so run whatever code the data set names
        raise DemonstrationsError(
            f"dataset: expected one that describes its spaces, got {dataset_id!r} without {missing}. If you trust it, load it "
            "yourself with minari.load_dataset and pass the object."
        )
    return minari.load_dataset(dataset_id)


def _origin(dataset: Any) -> tuple[str | None, Mapping[str, Any], bool]:
    """A data set's environment, what that was made with, and whether its episodes are open loops."""
    header = dataset.storage.metadata.get(_HEADER)
    if header is not None:
        try:
            return str(header["env_id"]), dict(header["env_kwargs"]), header["open_loop"] is True
        except (KeyError, TypeError, ValueError) as error:
            raise DemonstrationsError(f"dataset: {dataset.id!r} has a damaged entry {_HEADER!r}: {header!r}.") from error
    spec = dataset.env_spec
    return (None, {}, False) if spec is None else (spec.id, arguments_of(spec), False)


def _without_tuples(observed: Any) -> Any:
    """What a Tuple space gave as a dictionary: its members aren't of one step each."""
    if isinstance(observed, tuple):
        observed = {str(number): part for number, part in enumerate(observed)}
    if isinstance(observed, Mapping):
        return {name: _without_tuples(part) for name, part in observed.items()}
    return observed


def _header(demonstrations: Demonstrations) -> dict[str, Any]:
    return {
        "env_id": demonstrations.env_id,
        "env_kwargs": dict(demonstrations.env_kwargs),
        "open_loop": demonstrations.open_loop,
    }


def _buffer(episode: Episode) -> Any:
    last = np.arange(len(episode)) == len(episode) - 1
    return _optional("minari.data_collector").EpisodeBuffer(
        observations=as_nested(episode.observations),
        actions=episode.actions,
        rewards=episode.rewards,
        terminations=last & episode.terminated,
        truncations=last & episode.truncated,
        infos={},  # with None, Minari can't print what it has read
    )


def _make_if_it_fits(demonstrations: Demonstrations) -> gym.Env[Any, Any] | None:
    """Their environment, unless it can't be made or shows and takes something else, as it does under wrappers."""
    try:
        env = make_env(demonstrations.env_id, demonstrations.env_kwargs)
    except ValueError:
        return None
    first = demonstrations.episodes[0]
    came = (_shapes(as_nested(first.observations)), first.actions.shape[1:])
    expected = (_shapes(env.observation_space), env.action_space.shape)
    if came == expected:
        return env
    env.close()
    _log.info(
        "the data set is written without its environment: %s has observations and actions of shapes %s, the data have %s",
        demonstrations.env_id,
        expected,
        came,
    )
    return None


def _spaces(demonstrations: Demonstrations, env: gym.Env[Any, Any] | None) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Spaces of observations and actions, of the data's own precision."""
    first = demonstrations.episodes[0]
    observed, taken = (None, None) if env is None else (env.observation_space, env.action_space)
    return _space(observed, as_nested(first.observations)), _space(taken, first.actions)


def _shapes(what: Any) -> Any:
    """Of one step's arrays in data, or in a space; by name, where they have names."""
    if isinstance(what, spaces.Dict | dict):
        return {name: _shapes(part) for name, part in sorted(what.items())}
    return what.shape[1:] if isinstance(what, np.ndarray) else what.shape


def _space(space: Any, data: Any) -> spaces.Space[Any]:
    if isinstance(data, dict):
        return spaces.Dict({name: _space(None if space is None else space[name], part) for name, part in data.items()})
    return _box(space, data)


def _box(space: gym.Space[Any] | None, data: NDArray[Any]) -> spaces.Space[Any]:
    dtype: Any = data.dtype.type
    if data.dtype.kind == "b":
        return spaces.Box(0, 1, data.shape[1:], np.int8)
    if data.dtype.kind != "f":
        limits = np.iinfo(dtype)
        return spaces.Box(limits.min, limits.max, data.shape[1:], dtype)
    if not isinstance(space, spaces.Box):
        return spaces.Box(-np.inf, np.inf, data.shape[1:], dtype)
    return spaces.Box(space.low.astype(dtype), space.high.astype(dtype), dtype=dtype)


def _cut_off(trajectory: Any) -> bool:
    infos = getattr(trajectory, "infos", None)
    return infos is not None and len(infos) > 0 and bool(infos[-1].get(_CUT_OFF, False))


def _infos(episode: Episode) -> NDArray[Any]:
    infos: list[dict[str, Any]] = [{} for _ in range(len(episode))]
    infos[-1][_CUT_OFF] = episode.truncated and not episode.terminated
    return np.array(infos, dtype=object)
