"""A mechanical system as a Gymnasium environment: its spaces, its physics, its options, and the hooks that define it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from dilqr_rl.costs import QuadraticCost
from dilqr_rl.envs.camera import Camera
from dilqr_rl.envs.checks import check_number, read_limits, read_state
from dilqr_rl.envs.drawing import Drawing
from dilqr_rl.envs.episodes import Episodes, Floats
from dilqr_rl.envs.physics import SystemDynamics
from dilqr_rl.envs.presets import Preset
from dilqr_rl.envs.ranges import PhysicsSource
from dilqr_rl.envs.window import Window
from dilqr_rl.native.transition import compile_transition
from dilqr_rl.tasks import ControlTask

__all__ = ["SystemEnv"]

_RESET_OPTIONS = ("physics", "state")


class SystemEnv(gym.Env[NDArray[Any], NDArray[np.float32]], ABC):
    """A mechanical system under bounded controls: one dynamics module moves it, and its `control_task` plans with a copy.

    The observation is the state, rounded to float32 and clipped into the observation space, or frames where a subclass has a
    camera. The state itself is float64 and stands in `info["state"]` (n,), beside `info["physics"]`, a dict of numbers. An
    action in [-1, 1] is scaled to the control's bounds; one outside is clipped.

    A subclass gives the class attributes below and the abstract methods. `Episodes` runs it, for this environment and for a
    batch (`SystemVectorEnv`).

    Attributes:
        env_id: the id it is registered under.
        dynamics_class: its `SystemDynamics`.
        presets: named settings, the default first.
        horizon: steps a plan looks ahead by default.
        cost_weights, cost_goal: of the quadratic stage cost, over (x, u).
        ends_outside: whether an episode ends when the state leaves its limits.
        camera: takes the observations; None if they are states.
        source: where an episode's physics come from.
        transition: one step of a batch.
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 20}
    env_id: ClassVar[str]
    dynamics_class: type[SystemDynamics]
    presets: ClassVar[Mapping[str, Preset]]
    horizon: ClassVar[int]
    cost_weights: ClassVar[tuple[float, ...]]
    cost_goal: ClassVar[tuple[float, ...]]
    ends_outside: ClassVar[bool] = True
    camera: Camera | None = None

    def __init__(
        self,
        preset: Preset,
        physics: Mapping[str, float] | None,
        randomize: Mapping[str, tuple[float, float]] | None,
        render_mode: str | None,
        *,
        state_limit: ArrayLike,
        control_limit: float,
        step_settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Build spaces and dynamics.

        Args:
            preset: from `find_preset`.
            physics: numbers that replace the preset's, by name.
            randomize: ranges (lowest, highest) that an episode's physics are drawn from, by name.
            render_mode: "human", "rgb_array" or None.
            state_limit: (n,), the largest absolute values of a state; observations are clipped to them.
            control_limit: the control's bound, in its own unit; action 1 asks for this much.
            step_settings: keyword-only arguments of the dynamics that hold while stepping but not while planning.

        Raises:
            ValueError: unknown names, impossible values or ranges, an unknown render mode, dynamics or a reward whose results
                have the wrong shape.
            gymnasium.error.DependencyNotInstalled: mode "human", and pygame is missing.
        """
        modes = (None, *self.metadata["render_modes"])
        if render_mode not in modes:
            raise ValueError(f"render_mode: expected one of {modes}, got {render_mode!r}.")
        if not isinstance(preset, Preset):
            raise ValueError(f"preset: expected what find_preset returns, as the first argument, got {preset!r}.")
        self.render_mode = render_mode
        self.dynamics_class = preset.dynamics_class or self.dynamics_class
        self._start_width = np.array(preset.start, np.float64)
        self._state_limit = read_limits("state_limit", state_limit, self.dynamics_class.state_size)
        self._control_limit = check_number("control_limit", control_limit, above=0.0)
        with _plain_torch():
            dynamics = self.dynamics_class.from_physics(preset.physics, **(step_settings or {}))
            reward = self.reward_function()
        self._check_start()
        self.source = PhysicsSource.read(dynamics, physics, randomize)
        names, limits = self.dynamics_class.physics_names(), (self._state_limit, self._control_limit)
        self.transition = compile_transition(dynamics, reward, names, state_limit=limits[0], control_limit=limits[1])
        high = self._state_limit.astype(np.float32)
        self.observation_space = gym.spaces.Box(-high, high, dtype=np.float32) if self.camera is None else self.camera.space
        self.action_space = gym.spaces.Box(-1.0, 1.0, (self.dynamics_class.control_size,), np.float32)
        self._physics = dict(self.source.numbers)
        self._episodes = Episodes(self, 1, (self.dynamics_class.control_size,))
        self._window = Window(self.env_id, needed=render_mode == "human")

    @abstractmethod
    def reward_function(self) -> nn.Module:
        """A new module (x, u) -> reward (...,), of the state x (..., n) before a step and the control u (..., m)."""

    @abstractmethod
    def states_at(self, coordinates: Floats) -> Floats:
        """States (N, n) at coordinates (N, k): those of `Preset.start`, such as angles in the place of cosines and sines."""

    @abstractmethod
    def paint(self, drawing: Drawing, states: Floats, physics: Mapping[str, Floats], efforts: Floats) -> None:
        """Draw states (N, n), with physics (N,) by name, and the last controls (N, m), as shares of their bound."""

    def paint_seen(self, drawing: Drawing, states: Floats, physics: Mapping[str, Floats]) -> None:
        """Draw what a camera sees: states (N, n) without controls."""
        self.paint(drawing, states, physics, np.zeros((len(states), self.dynamics_class.control_size)))

    @classmethod
    def find_preset(cls, name: str | None) -> Preset:
        """The preset of a name; the first one for None.

        Raises:
            ValueError: there is none of this name.
        """
        names = list(cls.presets)
        if name is not None and name not in names:
            raise ValueError(f"preset: expected one of {names}, got {name!r}.")
        return cls.presets[names[0] if name is None else name]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[NDArray[Any], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of the environment's generator.
            options: "physics", numbers by name that replace those given at make or drawn, for this episode only; "state" (n,),
                where to start instead of a random state. Each cosine and sine in it must lie on the unit circle within 1e-3,
                and is moved onto it.

        Returns:
            The observation and the info.

        Raises:
            ValueError: unknown options or physics, impossible values, a state of the wrong shape, off the circle, or outside
                its limits. The environment stays as it was.
        """
        source, state = self.read_options(options)
        super().reset(seed=seed)
        self._episodes.begin(slice(None), *self.draw_starts([self.np_random], source, state))
        self._physics = self._episodes.physics(0)
        if self.render_mode == "human":
            self.render()
        return self._episodes.observations[0].copy(), self._info()

    def step(self, action: ArrayLike) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Apply an action (m,) for one time step.

        Args:
            action: control divided by its bound; clipped to [-1, 1].

        Returns:
            The observation, the reward, whether the state is terminal, False (the time limit is a wrapper's), the info.

        Raises:
            ValueError: an action of the wrong shape, or that holds NaN or infinity. The environment stays as it was.
            FloatingPointError: physics so extreme that the next state isn't finite. The environment stays as it was.
            gymnasium.error.ResetNeeded: called before `reset`.
        """
        self._check_begun()
        rewards, ended = self._episodes.advance(action)
        if self.render_mode == "human":
            self.render()
        return self._episodes.observations[0].copy(), float(rewards[0]), bool(ended[0]), False, self._info()

    def render(self) -> NDArray[np.uint8] | None:
        """A frame (500, 500, 3), uint8, in mode "rgb_array"; in mode "human" a window shows it, and None is returned.

        Raises:
            gymnasium.error.ResetNeeded: called before `reset`.
        """
        if self.render_mode is None:
            gym.logger.warn(f'{self.env_id} has no render mode; pass render_mode="rgb_array" or "human" to gymnasium.make.')
            return None
        self._check_begun()
        (frame,) = self._episodes.frames()
        if self.render_mode == "human":
            self._window.show(frame, self.metadata["render_fps"])
            return None
        return frame

    def close(self) -> None:
        """Close the window, if one is open."""
        self._window.close()

    @property
    def control_limit(self) -> float:
        """The control for an action of 1, in its own unit."""
        return self._control_limit

    @property
    def physics(self) -> dict[str, float]:
        """The physics of the episode, by name; before the first one, those given at make."""
        return self._physics.copy()

    def stage_cost(self) -> QuadraticCost:
        """A new copy of the quadratic cost of one step, (x, u) -> cost, that plans minimise."""
        with _plain_torch():
            return QuadraticCost(self.cost_weights, self.cost_goal)

    def control_task(self) -> ControlTask:
        """The model of this environment, with its present physics, as copies that learn without changing the environment."""
        with _plain_torch():
            dynamics = self.dynamics_class.from_physics(self.physics)
        return ControlTask(
            name=self.env_id if self.spec is None else self.spec.id,
            dynamics=dynamics,
            stage_cost=self.stage_cost(),
            observation_to_state=observation_is_state if self.camera is None else frames_are_no_states,
            horizon=self.horizon,
            state_size=self.dynamics_class.state_size,
            control_size=self.dynamics_class.control_size,
            u_min=-self.control_limit,
            u_max=self.control_limit,
            control_per_action=self.control_limit,
        )

    def read_options(self, options: Any) -> tuple[PhysicsSource, Floats | None]:
        """The options of `reset`: where the physics come from, and the state (n,) to start at, if one is given.

        Raises:
            ValueError: as `reset`.
        """
        options = {} if options is None else options
        if not isinstance(options, Mapping) or not set(options) <= set(_RESET_OPTIONS):
            raise ValueError(f"options: expected a dict with keys among {_RESET_OPTIONS}, got {options!r}.")
        source, state = self.source.with_given(options.get("physics")), options.get("state")
        if state is not None:
            state = read_state('options["state"]', state, self._state_limit, self.dynamics_class.cosines)
        return source, state

    def draw_starts(
        self, generators: Sequence[np.random.Generator], source: PhysicsSource, state: Floats | None
    ) -> tuple[Floats, Floats]:
        """What episodes begin with: states (N, n) and physics (N, p), each from a generator of its own where not given.

        What is given leaves what is drawn as it was: the generators are used all the same.
        """
        shares = np.empty((len(generators), self._start_width.size + len(source.ranges)))
        for row, generator in zip(shares, generators, strict=True):
            generator.random(out=row)
        width = self._start_width
        states = self.states_at(-width + 2.0 * width * shares[:, : width.size])
        if state is not None:
            states[:] = state
        return states, source.at(shares[:, width.size :])

    def _check_start(self) -> None:
        """Starts must be states, and at both ends of their ranges within the limits.

        Raises:
            ValueError: they aren't.
        """
        ends = self.states_at(np.stack((-self._start_width, self._start_width)))
        if np.shape(ends) != (2, self._state_limit.size):
            raise ValueError(
                f"states_at: expected states (2, {self._state_limit.size}) at coordinates {(2, self._start_width.size)}, got "
                f"shape {np.shape(ends)}."
            )
        if not (np.abs(ends) <= self._state_limit + 1e-9).all():  # a cosine and its bound round in their own ways
            raise ValueError(
                f"state_limit: expected room for all starts, up to {np.abs(ends).max(axis=0).tolist()}, got "
                f"{self._state_limit.tolist()}. Widen the limits or narrow the preset's start."
            )

    def _info(self) -> dict[str, Any]:
        return {"state": self._episodes.states[0].copy(), "physics": self._physics.copy()}

    def _check_begun(self) -> None:
        if not self._episodes.begun:
            raise gym.error.ResetNeeded("Call reset() before step() or render().")


@contextmanager
def _plain_torch() -> Iterator[None]:
    """Tensors on the CPU that can learn, wherever a person stands: under another default device, or in inference mode."""
    with torch.device("cpu"), torch.inference_mode(False), torch.enable_grad():
        yield


def observation_is_state(observation: Tensor) -> Tensor:
    """The state (..., n) in an observation (..., n): the same numbers."""
    return observation


def frames_are_no_states(observation: Tensor) -> Tensor:
    """Refuse to plan from frames.

    Raises:
        ValueError: always.
    """
    raise ValueError(
        f"observation: expected a state to plan from, got frames of shape {tuple(observation.shape)}. Plan from info['state'], "
        "use the id without Pixels, or learn an encoder and give the task its function as observation_to_state."
    )
