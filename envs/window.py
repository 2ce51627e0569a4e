"""A window that shows frames. pygame is imported on first use."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from types import ModuleType

    from pygame import Surface

__all__ = ["Window"]


class Window:
    """A window on the screen, opened by the first frame. A copy or a pickle of it is closed.

    Args:
        title: of the window.
        needed: whether there will be a frame; then pygame must be there.

    Raises:
        gymnasium.error.DependencyNotInstalled: pygame is missing, and needed.
    """

    def __init__(self, title: str, needed: bool = False) -> None:
        if needed:
            _pygame()
        self.title = title
        self._screen: Surface | None = None

    def show(self, frame: NDArray[np.uint8], fps: int) -> None:
        """Show a frame (height, width, 3), and wait so that no more than `fps` of them pass per second.

        Raises:
            gymnasium.error.DependencyNotInstalled: pygame is missing.
        """
        pygame = _pygame()
        size = (frame.shape[1], frame.shape[0])
        if self._screen is None or pygame.display.get_surface() is not self._screen:
            pygame.display.init()
            pygame.display.set_caption(self.title)
            self._screen = pygame.display.set_mode(size)
            self._clock = pygame.time.Clock()
        self._screen.blit(pygame.image.frombuffer(np.ascontiguousarray(frame), size, "RGB"), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(fps)

    def close(self) -> None:
        """Close the window, if it is open."""
        if self._screen is not None:
            _pygame().display.quit()
            self._screen = None

    def __reduce__(self) -> tuple[type[Window], tuple[str]]:
        return Window, (self.title,)


def _pygame() -> ModuleType:
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import pygame
    except ImportError as error:
        raise gym.error.DependencyNotInstalled('A window needs pygame: pip install "pygame-ce".') from error
    return pygame
