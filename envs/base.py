"""The shell that makes a Gymnasium environment of a system's dynamics: spaces, actions, options, infos and frames."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from dilqr_rl.costs import QuadraticCost
from dilqr_rl.envs.checks import read_state, read_vector
from dilqr_rl.envs.physics import SystemDynamics
from dilqr_rl.envs.rendering import Window, frame_pixels, new_frame
from dilqr_rl.native import compile_dynamics
from dilqr_rl.tasks import ControlTask

if TYPE_CHECKING:
    from pygame import Surface

__all__ = ["SystemEnv"]

_RESET_OPTIONS = ("physics", "state")


class SystemEnv(gym.Env[NDArray[np.float32], NDArray[np.float32]], ABC):
    """A mechanical system under bounded controls: one dynamics module moves it, and its `control_task` plans with a copy.

    The observation is the state, rounded to float32 and clipped into the observation space; the state itself is float64 and
    stands in `info["state"]` (n,), beside `info["physics"]`, a dict of numbers. An action in [-1, 1] is scaled to the control's
    bounds; one outside is clipped.

    A subclass gives the class attributes below and the abstract methods.

    Attributes:
        env_id: the id it is registered under.
        dynamics_class: its `SystemDynamics`.
        horizon: steps a plan looks ahead by default.
        cost_weights, cost_goal: of the quadratic stage cost, over (x, u).
    """

    metadata: dict[str, Any] = {"render_modes": ["human", "rgb_array"], "render_fps": 20}
    env_id: ClassVar[str]
    dynamics_class: ClassVar[type[SystemDynamics]]
    horizon: ClassVar[int]
    cost_weights: ClassVar[tuple[float, ...]]
    cost_goal: ClassVar[tuple[float, ...]]

    def __init__(
        self,
        physics: Mapping[str, float] | None,
        render_mode: str | None,
        *,
        state_limit: ArrayLike,
        control_limit: float,
        step_settings: Mapping[str, Any] | None = None,
    ) -> None:
        """Build spaces and dynamics.

        Args:
            physics: numbers that replace the defaults of `dynamics_class`, by name.
            render_mode: "human", "rgb_array" or None.
            state_limit: (n,), the observation space is [-state_limit, state_limit].
            control_limit: the control's bound, in its own unit; action 1 asks for this much.
            step_settings: keyword-only arguments of `dynamics_class` that hold while stepping but not while planning.

        Raises:
            ValueError: unknown names, impossible values, an unknown render mode.
        """
        modes = (None, *self.metadata["render_modes"])
        if render_mode not in modes:
            raise ValueError(f"render_mode: expected one of {modes}, got {render_mode!r}.")
        self.render_mode = render_mode
        self._state_limit = np.array(state_limit, dtype=np.float64)
        self._control_limit = control_limit
        self._step_settings = dict(step_settings or {})
        high = self._state_limit.astype(np.float32)
        self.observation_space = gym.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (self.dynamics_class.control_size,), np.float32)
        self._dynamics_at_make = self._build_dynamics(self.dynamics_class.check_physics(physics))
        self._physics_at_make = self._dynamics_at_make.physics
        self._use(self._dynamics_at_make)
        self._state: NDArray[np.float64] | None = None
        self._control = np.zeros(self.dynamics_class.control_size)
        self._window = Window(self.env_id)

    @abstractmethod
    def _draw_start(self) -> NDArray[np.float64]:
        """A start state (n,), drawn from `np_random`."""

    @abstractmethod
    def _reward(self, state: NDArray[np.float64], control: NDArray[np.float64]) -> float:
        """The reward for `control` (m,) in `state` (n,)."""

    @abstractmethod
    def _paint(self, surface: Surface, state: NDArray[np.float64], effort: NDArray[np.float64]) -> None:
        """Draw `state` (n,) and the last control (m,), as a share of its bound, on a square surface."""

    def _has_ended(self, state: NDArray[np.float64]) -> bool:
        """Whether `state` (n,) is terminal."""
        return False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: of the environment's generator.
            options: "physics", numbers that replace those given at make, by name, for this episode only; "state" (n,), where to
                start instead of a random state. Each cosine and sine in it must lie on the unit circle within 1e-3, and is
                moved onto it.

        Returns:
            The observation (n,) and the info.

        Raises:
            ValueError: unknown options or physics, impossible values, a state of the wrong shape, off the circle, or outside
                the observation space. The environment stays as it was.
        """
        dynamics, start = self._read_options(options)
        super().reset(seed=seed)
        self._use(dynamics)
        self._state = self._draw_start() if start is None else start
        self._control = np.zeros_like(self._control)
        if self.render_mode == "human":
            self.render()
        return self._observation(self._state), self._info(self._state)

    def step(self, action: ArrayLike) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Apply an action (m,) for one time step.

        Args:
            action: control divided by its bound; clipped to [-1, 1].

        Returns:
            The observation (n,), the reward, whether the state is terminal, False (the time limit is a wrapper's), the info.

        Raises:
            ValueError: an action of the wrong shape, or that holds NaN or infinity. The environment stays as it was.
            FloatingPointError: physics so extreme that the next state isn't finite. The environment stays as it was.
            gymnasium.error.ResetNeeded: called before `reset`.
        """
        state, control = self._current_state(), self._read_action(action)
        following = self._advance(state, control)
        reward = self._reward(state, control)
        self._state, self._control = following, control
        if self.render_mode == "human":
            self.render()
        return self._observation(following), reward, self._has_ended(following), False, self._info(following)

    def render(self) -> NDArray[np.uint8] | None:
        """A frame (500, 500, 3), uint8, in mode "rgb_array"; in mode "human" a window shows it, and None is returned.

        Raises:
            gymnasium.error.ResetNeeded: called before `reset`.
            gymnasium.error.DependencyNotInstalled: pygame is missing.
        """
        if self.render_mode is None:
            gym.logger.warn(f'{self.env_id} has no render mode; pass render_mode="rgb_array" or "human" to gymnasium.make.')
            return None
        state = self._current_state()
        effort = self._control / self._control_limit
        frame = new_frame(lambda surface: self._paint(surface, state, effort))
        if self.render_mode == "human":
            self._window.show(frame, self.metadata["render_fps"])
            return None
        return frame_pixels(frame)

    def close(self) -> None:
        """Close the window, if one is open."""
        self._window.close()

    def stage_cost(self) -> QuadraticCost:
        """A new copy of the quadratic cost of one step, (x, u) -> cost, that plans minimise."""
        with torch.device("cpu"):
            return QuadraticCost(self.cost_weights, self.cost_goal)

    def control_task(self) -> ControlTask:
        """The model of this environment, with its present physics, as copies that learn without changing the environment."""
        with torch.device("cpu"):
            dynamics = self.dynamics_class.from_physics(self._physics)
        return ControlTask(
            name=self.env_id if self.spec is None else self.spec.id,
            dynamics=dynamics,
            stage_cost=self.stage_cost(),
            observation_to_state=observation_is_state,
            horizon=self.horizon,
            state_size=self.dynamics_class.state_size,
            control_size=self.dynamics_class.control_size,
            u_min=-self._control_limit,
            u_max=self._control_limit,
            control_per_action=self._control_limit,
        )

    def _build_dynamics(self, physics: Mapping[str, float]) -> SystemDynamics:
        with torch.device("cpu"):
            return self.dynamics_class.from_physics(physics, **self._step_settings)

    def _use(self, dynamics: SystemDynamics) -> None:
        """Step with these dynamics from now on."""
        self._compiled_dynamics, self._physics = compile_dynamics(dynamics), dynamics.physics

    def _advance(self, state: NDArray[np.float64], control: NDArray[np.float64]) -> NDArray[np.float64]:
        """The next state: the one place where the system moves."""
        following = self._compiled_dynamics(state, control)
        if not np.isfinite(following).all():
            raise FloatingPointError(f"The state after {state} is not finite; the physics {self._physics} are too extreme.")
        return following

    def _current_state(self) -> NDArray[np.float64]:
        if self._state is None:
            raise gym.error.ResetNeeded("Call reset() before step() or render().")
        return self._state

    def _observation(self, state: NDArray[np.float64]) -> NDArray[np.float32]:
        return state.clip(-self._state_limit, self._state_limit).astype(np.float32)

    def _info(self, state: NDArray[np.float64]) -> dict[str, Any]:
        return {"state": state.copy(), "physics": self._physics.copy()}

    def _read_action(self, action: ArrayLike) -> NDArray[np.float64]:
        share = read_vector("action", action, self.dynamics_class.control_size)
        return self._control_limit * share.clip(-1.0, 1.0)

    def _read_options(self, options: Any) -> tuple[SystemDynamics, NDArray[np.float64] | None]:
        options = {} if options is None else options
        if not isinstance(options, Mapping) or not set(options) <= set(_RESET_OPTIONS):
            raise ValueError(f"options: expected a dict with keys among {_RESET_OPTIONS}, got {options!r}.")
        physics = self.dynamics_class.check_physics(options.get("physics"))
        dynamics = self._build_dynamics({**self._physics_at_make, **physics}) if physics else self._dynamics_at_make
        start = options.get("state")
        if start is not None:
            start = read_state('options["state"]', start, self._state_limit, self.dynamics_class.cosines)
        return dynamics, start


def observation_is_state(observation: Tensor) -> Tensor:
    """The state (..., n) in an observation (..., n): the same numbers."""
    return observation
