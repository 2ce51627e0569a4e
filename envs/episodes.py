"""Episodes of a system that run side by side: their states, their physics, and what is seen of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dilqr_rl.envs.drawing import Drawing
from dilqr_rl.envs.rendering import FRAME_SIZE
from dilqr_rl.native.transition import BAD_ACTION, OUTSIDE, Transition

if TYPE_CHECKING:
    from dilqr_rl.envs.base import SystemEnv
    from dilqr_rl.envs.camera import Camera

__all__ = ["Episodes", "Floats"]

Floats = NDArray[np.float64]
_ALL = slice(None)


class Episodes:
    """N episodes of one system. An environment has one, a vector environment many.

    Args:
        system: what runs.
        count: N.
        action_shape: what `advance` takes: (N, m), or (m,) for a single episode.

    Attributes:
        states: (N, n).
        columns: (N, p), the physics, in the order of their names.
        observations: (N, ...), what is seen of the states; whoever hands them out copies them.
        begun: whether there was a `begin`.
    """

    def __init__(self, system: SystemEnv, count: int, action_shape: tuple[int, ...]) -> None:
        dynamics = system.dynamics_class
        self._system, self._names = system, dynamics.physics_names()
        self.states = np.zeros((count, dynamics.state_size))
        self.columns = np.zeros((count, len(self._names)))
        space = system.observation_space
        self.observations: NDArray[Any] = np.zeros((count, *space.shape), space.dtype)  # type: ignore[misc]
        self.begun = False
        self._action_shape = action_shape
        self._actions = np.zeros((count, dynamics.control_size))
        self._numbers = system.transition.numbers(self.columns)

    def begin(self, rows: Any, states: Floats, physics: Floats) -> None:
        """Begin an episode in each of some rows (an index of k of them), at states (k, n), with physics (k, p)."""
        self.states[rows], self.columns[rows], self._actions[rows] = states, physics, 0.0
        self._numbers[rows] = self._system.transition.numbers(physics)
        camera = self._system.camera
        seen = self._system.transition.observe(states) if camera is None else camera.first(self._look(camera, rows))
        self.observations[rows] = seen
        self.begun = True

    def advance(self, action: ArrayLike, waiting: NDArray[np.bool_] | None = None) -> tuple[Floats, NDArray[np.bool_]]:
        """Apply actions.

        Args:
            action: of all episodes.
            waiting: (N,), where the caller is about to begin a new episode: the action there is not looked at.

        Returns:
            The rewards (N,), 0 where waiting, and which episodes (N,) have ended.

        Raises:
            ValueError: actions of another shape, or that aren't finite. Nothing has changed then.
            FloatingPointError: a next state isn't finite. Nothing has changed then.
        """
        actions = self._read(action)
        after = self._system.transition(self._numbers, self.states, actions)
        if waiting is not None:
            after.flags[waiting], after.rewards[waiting] = 0, 0.0
        noteworthy = after.flags.any()
        if noteworthy and (after.flags & ~OUTSIDE).any():
            self._refuse(after, action)
        self.states, self._actions = after.states, actions
        camera = self._system.camera
        self.observations = after.observations if camera is None else camera.next(self.observations, self._look(camera))
        ends = noteworthy and self._system.ends_outside
        return after.rewards, after.flags != 0 if ends else np.zeros(len(actions), np.bool_)

    def physics(self, row: int) -> dict[str, float]:
        """The physics of one episode, by name."""
        return dict(zip(self._names, self.columns[row].tolist(), strict=True))

    def frames(self) -> list[NDArray[np.uint8]]:
        """A picture (500, 500, 3) of each episode, with its last control."""
        drawing = Drawing(len(self.states))
        self._system.paint(drawing, self.states, self.named_physics(), self._actions.clip(-1.0, 1.0))
        return list(drawing.pixels(FRAME_SIZE))

    def _look(self, camera: Camera, rows: Any = _ALL) -> NDArray[np.uint8]:
        """Frames (k, size, size, 3) of some rows."""
        drawing = Drawing(len(self.states[rows]))
        self._system.paint_seen(drawing, self.states[rows], self.named_physics(rows))
        return drawing.pixels(camera.size)

    def named_physics(self, rows: Any = _ALL) -> dict[str, Floats]:
        """The physics (k,) by name."""
        return dict(zip(self._names, self.columns[rows].T, strict=True))

    def _read(self, action: ArrayLike) -> Floats:
        """The actions (N, m), as an array of their own."""
        try:
            actions = np.array(action, np.float64, order="C")
        except (TypeError, ValueError):
            raise self._bad_action(action) from None
        if actions.shape != self._action_shape:
            raise self._bad_action(action)
        return actions.reshape(self._actions.shape)

    def _refuse(self, after: Transition, action: ArrayLike) -> None:
        """Raise what `advance` says."""
        bad = (after.flags & ~OUTSIDE).nonzero()[0][0]
        if after.flags[bad] & BAD_ACTION:
            raise self._bad_action(action)
        raise FloatingPointError(
            f"The state after {self.states[bad]} is not finite; the physics {self.physics(bad)} are too extreme, or the "
            "dynamics go wrong there."
        )

    def _bad_action(self, action: Any) -> ValueError:
        return ValueError(f"action: expected an array of shape {self._action_shape} that holds finite numbers, got {action!r}.")
