"""The wrappers around an environment, looked at one by one: copies show what they change, the environments stay as they are."""

from __future__ import annotations

import copy
import dis
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import VectorEnv

from dilqr_rl.tasks import ControlTask, find_task

__all__ = ["Copies", "found_in", "global_random_numbers_kept", "wrappers"]


def wrappers(env: Any, base: Any) -> list[Any]:
    """From the inside, those that are around `base`."""
    found = []
    while env is not base:
        found.append(env)
        env = env.env
    return found[::-1]


class Copies:
    """Copies of wrappers, with one random generator of their own, to be called without a trace in what they are copies of.

    Environments aren't copied: a stand-in takes the place of each. Of a function that a wrapper holds, and of the method
    itself, what it closes over and its global variables are copied, too; not what functions use that it calls in turn. Wrappers
    of one chain are copied by one object, from the inside, so that they share what they share.
    """

    def __init__(self) -> None:
        self._copies: dict[int, Any] = {}
        self._random = np.random.default_rng(0)

    def method(self, wrapper: Any, name: str) -> Callable[[Any], Any] | None:
        """A method of the copy of a wrapper; None for one that holds what can't be copied."""
        inner = wrapper.env
        while id(inner) not in self._copies:
            self._stand_in(inner)
            inner = getattr(inner, "env", inner)
        try:
            made = copy.deepcopy(wrapper, self._copies)
            for key, value in vars(made).items():
                if isinstance(value, FunctionType):
                    setattr(made, key, self._function(value))
            found: Callable[[Any], Any] = getattr(made, name)
            if isinstance(found, MethodType) and isinstance(found.__func__, FunctionType):
                return MethodType(self._function(found.__func__), made)
        except Exception:  # whatever a wrapper of anybody's holds that can't be copied
            return None
        return found

    def value(self, value: Any) -> Any:
        """A copy of anything but a module."""
        if isinstance(value, gym.Env | VectorEnv) and id(value) not in self._copies:
            self._stand_in(value)
        return value if isinstance(value, ModuleType) else copy.deepcopy(value, self._copies)

    def _stand_in(self, env: Any) -> None:
        self._copies[id(env)] = _StandIn(env, self, self._random)

    def _function(self, function: FunctionType) -> FunctionType:
        named = {one.argval for one in dis.get_instructions(function) if one.opname == "LOAD_GLOBAL"}
        own = {name: self.value(value) for name, value in function.__globals__.items() if name in named}
        cells = tuple(CellType(self.value(cell.cell_contents)) for cell in function.__closure__ or ())
        everything = {**function.__globals__, **own}
        made = FunctionType(function.__code__, everything, function.__name__, self.value(function.__defaults__), cells)
        made.__kwdefaults__ = self.value(function.__kwdefaults__)
        return made


class _StandIn:
    """In an environment's place: what is read of it is copied first, its methods are the stand-in's, what is set stays here."""

    def __init__(self, env: Any, copies: Copies, generator: np.random.Generator) -> None:
        vars(self).update(_env=env, _copies=copies, np_random=generator, np_random_seed=0)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        vars(self)[name] = found = self._copies.value(getattr(self._env, name))
        return found


@contextmanager
def global_random_numbers_kept() -> Iterator[None]:
    """Whatever is drawn within, the generators that everybody shares go on afterwards as if it hadn't been."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def found_in(env: gym.Env[Any, Any]) -> ControlTask | None:
    """The task of an environment whose model is known."""
    try:
        return find_task(env)
    except ValueError:
        return None
