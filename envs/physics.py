"""What the dynamics modules share: learnable physics, checked at the door, by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from dilqr_rl.envs.checks import check_number

__all__ = ["SystemDynamics"]


class SystemDynamics(nn.Module):
    """One time step of a mechanical system, (x, u) -> next x, whose physics are learnable parameters.

    A subclass takes its physics as the positional arguments of its constructor, and its settings (which nobody learns) as the
    keyword-only ones. Physics are 0-d float64 parameters: 9.8 means 9.8, and float32 states still give float32 states.

    Attributes:
        state_size: n.
        control_size: m.
        cosines: the place in the state of the cosine of each angle; its sine follows it.
        positive: names of the parameters that must be above 0. A planner checks them whenever it is called.
        coupled: names of physics that `check_numbers` holds against each other.
        time_step: seconds.
    """

    state_size: ClassVar[int]
    control_size: ClassVar[int]
    cosines: ClassVar[tuple[int, ...]] = ()
    positive: ClassVar[tuple[str, ...]] = ()
    coupled: ClassVar[tuple[str, ...]] = ()

    _names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        arguments = inspect.signature(cls).parameters.values()
        cls._names = tuple(argument.name for argument in arguments if argument.kind is argument.POSITIONAL_OR_KEYWORD)
        for attribute in ("positive", "coupled"):
            given = getattr(cls, attribute)
            if isinstance(given, str) or not set(given) <= set(cls._names):
                raise ValueError(f"{attribute}: expected a tuple of names among {list(cls._names)}, got {given!r}.")
        size = getattr(cls, "state_size", math.inf)
        if not all(isinstance(place, int) and 0 <= place < size - 1 for place in cls.cosines):
            raise ValueError(
                f"cosines: expected places from 0 to state_size - 2, each with its sine behind it, got {cls.cosines}."
            )

    def __init__(self, physics: Mapping[str, float], time_step: float) -> None:
        """Keep the physics as parameters.

        Args:
            physics: each of `physics_names()` with its number, which must be finite, and above 0 if `positive` lists it.
            time_step: seconds, above 0.

        Raises:
            ValueError: an impossible value.
        """
        super().__init__()
        if set(physics) != set(self.physics_names()):
            raise ValueError(
                f"physics: expected a number for each of {list(self.physics_names())}, the positional arguments of "
                f"{type(self).__name__}, got {list(physics)}. Settings are keyword-only arguments."
            )
        self.time_step = check_number("time_step", time_step, above=0.0)
        for name, number in self.check_numbers(physics, self.time_step).items():
            setattr(self, name, nn.Parameter(torch.tensor(number, dtype=torch.float64)))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The state (..., n) one time step after x (..., n) under the control u (..., m)."""
        raise NotImplementedError

    @property
    def physics(self) -> dict[str, float]:
        """The physics as they stand now, by name."""
        return {name: getattr(self, name).item() for name in self.physics_names()}

    @classmethod
    def physics_names(cls) -> tuple[str, ...]:
        """The names of this system's physics."""
        return cls._names

    @classmethod
    def check_names(cls, argument: str, values: Any, example: Any = 2.0) -> dict[str, Any]:
        """A copy of a mapping (or of None, as an empty one) whose keys are all names of this system's physics.

        Args:
            argument: what to call the mapping in an error.
            values: the mapping.
            example: of a value, for the error.

        Raises:
            ValueError: no mapping, or an unknown name.
        """
        accepted = cls.physics_names()
        if values is not None and not isinstance(values, Mapping):
            name = accepted[0] if accepted else "..."
            raise ValueError(f'{argument}: expected a dict such as {{"{name}": {example}}}, got {values!r}.')
        unknown = [name for name in values or () if name not in accepted]
        if unknown:
            raise ValueError(f"{argument}: expected names among {list(accepted)}, got {unknown}. Remove or correct the latter.")
        return dict(values or {})

    @classmethod
    def check_numbers(cls, physics: Mapping[str, Any], time_step: float) -> dict[str, float]:
        """All physics as floats, if they are possible. A subclass adds what those in `coupled` must fulfil together.

        Raises:
            ValueError: a number that isn't finite, or not above 0 where `positive` lists it.
        """
        return {name: check_number(name, value, above=0.0 if name in cls.positive else None) for name, value in physics.items()}

    @classmethod
    def from_physics(cls, physics: Mapping[str, float] | None = None, **settings: Any) -> Self:
        """Build the dynamics from names and numbers; what the mapping leaves out keeps its default.

        Args:
            physics: some or all of `physics_names()`, each with its number.
            settings: the keyword-only arguments of the constructor.

        Raises:
            ValueError: no mapping, an unknown name or an impossible value.
        """
        return cls(**cls.check_names("physics", physics), **settings)

    def extra_repr(self) -> str:
        """The physics and the time step, for print."""
        numbers = ", ".join(f"{name}={value:g}" for name, value in self.physics.items())
        return f"{numbers}, time_step={self.time_step:g}"
