"""Where a planner starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from dilqr_rl.problem import ControlProblem

__all__ = ["Guess"]


@dataclass(frozen=True)
class Guess:
    """Trajectories to start B problems from; without the leading B, the same for all.

    With states, the start is not a replay of the controls, which a long unstable system would leave at once, but a rollout with
    feedback: u_t = controls_t + gains_t (x_t - states_t), clipped to the bounds. Of a solution that was found before, give all
    three; where only states are known, gains are found from the problem's linear-quadratic model along them.

    Attributes:
        controls: (B, T, m), or (T, m).
        states: (B, T+1, n), or (T+1, n); they need not be those of the controls, and the first need not be x0.
        gains: (B, T, m, n), or (T, m, n); only with states.
        multipliers: of constraints, which no solver has yet; None.
    """

    controls: Tensor
    states: Tensor | None = None
    gains: Tensor | None = None
    multipliers: Tensor | None = None

    def parts(self) -> list[Tensor]:
        """What it has."""
        return [part for part in (self.controls, self.states, self.gains) if part is not None]

    def select(self, index: Tensor) -> Guess:
        """Those of some problems of the batch."""
        return self.map(lambda part: part[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Guess:
        """The same with every tensor changed."""
        parts = (self.controls, self.states, self.gains, self.multipliers)
        return Guess(*(None if part is None else change(part) for part in parts))  # type: ignore[arg-type]


def either(u_init: Tensor | None, guess: Guess | None) -> Guess | None:
    """One of the two, as a guess.

    Raises:
        ValueError: both were given.
    """
    if u_init is not None and guess is not None:
        raise ValueError("guess: expected either u_init or guess, got both. Put the controls into the guess.")
    return guess if u_init is None else Guess(u_init)


def checked_guess(problem: ControlProblem, x0: Tensor, u_init: Tensor | None, guess: Guess | None) -> Guess:
    """Where to start from x0 (B, n): what was given, (B, ...) in float64 on x0's device, or zero controls.

    Raises:
        ValueError: both were given, or a wrong type or shape, NaN or infinity; gains without states; multipliers.
    """
    prefix = "" if u_init is None else "u_init"
    guess = either(u_init, guess)
    if guess is None:
        return Guess(x0.new_zeros((len(x0), problem.horizon, problem.control_size), dtype=torch.float64))
    if not isinstance(guess, Guess):
        raise ValueError(f"guess: expected a dilqr_rl.Guess, got {type(guess).__name__}. Controls alone are u_init.")
    if guess.multipliers is not None:
        raise ValueError("guess.multipliers: expected None, since problems have no constraints yet, got multipliers.")
    if guess.gains is not None and guess.states is None:
        raise ValueError("guess.gains: expected states beside them, around which they are feedback, got none.")
    T, n, m = problem.horizon, problem.state_size, problem.control_size
    shapes = {"controls": (T, m), "states": (T + 1, n), "gains": (T, m, n)}
    parts = {name: _checked(prefix or f"guess.{name}", getattr(guess, name), x0, shape) for name, shape in shapes.items()}
    return Guess(**parts)  # type: ignore[arg-type]


def _checked(name: str, value: Tensor | None, x0: Tensor, one: tuple[int, ...]) -> Tensor | None:
    if value is None and name != "guess.controls":
        return None
    shape = (x0.shape[0], *one)
    if not isinstance(value, Tensor) or tuple(value.shape) not in (shape, one):
        came = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name}: expected a tensor of shape {shape} or {one}, got {came}.")
    refuse_unreal(name, value)
    return finite(name, value).to(x0.device, torch.float64).expand(shape)


def refuse_unreal(name: str, values: Tensor) -> None:
    """Raise a ValueError for a tensor of complex numbers, whose imaginary part would be lost, or of bools."""
    if values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name}: expected real numbers, got a tensor of {values.dtype}.")


def finite(name: str, values: Tensor) -> Tensor:
    """The values; a ValueError if one isn't finite. Those of a transform can't be seen."""
    if is_functorch_wrapped_tensor(values):
        return values
    if math.isfinite(values.detach().sum()):  # at once so of nearly all; the sum of finite numbers may be infinite
        return values
    if not torch.isfinite(values).all():
        wrong = values.detach()[~torch.isfinite(values)][0].item()
        raise ValueError(f"{name}: expected finite numbers, got {wrong}.")
    return values
