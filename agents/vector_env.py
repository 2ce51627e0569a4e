"""Gymnasium's vector environments as Stable-Baselines3 wants them, so that its algorithms can learn on a native batch."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Sequence
from typing import Any, Self

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from dilqr_rl.checks import MOST, whole

__all__ = ["SB3VecEnv"]


class SB3VecEnv(VecEnv):
    """A `gymnasium.vector.VectorEnv` as a Stable-Baselines3 `VecEnv`, with the numbers and infos of a `DummyVecEnv`.

        model = PPO("MlpPolicy", VecMonitor(SB3VecEnv.make("dilqr_rl/Pendulum-v0", 32)), seed=0)

    An environment that ends starts again within the same step. Its info is then that of its last step, with
    "terminal_observation" and "TimeLimit.truncated" (which all infos have), and `reset_infos` holds that of its new start.
    `seed(s)` gives environment i the seed s + i at the next reset. Without VecMonitor, SB3 logs no returns.

    Attributes:
        vector_env: what it was made of.
    """

    def __init__(self, vector_env: VectorEnv[Any, Any, Any]) -> None:
        """Take over a vector environment; `close` closes it.

        Args:
            vector_env: any that starts ended episodes again within the same step, and that returns new arrays at every step.

        Raises:
            ValueError: it doesn't.
        """
        _check(vector_env)
        self.vector_env = vector_env
        self._actions: NDArray[Any] | None = None
        super().__init__(vector_env.num_envs, vector_env.single_observation_space, vector_env.single_action_space)
        self.metadata = vector_env.metadata
        self.spec = vector_env.spec

    @classmethod
    def make(cls, env_id: str, num_envs: int, **env_kwargs: Any) -> Self:
        """Several environments of one id: ours as a native batch, others side by side in this process.

        Args:
            env_id: of a registered environment.
            num_envs: how many.
            env_kwargs: what to make them with.

        Raises:
            ValueError: there is no environment of this id, or it refuses its arguments.
        """
        num_envs = whole("num_envs", num_envs, "an integer of at least 1", most=MOST)
        full_id = f"dilqr_rl.envs:{env_id}" if env_id.startswith("dilqr_rl/") else env_id  # imports what registers it
        sync = {"vectorization_mode": "sync", "vector_kwargs": {"autoreset_mode": AutoresetMode.SAME_STEP}}
        batch = {"vectorization_mode": "vector_entry_point", "autoreset_mode": "same_step"}
        try:
            return cls(gym.make_vec(full_id, num_envs, **env_kwargs, **(batch if _is_native(full_id) else sync)))
        except (gym.error.Error, ImportError, TypeError) as error:
            raise ValueError(f"env_id: {env_id!r} can't be made with {env_kwargs}: {error}") from error

    def reset(self) -> VecEnvObs:
        """Start all episodes, with the seeds and options that were last set; they are used once.

        Returns:
            The observations (N, ...). The infos are in `reset_infos`.
        """
        observations, infos = self.vector_env.reset(seed=self._seeds[0], options=self._options[0] or None)
        self.reset_infos = _one_by_one(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return observations

    def set_options(self, options: list[dict[str, Any]] | dict[str, Any] | None = None) -> None:
        """Options for the next reset, the same for all environments.

        Raises:
            ValueError: a list; Gymnasium's vector environments take one dict.
        """
        if options is not None and not isinstance(options, dict):
            raise ValueError(f"options: expected one dict for all environments, got {options!r}.")
        super().set_options(options)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions (N, ...) for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Take the step.

        Returns:
            Observations (N, ...), rewards (N,) in float32, which episodes ended (N,), and an info for each environment.
        """
        observations, rewards, terminations, truncations, vector_infos = self.vector_env.step(self._actions)
        infos = _one_by_one(vector_infos, self.num_envs)
        ended = terminations | truncations
        for i in ended.nonzero()[0].tolist():
            infos[i], self.reset_infos[i] = _split(infos[i])
        for info, truncated in zip(infos, (truncations & ~terminations).tolist(), strict=True):
            info["TimeLimit.truncated"] = truncated
        return observations, rewards.astype(np.float32), ended, infos

    def close(self) -> None:
        """Close the vector environment; again is fine."""
        self.vector_env.close()

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A frame of each environment, or None for each where their render mode isn't "rgb_array"."""
        frames: Any = self.vector_env.render() if self.render_mode == "rgb_array" else None
        return [None] * self.num_envs if frames is None else list(frames)

    def render(self, mode: str | None = None) -> NDArray[np.uint8] | None:
        """All frames as one picture, or a window where the environments have one."""
        if self.render_mode == "human" and mode in (None, "human"):
            self.vector_env.render()
            return None
        return super().render(mode)

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute of each environment; a native batch has one, which stands for all.

        Raises:
            AttributeError: there is none.
        """
        base = self.vector_env.unwrapped
        values = base.get_attr(attr_name) if hasattr(base, "get_attr") else [getattr(base, attr_name)] * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of some or all environments.

        Raises:
            AttributeError: the vector environment isn't made of single ones.
        """
        base = self._of_single_ones()
        values = list(base.get_attr(attr_name)) if indices is not None else [value] * self.num_envs
        for i in self._get_indices(indices):
            values[i] = value
        base.set_attr(attr_name, values)

    def env_method(self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any) -> list[Any]:
        """Call a method of all environments.

        Raises:
            AttributeError: the vector environment isn't made of single ones.
            ValueError: indices; Gymnasium's vector environments call all or none.
        """
        base = self._of_single_ones()
        if indices is not None:
            raise ValueError(
                f"indices: expected None, since {base} calls a method of all environments or none, got {indices!r}."
            )
        return list(base.call(method_name, *method_args, **method_kwargs))

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: VecEnvIndices = None) -> list[bool]:
        """False for each environment: wrappers of single environments aren't to be seen from here."""
        return [False for _ in self._get_indices(indices)]

    def _of_single_ones(self) -> Any:
        base = self.vector_env.unwrapped
        if not hasattr(base, "call"):
            raise AttributeError(f"{base} isn't made of single environments. Use its own methods: they are in .vector_env.")
        return base


