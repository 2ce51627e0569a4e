"""Named settings of an environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dilqr_rl.envs.physics import SystemDynamics

__all__ = ["Preset"]


@dataclass(frozen=True)
class Preset:
    """What an environment is made with, where nothing else is said.

    Attributes:
        start: half the width of the range, around zero, that each coordinate of a start state is drawn from.
        limits: numbers for the arguments of the environment that limit its motion, by name.
        physics: those that differ from the defaults of the dynamics.
        dynamics_class: other dynamics than the environment's own, if any.
    """

    start: tuple[float, ...]
    limits: Mapping[str, float]
    physics: Mapping[str, float] = field(default_factory=dict)
    dynamics_class: type[SystemDynamics] | None = None

    def with_limits(self, **given: float | None) -> dict[str, float]:
        """The limits by name, those given in the place of its own; None is not given.

        Raises:
            ValueError: a name that the preset's limits lack.
        """
        missing = [name for name in given if name not in self.limits]
        if missing:
            raise ValueError(f"limits: expected {list(given)} in the preset, got {list(self.limits)}. Add {missing}.")
        return {name: self.limits[name] if value is None else value for name, value in given.items()}
