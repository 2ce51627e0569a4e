"""The optimal control problem: dynamics, costs, horizon and bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from dilqr_rl.checks import MOST, real_tensor, whole

__all__ = ["ControlProblem"]


class ControlProblem(nn.Module):
    """Minimise the sum of stage_cost(x_t, u_t) over t < T, plus terminal_cost(x_T), over the controls.

    Subject to x_{t+1} = dynamics(x_t, u_t) from a given x_0, and u_min <= u_t <= u_max.

    The functions take leading batch dimensions: x (..., n), u (..., m). Give an `nn.Module` for anything that is
    to be learnt: its parameters and buffers become the problem's, under names such as "dynamics.mass" or "stage_cost.goal".
    The bounds are buffers named "u_min" and "u_max" (parameters, if you pass an `nn.Parameter`). A submodule may list, in an
    attribute `positive`, the names of parameters that must stay above zero; the planner refuses other values.

    Args:
        dynamics: (x, u) -> next x (..., n).
        stage_cost: (x, u) -> cost (...,).
        terminal_cost: x -> cost (...,); none by default.
        horizon: T, the number of controls.
        state_size: n.
        control_size: m.
        u_min: lower bound of the controls, a number or (m,); unbounded by default.
        u_max: upper bound of the controls, a number or (m,); unbounded by default.

    Raises:
        ValueError: a size is not a positive integer, a function can't be called, or a bound has another shape, holds NaN, or
            u_min > u_max.
    """

    def __init__(
        self,
        dynamics: Callable[[Tensor, Tensor], Tensor],
        stage_cost: Callable[[Tensor, Tensor], Tensor],
        terminal_cost: Callable[[Tensor], Tensor] | None = None,
        *,
        horizon: int,
        state_size: int,
        control_size: int,
        u_min: float | Tensor | None = None,
        u_max: float | Tensor | None = None,
    ) -> None:
        super().__init__()
        self.u_min: Tensor
        self.u_max: Tensor
        self.horizon = whole("horizon", horizon, most=MOST)
        self.state_size = whole("state_size", state_size, most=MOST)
        self.control_size = whole("control_size", control_size, most=MOST)
        self.dynamics = _as_module("dynamics", dynamics)
        self.stage_cost = _as_module("stage_cost", stage_cost)
        self.terminal_cost = None if terminal_cost is None else _as_module("terminal_cost", terminal_cost)
        self._register_bound("u_min", u_min, -torch.inf)
        self._register_bound("u_max", u_max, torch.inf)
        check_bounds(self.u_min, self.u_max)

    def _register_bound(self, name: str, bound: float | Tensor | None, default: float) -> None:
        if isinstance(bound, nn.Parameter):
            self.register_parameter(name, bound)
        else:
            refuse_hidden_gradient(name, bound)
            expected = f"a number or a tensor ({self.control_size},)"
            value = real_tensor(name, default if bound is None else bound, expected).detach()
            self.register_buffer(name, value.expand(self.control_size).clone() if value.ndim == 0 else value.clone())
        shape = tuple(getattr(self, name).shape)
        if shape not in ((), (self.control_size,)):
            raise ValueError(f"{name}: expected a number or a tensor ({self.control_size},), got shape {shape}.")

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """As any module's, and inside a function that `torch.func` transforms, too, where torch's own refuses it."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def extra_repr(self) -> str:
        """The sizes, for `print(problem)`."""
        return f"horizon={self.horizon}, state_size={self.state_size}, control_size={self.control_size}"


def check_bounds(u_min: Tensor, u_max: Tensor) -> None:
    """Raise a ValueError unless u_min <= u_max with numbers between them everywhere; both broadcast against each other."""
    for name, bound in (("u_min", u_min), ("u_max", u_max)):
        if torch.isnan(bound).any():
            raise ValueError(f"{name}: expected numbers, got NaN. Leave it out, or use infinity, where there is no bound.")
    for name, bound, nowhere in (("u_min", u_min, torch.inf), ("u_max", u_max, -torch.inf)):
        if (bound == nowhere).any():
            raise ValueError(
                f"{name}: expected a number, or {-nowhere:g} for no bound, got {nowhere:g}: no control is within it."
            )
    wrong = ~(u_min <= u_max)
    if wrong.any():
        low, high = (bound.detach().expand(wrong.shape)[wrong][0].item() for bound in (u_min, u_max))
        raise ValueError(f"u_min, u_max: expected u_min <= u_max, got u_min = {low:g} with u_max = {high:g}. Are they swapped?")


def refuse_hidden_gradient(name: str, value: Any) -> None:
    """Raise a ValueError for a tensor whose gradient would be lost: one that requires it without being a parameter."""
    if isinstance(value, Tensor) and value.requires_grad and not isinstance(value, nn.Parameter):
        raise ValueError(
            f"{name}: expected numbers or an nn.Parameter, got a tensor that requires a gradient, which would be lost. Pass it "
            "to the planner through params, or detach it."
        )


class _Function(nn.Module):
    """A plain function as a module, so that every problem is made of modules."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.function(*arguments)

    def extra_repr(self) -> str:
        return getattr(self.function, "__qualname__", repr(self.function))


def _as_module(name: str, function: Callable[..., Tensor]) -> nn.Module:
    if isinstance(function, nn.Module):
        return function
    if not callable(function):
        raise ValueError(f"{name}: expected an nn.Module or a function, got {type(function).__name__} {function!r}.")
    return _Function(function)
