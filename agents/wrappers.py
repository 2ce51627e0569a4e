"""Whether an environment shows what its model reads: wrappers scale, stack, cut, delay or normalise what it observes.

Their spaces tell most. Of wrappers that leave the space as it is, Gymnasium's `ObservationWrapper` and its kin say that they
change observations, and copies of them are shown some, to see whether they do. Others are taken to pass on what they get.
What they make of actions is told in `wrapped_actions.py`; the doors here look at both.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorObservationWrapper, VectorWrapper
from gymnasium.wrappers import MaxAndSkipObservation, NormalizeObservation
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecExtractDictObs

from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.layers import Copies, found_in, global_random_numbers_kept, wrappers
from dilqr_rl.agents.observations import STATE
from dilqr_rl.agents.vector_env import SB3VecEnv
from dilqr_rl.agents.wrapped_actions import ActionLayer, action_layers, changed_actions, refuse_actions_elsewhere
from dilqr_rl.tasks import ControlTask, find_task, model_environment

__all__ = ["AlgorithmsStates", "changes", "refuse_changes", "task_of"]

_NORMALISED = "env: expected raw observations, got a NormalizeObservation wrapper. A plan needs the state itself; remove it."
_SHOWN = 8  # observations, to see whether a wrapper changes them


@dataclass(frozen=True)
class _Layer:
    """A wrapper.

    Attributes:
        name: its class.
        space: of what it shows.
        change: what it makes of an observation; None where that can't be told from one alone.
    """

    name: str
    space: spaces.Space[Any]
    change: Callable[[Any], Any] | None


def refuse_changes(env: gym.Env[Any, Any], task: ControlTask | None = None) -> None:
    """Raise a ValueError for an environment whose wrappers change what its model reads states from, or what its actions mean.

    Args:
        env: the environment.
        task: what reads its observations and whose controls act on it, if not the model's own. One with an
            `observation_to_state` of its own reads what it was written for, unless that is normalised, by numbers that change
            all the time.
    """
    if _is_normalised(env):
        raise ValueError(_NORMALISED)
    for told in changes(env, task):
        raise ValueError(told)


def changes(env: gym.Env[Any, Any], task: ControlTask | None = None) -> Iterator[str]:
    """Which wrapper changes what the environment's model reads, and which what its actions mean, as errors say it."""
    base = model_environment(env)
    told = _told(base, _inside(env, base)) if task is None or _reads_as(task, base) else ""
    if told:
        yield told
    acting = found_in(env) if task is None else task
    told = changed_actions(env, acting) if acting is not None else ""
    if told:
        yield told


class AlgorithmsStates:
    """What an algorithm of Stable-Baselines3 gets its states from and where its actions go, which doesn't keep it alive.

    Args:
        algorithm: the algorithm.
        task: what its policy reads observations with.
    """

    def __init__(self, algorithm: BaseAlgorithm, task: ControlTask) -> None:
        self._algorithm, self._task = weakref.ref(algorithm), task
        self._last: weakref.ref[VecEnv] | None = None

    def check(self) -> None:
        """Raise a ValueError if a wrapper changes either; all are looked at where its environment isn't the last one."""
        algorithm = self._algorithm()
        batch = None if algorithm is None else algorithm.get_env()
        if algorithm is None or batch is None:
            return
        _refuse_normalised_batch(algorithm)  # which may be switched on at any time
        if self._last is None or self._last() is not batch:
            _refuse_changed_batch(batch, self._task)
            self._last = weakref.ref(batch)


def task_of(algorithm: BaseAlgorithm) -> ControlTask:
    """The model of an algorithm's environments, which becomes one of its policy_kwargs, so that what it saves has it, too.

    Raises:
        ValueError: it has no environments, or their model isn't known.
    """
    batch = algorithm.get_env()
    if batch is None:
        raise ValueError(
            "task: expected a ControlTask or an environment's id, since the algorithm has no environment; got None."
        )
    inner = _around(batch)[0]
    singles = _singles(inner)
    if singles:
        task = find_task(singles[0])
    else:  # in other processes
        try:
            (spec, *_) = inner.get_attr("spec")
        except Exception as error:  # which has ended them: what a spec holds, as a wrapper's function, can't always be sent
            raise ValueError(
                "task: expected one, since the environments in other processes can't tell their id, as with a wrapper that was "
                f"made with a function ({type(error).__name__}). Make them anew and give it in policy_kwargs."
            ) from error
        if spec is None:
            raise ValueError(
                "task: expected one, since the environments in other processes have no id to find a model by. Give it in "
                "policy_kwargs."
            )
        with closing(make_env(spec.id, spec.kwargs)) as env:
            task = find_task(env)
    algorithm.policy_kwargs = {**algorithm.policy_kwargs, "task": task}
    return task


