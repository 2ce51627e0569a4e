"""Many episodes of a system as one Gymnasium vector environment, stepped by one call of native code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import ArrayLike, NDArray

from dilqr_rl.envs.base import SystemEnv
from dilqr_rl.envs.checks import check_integer
from dilqr_rl.envs.episodes import Episodes, Floats
from dilqr_rl.envs.ranges import PhysicsSource

__all__ = ["SystemVectorEnv"]

_MOST = 1_000_000
_SHELL = ("reset", "step", "read_options", "draw_starts")  # of one environment; a batch has its own
_ALL = slice(None)


class SystemVectorEnv(gym.vector.VectorEnv[NDArray[Any], NDArray[np.float32], NDArray[Any]]):
    """N environments of one class in one: gymnasium.make_vec(id, num_envs, vectorization_mode="vector_entry_point").

    It does, number by number, what a `SyncVectorEnv` of the same environments does with the same seeds: environment i has a
    generator of its own, seeded with seed + i, and a time limit of its own. An action that isn't finite, or a state that
    becomes so, is an error before anything has moved.

    Args:
        num_envs: N.
        max_episode_steps: the time limit, after which an episode is truncated; `make_vec` gives that of the id. None for none.
        autoreset_mode: what follows an episode's end: a `gymnasium.vector.AutoresetMode`, or "next_step" (the next step is a
            reset), "same_step" (the step that ends an episode returns the first observation of the next one, with `final_obs`
            and `final_info` in the info), or "disabled" (`reset(options={"reset_mask": ...})` is due).
        render_mode: "rgb_array" or None.
        **arguments: of the environment's class, shared by all.

    Attributes:
        env_class: of the environments.
        system: one of them, which says what they all are; it has no episode of its own.

    Raises:
        ValueError: as the environment's class; a number or a mode out of what is accepted.
    """

    env_class: ClassVar[type[SystemEnv]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        env_class = getattr(cls, "env_class", SystemEnv)
        changed = [name for name in _SHELL if getattr(env_class, name) is not getattr(SystemEnv, name)]
        if changed:
            raise ValueError(
                f"env_class: expected SystemEnv's own {list(_SHELL)}, got {env_class.__name__} with other {changed}, which "
                "a batch would not have. Put what differs into the dynamics, the reward or a wrapper."
            )

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        **arguments: Any,
    ) -> None:
        self.num_envs = check_integer("num_envs", num_envs, 1, _MOST)
        limited = max_episode_steps is not None
        self._time_limit = check_integer("max_episode_steps", max_episode_steps, 1, _MOST) if limited else np.inf
        self._mode = _read_mode(autoreset_mode)
        if render_mode not in (None, "rgb_array"):
            raise ValueError(
                f'render_mode: expected None or "rgb_array", got {render_mode!r}. A window ("human") shows one environment: '
                "gymnasium.make has it."
            )
        self.metadata = {**self.env_class.metadata, "render_modes": ["rgb_array"], "autoreset_mode": self._mode}
        self.render_mode = render_mode
        self.system = self.env_class(**arguments)
        self.single_observation_space = self.system.observation_space
        self.single_action_space = self.system.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)
        self._generators: list[np.random.Generator] = []
        self._seeds: list[int] = []
        self._episodes = Episodes(self.system, self.num_envs, (self.num_envs, self.system.dynamics_class.control_size))
        self._elapsed = np.zeros(self.num_envs, np.int64)
        self._over = np.zeros(self.num_envs, np.bool_)

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """An attribute of each environment, as Gymnasium's other vector environments give it.

        Raises:
            AttributeError: environments have none of this name.
        """
        if name == "physics":
            return tuple(self._episodes.physics(row) for row in range(self.num_envs))
        if name in ("np_random", "np_random_seed"):
            each: tuple[Any, ...] = getattr(self, name)
            return each
        return (self.render_mode if name == "render_mode" else getattr(self.system, name),) * self.num_envs

    @property
    def physics(self) -> dict[str, Floats]:
        """The physics (N,) of all episodes, by name."""
        return {name: column.copy() for name, column in self._episodes.named_physics().items()}

    @property  # type: ignore[misc]  # which Gymnasium's own vector environments do, too
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generator of each environment."""
        self._seed_those_without()
        return tuple(self._generators)

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """What each generator was seeded with."""
        self._seed_those_without()
        return tuple(self._seeds)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode in every environment, or in those of a mask.

        Args:
            seed: of the generators: environment i gets seed + i, or the i-th of a sequence.
            options: as for one environment, the same for all: "physics" and "state"; and "reset_mask" (N,) bool.

        Returns:
            The observations (N, ...) and the infos: "state" (N, n), and "physics", a dict of arrays (N,), each with its mask.

        Raises:
            ValueError: seeds of another number, a mask that is none, and as for one environment. Nothing has changed then.
            gymnasium.error.Error: a negative seed. Nothing has changed then.
            gymnasium.error.ResetNeeded: the first reset has a mask that leaves some out.
        """
        rest = dict(options) if isinstance(options, Mapping) else options
        rows: Any = _ALL
        if isinstance(rest, dict) and "reset_mask" in rest:
            rows = _read_mask(rest.pop("reset_mask"), self.num_envs).nonzero()[0]
            if not self._episodes.begun and len(rows) < self.num_envs:
                raise gym.error.ResetNeeded("Call reset() without a mask first.")
        source, state = self.system.read_options(rest)
        self._seed(seed, range(self.num_envs) if rows is _ALL else rows.tolist())
        self._begin(rows, source, state)
        return self._episodes.observations.copy(), self._infos(rows)

    def step(self, actions: ArrayLike) -> tuple[NDArray[Any], Floats, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Apply actions (N, m) for one time step.

        Returns:
            The observations (N, ...), the rewards (N,), whether states are terminal (N,), whether the time limit is reached
            (N,), the infos.

        Raises:
            ValueError: actions of the wrong shape, or that hold NaN or infinity. Nothing has changed then.
            FloatingPointError: physics so extreme that a next state isn't finite. Nothing has changed then.
            gymnasium.error.ResetNeeded: before the first reset; in mode "disabled", where an episode is over.
        """
        if not self._episodes.begun:
            raise gym.error.ResetNeeded("Call reset() before step().")
        over = self._over if self._over.any() else None
        if over is not None and self._mode is AutoresetMode.DISABLED:
            raise gym.error.ResetNeeded(
                f'The episodes of {over.nonzero()[0].tolist()} are over: call reset(options={{"reset_mask": ...}}) first.'
            )
        rewards, terminated = self._episodes.advance(actions, over)
        self._elapsed += 1
        if over is not None:
            self._begin(over.nonzero()[0])
        truncated = self._elapsed >= self._time_limit
        self._over = terminated | truncated
        infos = self._end() if self._mode is AutoresetMode.SAME_STEP and self._over.any() else {}
        return self._episodes.observations.copy(), rewards, terminated, truncated, {**infos, **self._infos()}

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """A frame (500, 500, 3), uint8, of each environment.

        Raises:
            gymnasium.error.ResetNeeded: called before `reset`.
        """
        if self.render_mode is None:
            gym.logger.warn(f'{self.env_class.env_id} has no render mode; pass render_mode="rgb_array" to gymnasium.make_vec.')
            return None
        if not self._episodes.begun:
            raise gym.error.ResetNeeded("Call reset() before render().")
        return tuple(self._episodes.frames())

    def close_extras(self, **kwargs: Any) -> None:
        """Close what the environments hold open, which is nothing."""
        if hasattr(self, "system"):  # Gymnasium 1.1 closes what had wrong arguments, too
            self.system.close()

    def _seed_those_without(self) -> None:
        if not self._generators:
            self._seed(None, range(self.num_envs))

    def _seed(self, seed: int | Sequence[int | None] | None, rows: Iterable[int]) -> None:
        """Make the generators that a reset of some rows asks for, and those that are missing."""
        count = self.num_envs
        if seed is None or isinstance(seed, (int, np.integer)):
            seeds = [None if seed is None else int(seed) + row for row in range(count)]
        else:
            seeds = [one if one is None else int(one) for one in seed] if isinstance(seed, (Sequence, np.ndarray)) else []
        if len(seeds) != count:
            raise ValueError(f"seed: expected an integer, or one for each of {count} environments, got {seed!r}.")
        due = range(count) if not self._generators else [row for row in rows if seeds[row] is not None]
        made = {row: gym.utils.seeding.np_random(seeds[row]) for row in due}
        pairs = [made.get(row) or (self._generators[row], self._seeds[row]) for row in range(count)]
        self._generators, self._seeds = [one for one, _ in pairs], [number for _, number in pairs]

    def _begin(self, rows: Any, source: PhysicsSource | None = None, state: Floats | None = None) -> None:
        """Begin an episode in some rows."""
        generators = self._generators if rows is _ALL else [self._generators[row] for row in rows.tolist()]
        starts = self.system.draw_starts(generators, source or self.system.source, state)
        self._episodes.begin(rows, *starts)
        self._elapsed[rows], self._over[rows] = 0, False

    def _end(self) -> dict[str, Any]:
        """Begin anew where episodes are over; returns what was last seen of them."""
        rows = self._over.nonzero()[0]
        last = np.full(self.num_envs, None, dtype=object)
        for row in rows:
            last[row] = self._episodes.observations[row].copy()
        names = ("final_obs", "_final_obs", "final_info", "_final_info")
        infos = dict(zip(names, (last, self._over.copy(), self._infos(rows), self._over.copy()), strict=True))
        self._begin(rows)
        return infos

    def _infos(self, rows: Any = _ALL) -> dict[str, Any]:
        """The infos of some rows, zeros elsewhere, as Gymnasium's vector environments have them: each with a mask."""
        mask = np.zeros(self.num_envs, np.bool_)
        mask[rows] = True

        def spread(values: Floats) -> Floats:
            return values.copy() if rows is _ALL else np.where(mask if values.ndim == 1 else mask[:, None], values, 0.0)

        physics: dict[str, Any] = {}
        for name, column in self._episodes.named_physics().items():
            physics[name], physics[f"_{name}"] = spread(column), mask.copy()
        return {"state": spread(self._episodes.states), "_state": mask.copy(), "physics": physics, "_physics": mask}


def _read_mode(mode: Any) -> AutoresetMode:
    accepted = {name: one for one in AutoresetMode for name in (one, one.value, one.name.lower())}
    if not isinstance(mode, (str, AutoresetMode)) or mode not in accepted:
        raise ValueError(f"autoreset_mode: expected one of {[one.name.lower() for one in AutoresetMode]}, got {mode!r}.")
    return accepted[mode]


def _read_mask(mask: Any, count: int) -> NDArray[np.bool_]:
    if not isinstance(mask, np.ndarray) or mask.shape != (count,) or mask.dtype != np.bool_ or not mask.any():
        raise ValueError(f'options["reset_mask"]: expected a bool array ({count},) that is True somewhere, got {mask!r}.')
    return mask
