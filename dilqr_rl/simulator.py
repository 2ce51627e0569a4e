"""Dynamics that aren't torch: a step in NumPy, with its Jacobians given or found by differences."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

__all__ = ["Simulator"]

Array = NDArray[np.float64]
Step = Callable[[Any, Any], Any]
_FIRST = np.finfo(np.float64).eps ** (1 / 3)  # the best step of a central difference, relative to the numbers
_SECOND = np.finfo(np.float64).eps ** (1 / 4)  # and of one of differences


class Simulator(nn.Module):
    """A simulator as a problem's dynamics: `ControlProblem(Simulator(step), ...)`.

    Its numbers are the caller's: no gradient reaches them. Gradients with respect to x0, costs and bounds are right to the
    accuracy of differences. It is for the PyTorch path. The solver takes Gauss-Newton steps, since a simulator has no second
    derivatives; the gradient needs some along its directions, and takes differences of the Jacobians.

    Args:
        step: (x (B, n), u (B, m)) -> next x (B, n), arrays of float64, since float32 is too coarse for differences and for the
            end of a solve; pure, that is, of equal arguments always the same.
        jacobian: (x, u) -> (dx'/dx (B, n, n), dx'/du (B, n, m)). None: central differences of `step`, 2 (n + m) calls' worth.
        batched: whether both take a batch; else one state (n,) and one control (m,) at a time.

    Raises:
        ValueError: `step` or `jacobian` can't be called, or is a module with parameters.
    """

    def __init__(self, step: Step, jacobian: Step | None = None, *, batched: bool = True) -> None:
        super().__init__()
        for name, function in (("step", step), ("jacobian", jacobian)):
            if not callable(function) and (name == "step" or function is not None):
                raise ValueError(f"{name}: expected a function of x and u, got {function!r}.")
            if isinstance(function, nn.Module) and any(True for _ in function.parameters()):
                raise ValueError(
                    f"{name}: expected a function of arrays, got a module with parameters, whose gradient would be lost. A "
                    "model made of PyTorch operations is a problem's dynamics as it is."
                )
        self._step, self._jacobian, self.batched = step, jacobian, bool(batched)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The next state (..., n) after x (..., n) under u (..., m)."""
        found: Tensor = _Step.apply(self, x, u)
        return found

    def jacobian(self, x: Tensor, u: Tensor) -> Tensor:
        """d next x / d (x, u), as (..., n, n+m)."""
        arrays = [part.detach().cpu().double().reshape(-1, part.shape[-1]).numpy() for part in (x, u)]
        return torch.from_numpy(self._jacobians(*arrays)).to(x).reshape(*x.shape, x.shape[-1] + u.shape[-1])

    def _next(self, x: Array, u: Array) -> Array:
        try:
            return _checked("step", self._called("step", self._step, x, u), x.shape)
        except Exception as error:
            if self.batched and self._is_of_one_state(x[0], u[0]):
                raise ValueError(
                    f"step: expected a function of batches, x {x.shape} and u {u.shape}, got one of a single state and control "
                    f"({str(error).rstrip('.')}). Say Simulator(step, batched=False)."
                ) from error
            raise

    def _is_of_one_state(self, x: Array, u: Array) -> bool:
        """Whether the step does for one state, and not for that state several times over."""
        rows = 1 + max(len(x), len(u))  # no other size of theirs, as which it could be taken

        def does(*lead: int) -> bool:
            with suppress(Exception):  # any, of anybody's function
                arrays = (np.broadcast_to(part, (*lead, *part.shape)).copy() for part in (x, u))
                return np.shape(self._step(*arrays)) == (*lead, *x.shape)
            return False

        return does() and not does(rows)

    def _jacobians(self, x: Array, u: Array) -> Array:
        (B, n), m = x.shape, u.shape[1]
        if self._jacobian is not None:
            pair = self._called("jacobian", self._jacobian, x, u)
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise ValueError(f"jacobian: expected a pair of arrays {(B, n, n)} and {(B, n, m)}, got {type(pair).__name__}.")
            return np.concatenate((_checked("jacobian", pair[0], (B, n, n)), _checked("jacobian", pair[1], (B, n, m))), axis=-1)
        z = np.concatenate((x, u), axis=1)
        size = _FIRST * np.maximum(1.0, np.abs(z))
        ahead, behind = (z[:, None] + sign * np.eye(n + m) * size[:, None] for sign in (1.0, -1.0))
        points = np.concatenate((ahead, behind), axis=1).reshape(-1, n + m)
        found = self._next(points[:, :n], points[:, n:]).reshape(B, 2, n + m, n)
        span = np.einsum("bii->bi", ahead) - np.einsum("bii->bi", behind)  # as the numbers have it
        return np.asarray(((found[:, 0] - found[:, 1]) / span[..., None]).swapaxes(1, 2))

    def _called(self, name: str, function: Step, x: Array, u: Array) -> Any:
        if self.batched:
            return _kept(function(x.copy(), u.copy()))  # which it may write into
        each = [_kept(function(*point)) for point in zip(x.copy(), u.copy(), strict=True)]
        return np.stack(each) if name == "step" else tuple(map(np.stack, zip(*each, strict=True)))