def _refuse_normalised_batch(algorithm: BaseAlgorithm) -> None:
    normalised = algorithm.get_vec_normalize_env()
    if normalised is None or not normalised.norm_obs:
        return
    several = isinstance(normalised.observation_space, spaces.Dict)
    if not several or STATE in (normalised.norm_obs_keys or ()):
        raise ValueError(
            "env: expected states as they are, got them normalised by a VecNormalize. A plan needs the state itself: make it "
            f'with norm_obs=False (rewards are still normalised); or with Dict observations, the raw state as "{STATE}", and '
            "norm_obs_keys= all others."
        )


def _refuse_changed_batch(batch: VecEnv, task: ControlTask) -> None:
    """Wrappers in one of the environments, or around all of them."""
    inner, around, acting = _around(batch)
    flat = not isinstance(batch.observation_space, spaces.Dict)  # else the "state" may come from elsewhere
    envs = _singles(inner)
    for env in envs:
        if flat and _is_normalised(env):
            raise ValueError(_NORMALISED)
        base = model_environment(env)
        told = _told(base, [*_inside(env, base), *around]) if _reads_as(task, base) else ""
        told = told or changed_actions(env, task, acting)
        if told:
            raise ValueError(told)
    if not envs:
        _refuse_from_outside(inner, around, acting, task, flat)


def _refuse_from_outside(inner: Any, around: list[_Layer], acting: list[ActionLayer], task: ControlTask, flat: bool) -> None:
    """Of environments in other processes there are the spaces, and which have wrappers of a class."""
    try:
        own = make_env(task.name, task.env_kwargs)
    except ValueError:  # not to be made by the task's name, so that it wasn't found by it either
        return
    with closing(own):
        base = model_environment(own)
        if isinstance(inner, VecEnv):
            refuse_actions_elsewhere(inner, base, task)
        hidden = flat and isinstance(inner, VecEnv) and any(inner.env_is_wrapped(gym.ObservationWrapper))
        name = "an ObservationWrapper" if hidden else "a wrapper"
        within = _Layer(f"{name} in another process", _single_space(inner), None if hidden else _as_it_is)
        told = _told(base, [within, *around]) if _reads_as(task, base) else ""
        told = told or changed_actions(base, task, acting)
    if told:
        raise ValueError(told)


def _is_normalised(env: gym.Env[Any, Any]) -> bool:
    return any(isinstance(one, NormalizeObservation) for one in wrappers(env, env.unwrapped))


def _told(base: gym.Env[Any, Any], layers: list[_Layer]) -> str:
    """What `changes` tells of observations: the innermost wrapper from which on they aren't the model's."""
    space = base.observation_space
    shown = _samples(space)
    seen: list[Any] | None = shown
    found = ""
    for layer in layers:
        seen = _passed_on(layer, seen)
        how = " ".join(_difference(layer.space, space, seen, shown).split())  # spaces of several axes are told in lines
        found = (found or f"{layer.name}: {how}") if how else ""
    model = base.spec.id if base.spec is not None else type(base).__name__
    return found and (
        f"env: expected observations as {model} gives them, from which its model reads the state, got them changed by {found}. "
        "Leave that wrapper out, or give a task with an observation_to_state of its own, which turns these observations into "
        "states: task=dataclasses.replace(dilqr_rl.find_task(env), observation_to_state=...)."
    )


def _difference(given: spaces.Space[Any], wanted: spaces.Space[Any], seen: list[Any] | None, shown: list[Any]) -> str:
    """In what observations `seen` in the space `given` aren't those that were `shown` in the space `wanted`."""
    if isinstance(given, spaces.Dict) and STATE in given.spaces:  # said to be the state, and maybe from elsewhere
        box = wanted[STATE] if isinstance(wanted, spaces.Dict) and STATE in wanted.spaces else wanted
        said_nothing = isinstance(given[STATE], spaces.Box) and not given[STATE].is_bounded("both")  # type: ignore[attr-defined]
        same = given[STATE] == box or (said_nothing and given[STATE].shape == box.shape)
        return "" if same else f'the "{STATE}" is of {given[STATE]}, not of {box}'
    if isinstance(wanted, spaces.Dict) and STATE in wanted.spaces:  # of which the state alone may be shown
        wanted, shown = wanted[STATE], [one[STATE] for one in shown]
    if given != wanted:
        return f"they are of {given}, not of {wanted}"
    if seen is None:
        return "it leaves the space as it is, but what it shows can't be told from one observation"
    for before, after in zip(shown, seen, strict=True):
        if not _is_close(before, after):
            return f"it leaves the space as it is, but makes {after} of {before}"
    return ""


