"""Dynamics as a fast NumPy function: what environments step with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dilqr_rl.modules import call_with, doubles_of
from dilqr_rl.native import build
from dilqr_rl.native.model import Functions
from dilqr_rl.native.stepping import Code, Stepper, compile_step

__all__ = ["CompiledDynamics", "compile_dynamics"]

Floats = NDArray[np.float64]


def compile_dynamics(
    dynamics: Callable[[Tensor, Tensor], Tensor], *, state_size: int | None = None, control_size: int | None = None
) -> CompiledDynamics:
    """Compile dynamics written in torch into a function of NumPy arrays, for one state and for a batch.

    The function follows the module's parameters and buffers as they change. Its other settings (a time step, say), and tensors
    of integers, are to stay as they are. What can't be compiled runs in PyTorch, with one line in the log that says why; so
    does what was compiled, once a look now and then shows that the dynamics give other results.

    Args:
        dynamics: (x, u) -> next x, an `nn.Module` or a plain function, as for a `ControlProblem`.
        state_size: n; by default the module's attribute of this name.
        control_size: m; likewise.

    Raises:
        ValueError: a size is neither given nor an attribute of the dynamics.
    """
    n = _size("state_size", state_size, dynamics)
    m = _size("control_size", control_size, dynamics)
    tensors, functions = [holder[name] for holder, name in _places(dynamics)], Functions(dynamics, None, None, n, m)
    code = compile_step(_name(dynamics), functions, tensors, partial(_in_torch, dynamics), closures=True)
    return CompiledDynamics(dynamics, n, m, code)


class CompiledDynamics(Stepper):
    """What `compile_dynamics` returns.

    Attributes:
        native: whether it is machine code; else it calls the torch function.
    """

    def __init__(self, dynamics: Callable[..., Tensor], n: int, m: int, code: Code | None) -> None:
        super().__init__(_name(dynamics), code is not None)
        self._dynamics, self._n, self._m = dynamics, n, m
        self._function: Any = partial(build.stepper().step, code.addresses, code.sizes) if code else None
        closures = dict(enumerate(code.closures if code else ()))
        self._places = [*_places(dynamics), *((closures, place) for place in closures)]
        self._seen: list[tuple[int, int, bool]] | None = None

    def __call__(self, x: Floats, u: Floats) -> Floats:
        """The next states of x (n,) or (B, n) under controls u (m,) or (B, m), in float64.

        Raises:
            ValueError: arrays of other shapes.
        """
        x, u = np.ascontiguousarray(x, np.float64), np.ascontiguousarray(u, np.float64)
        if x.shape[-1:] != (self._n,) or u.shape != (*x.shape[:-1], self._m) or x.ndim > 2:
            expected = f"({self._n},) and ({self._m},), or (B, {self._n}) and (B, {self._m})"
            raise ValueError(f"x, u: expected arrays of shapes {expected}, got {x.shape} and {u.shape}.")
        following: Floats = self._step(x, u)
        return following

    def _natively(self, x: Floats, u: Floats) -> Floats:
        following, n = np.empty(x.shape), self._n
        self._function(*self._parameters(), x.reshape(-1, n), u.reshape(-1, self._m), following.reshape(-1, n))
        return following

    def _plainly(self, x: Floats, u: Floats) -> Floats:
        with torch.no_grad():
            return _in_torch(self._dynamics, torch.from_numpy(x), torch.from_numpy(u)).numpy()

    def __repr__(self) -> str:
        return f"CompiledDynamics({self._label}, native={self.native})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles take the dynamics and compile them, which is in the cache."""
        return _compiled_again, (self._dynamics, self._n, self._m)

    def _parameters(self) -> tuple[Floats, NDArray[np.int64]]:
        """All numbers, flat, and where each tensor starts."""
        tensors = [holder[name] for holder, name in self._places]
        seen = [(id(tensor), tensor.data_ptr(), tensor.is_contiguous()) for tensor in tensors]
        if seen != self._seen or not all(contiguous for *_, contiguous in seen):  # else the views show the numbers of now
            numbers = [t.detach().reshape(-1).numpy() if t.is_floating_point() else np.empty(0) for t in tensors]
            offsets = np.cumsum([0, *(part.size for part in numbers)])[:-1]
            self._seen, self._tensors, self._numbers, self._offsets = seen, tensors, [*numbers, np.empty(0)], offsets
        return np.concatenate(self._numbers, dtype=np.float64), self._offsets


def _in_torch(dynamics: Callable[..., Tensor], x: Tensor, u: Tensor) -> Tensor:
    """The torch function's result, in float64 whatever the type of its parameters."""
    if not isinstance(dynamics, nn.Module):
        return dynamics(x.clone(), u.clone())  # which it may write into
    following: Tensor = call_with(dynamics, doubles_of(dynamics), x, u)
    return following


def _compiled_again(dynamics: Callable[..., Tensor], n: int, m: int) -> CompiledDynamics:
    return compile_dynamics(dynamics, state_size=n, control_size=m)


def _places(dynamics: Any) -> list[tuple[Any, str]]:
    """Where a module's parameters and buffers are held: a dictionary and a name each, and each tensor once."""
    if not isinstance(dynamics, nn.Module):
        return []
    holders = [holder for kind in ("_parameters", "_buffers") for holder in (vars(m)[kind] for m in dynamics.modules())]
    held = {id(tensor): (holder, name) for holder in holders for name, tensor in holder.items() if tensor is not None}
    return list(held.values())


def _size(name: str, given: int | None, dynamics: Any) -> int:
    size = getattr(dynamics, name, None) if given is None else given
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{name}: expected a positive integer, as an argument or an attribute of the dynamics, got {size!r}.")
    return size


def _name(dynamics: Any) -> str:
    return type(dynamics).__name__ if isinstance(dynamics, nn.Module) else getattr(dynamics, "__qualname__", repr(dynamics))