def _kept(found: Any) -> Any:
    """A result as it is now: a simulator may fill the same arrays at its next call."""
    if isinstance(found, tuple | list):
        return tuple(map(_kept, found))
    return found.copy() if isinstance(found, np.ndarray) else found


def _checked(name: str, found: Any, shape: tuple[int, ...]) -> Array:
    if isinstance(found, Tensor):
        raise ValueError(f"{name}: expected an array, got a tensor. PyTorch operations are a problem's dynamics as they are.")
    array = np.asarray(found)
    if array.shape != shape or array.dtype.kind not in "iuf":
        raise ValueError(f"{name}: expected an array of numbers {shape}, got {array.dtype} {array.shape}.")
    return np.asarray(array, dtype=np.float64)


class _Step(torch.autograd.Function):
    """(simulator, x, u) -> next x."""

    @staticmethod
    def forward(ctx: Any, simulator: Simulator, x: Tensor, u: Tensor) -> Tensor:
        ctx.simulator = simulator
        ctx.save_for_backward(x, u)
        return _through(simulator._next, x, u).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        x, u = ctx.saved_tensors
        found: Tensor = _Pull.apply(ctx.simulator, x, u, gradient)
        return None, found[..., : x.shape[-1]], found[..., x.shape[-1] :]


class _Pull(torch.autograd.Function):
    """(simulator, x, u, v) -> v^T J; its own derivative along w is J w by v, and by (x, u) a difference of v^T J along w."""

    @staticmethod
    def forward(ctx: Any, simulator: Simulator, x: Tensor, u: Tensor, gradient: Tensor) -> Tensor:
        ctx.simulator = simulator
        ctx.save_for_backward(x, u, gradient)
        return _pulled(simulator, x, u, gradient)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, w: Tensor) -> tuple[None, Tensor, Tensor, Tensor]:
        x, u, gradient = ctx.saved_tensors
        n, z = x.shape[-1], torch.cat((x, u), dim=-1)
        along = (ctx.simulator.jacobian(x, u) @ w.unsqueeze(-1)).squeeze(-1)
        length = w.abs().amax(-1, keepdim=True)
        size = _SECOND * z.abs().amax(-1, keepdim=True).clamp(min=1.0) / torch.where(length > 0, length, 1.0)
        ends = (z + sign * size * w for sign in (1.0, -1.0))
        ahead, behind = (_pulled(ctx.simulator, end[..., :n], end[..., n:], gradient) for end in ends)
        change = (ahead - behind) / (2.0 * size)
        return None, change[..., :n], change[..., n:], along


def _pulled(simulator: Simulator, x: Tensor, u: Tensor, gradient: Tensor) -> Tensor:
    return (gradient.unsqueeze(-2) @ simulator.jacobian(x, u)).squeeze(-2)


def _through(function: Callable[[Array, Array], Array], x: Tensor, u: Tensor) -> Tensor:
    """A function of arrays (B, ...) for tensors with any leading dimensions, in x's type and on its device."""
    arrays = [part.detach().cpu().double().reshape(-1, part.shape[-1]).numpy() for part in (x, u)]
    return torch.from_numpy(function(*arrays)).to(x)