def _is_close(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(_is_close(one[key], other[key]) for key in one)
    return np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=1e-5, atol=1e-6)  # float32


def _samples(space: spaces.Space[Any]) -> list[Any]:
    drawn = copy.deepcopy(space)  # which has its own random numbers
    drawn.seed(0)
    return [drawn.sample() for _ in range(_SHOWN)]


def _passed_on(layer: _Layer, seen: list[Any] | None) -> list[Any] | None:
    if seen is None or layer.change is None:
        return None
    try:
        with global_random_numbers_kept():
            return [layer.change(one) for one in seen]
    except Exception:  # whatever a wrapper of anybody's raises where it isn't within an episode
        return None


def _inside(env: gym.Env[Any, Any], base: gym.Env[Any, Any]) -> list[_Layer]:
    """The wrappers of one environment."""
    copies, found = Copies(), []
    for one in wrappers(env, base):
        change: Callable[[Any], Any] | None = _as_it_is
        if isinstance(one, gym.ObservationWrapper):
            change = copies.method(one, "observation")
        elif isinstance(one, MaxAndSkipObservation) or one.observation_space != one.env.observation_space:
            change = None
        found.append(_Layer(type(one).__name__, one.observation_space, change))
    return found


def _around(batch: Any) -> tuple[Any, list[_Layer], list[ActionLayer]]:
    """What is within all wrappers of a batch, and what these change of observations and of actions, from the inside."""
    chain = []
    while isinstance(batch, VecEnvWrapper | SB3VecEnv | VectorWrapper):
        chain.append(batch)
        batch = next(getattr(batch, name) for name in ("vector_env", "venv", "env") if name in vars(batch))
    chain = [one for one in reversed(chain) if not isinstance(one, SB3VecEnv)]
    copies = Copies()
    found = [_Layer(type(one).__name__, _single_space(one), _change_of_batch(one, copies)) for one in chain]
    return batch, found, action_layers(chain)


def _change_of_batch(wrapper: Any, copies: Copies) -> Callable[[Any], Any] | None:
    if isinstance(wrapper, VecExtractDictObs):
        return lambda seen: seen[wrapper.key]
    if isinstance(wrapper, VectorObservationWrapper):
        change = copies.method(wrapper, "observations")
        return change and (lambda seen: change(np.stack([seen] * wrapper.num_envs))[0])
    inner = wrapper.venv if isinstance(wrapper, VecEnvWrapper) else wrapper.env
    return _as_it_is if _single_space(wrapper) == _single_space(inner) else None


def _singles(inner: Any) -> list[gym.Env[Any, Any]]:
    """The environments of a batch that are in this process; one stands for all of a native batch."""
    system = getattr(inner, "system", None)
    return [system] if isinstance(system, gym.Env) else list(getattr(inner, "envs", []))


def _single_space(batch: Any) -> spaces.Space[Any]:
    space: spaces.Space[Any] = getattr(batch, "single_observation_space", batch.observation_space)
    return space


def _as_it_is(seen: Any) -> Any:
    return seen


def _reads_as(task: ControlTask, base: gym.Env[Any, Any]) -> bool:
    """Whether a task reads observations as the environment's own does; false where that has none."""
    own = found_in(base) or _found_by_name(task)
    return own is not None and _is_same(task.observation_to_state, own.observation_to_state)


def _found_by_name(task: ControlTask) -> ControlTask | None:
    try:
        env = make_env(task.name, task.env_kwargs)
    except ValueError:
        return None
    with closing(env):
        return found_in(env)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two functions are the same, or were made alike by the same line."""
    if isinstance(one, partial) and isinstance(other, partial):
        return _is_same(one.func, other.func) and (one.args, one.keywords) == (other.args, other.keywords)
    codes = [getattr(function, "__code__", None) for function in (one, other)]
    if codes[0] is None or codes[1] is None:
        return bool(one is other)
    cells = [[cell.cell_contents for cell in function.__closure__ or ()] for function in (one, other)]
    return codes[0] is codes[1] and all(_is_equal(a, b) for a, b in zip(*cells, strict=True))


def _is_equal(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, int | float | str) and one == other)