def _is_native(env_id: str) -> bool:
    """Whether the id has a batch that takes an autoreset mode, as ours and their like do; others' have one mode each."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    entry = gym.spec(name).vector_entry_point
    made = gym.envs.registration.load_env_creator(entry) if isinstance(entry, str) else entry
    return made is not None and "autoreset_mode" in inspect.signature(made).parameters


def _check(vector_env: Any) -> None:
    if not isinstance(vector_env, VectorEnv):
        raise ValueError(f"vector_env: expected a gymnasium.vector.VectorEnv, as gymnasium.make_vec gives, got {vector_env!r}.")
    mode = vector_env.metadata.get("autoreset_mode")
    if mode != AutoresetMode.SAME_STEP:
        raise ValueError(
            f"vector_env: expected autoreset within the same step, which Stable-Baselines3 builds on, got {mode}. Make it by "
            'SB3VecEnv.make(id, num_envs), or give gymnasium.make_vec autoreset_mode="same_step" for a native batch, '
            'vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP} for "sync" and "async".'
        )
    if not getattr(vector_env.unwrapped, "copy", True):
        raise ValueError("vector_env: expected new arrays at every step, got copy=False. Make it with copy=True.")


def _one_by_one(infos: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """An info for each of `count` environments, of arrays (count, ...) with masks (count,) of who has an entry.

    Nested dicts are taken apart alike. Numbers become Python's, and arrays copies.
    """
    masks = {f"_{key}" for key in infos}.intersection(infos)
    shared = {key: _each(values, count) for key, values in infos.items() if key not in masks and _all_have(key, infos)}
    found = [dict(zip(shared, row, strict=True)) for row in zip(*shared.values(), strict=True)] or [{} for _ in range(count)]
    for key, values in infos.items():
        if key not in masks and key not in shared:
            each = _each(values, count)
            for i in infos[f"_{key}"].nonzero()[0].tolist():
                found[i][key] = each[i]
    return found


def _all_have(key: str, infos: dict[str, Any]) -> bool:
    return f"_{key}" not in infos or bool(infos[f"_{key}"].all())


def _each(values: Any, count: int) -> list[Any]:
    """The part of each environment."""
    if isinstance(values, dict):
        return _one_by_one(values, count)
    array = np.array(values)
    return array.tolist() if array.ndim == 1 else list(array)


def _split(info: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The info of an episode's last step, and that of the next one's start, of what a vector environment gives at once."""
    last = {**info.pop("final_info", {}), "terminal_observation": info.pop("final_obs")}
    if "episode" in info:  # by Gymnasium's RecordEpisodeStatistics
        last["episode"] = info.pop("episode")
    return last, info
