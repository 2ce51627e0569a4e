"""What an environment does in one step, as a fast NumPy function: dynamics and reward, written in torch, for a batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from dilqr_rl.native import build
from dilqr_rl.native.comparison import compare
from dilqr_rl.native.model import Functions, write_model
from dilqr_rl.native.tracing import UntraceableError, fingerprint

__all__ = ["BAD_ACTION", "NOT_FINITE", "OUTSIDE", "CompiledTransition", "Transition", "compile_transition"]

Floats = NDArray[np.float64]
BAD_ACTION, NOT_FINITE, OUTSIDE = 1, 2, 4  # as in kernel/step.py, which imports numba
_MOST = 64  # kept

_log = logging.getLogger("dilqr_rl")
_compiled: dict[Hashable, Callable[..., None] | None] = {}


class Transition(NamedTuple):
    """What becomes of N states.

    Attributes:
        states: the next ones (N, n).
        observations: these, clipped to the state limits, (N, n) in float32.
        rewards: (N,), of the states before and the controls.
        flags: (N,), 0 where all is well, else the sum of BAD_ACTION (the action isn't finite), NOT_FINITE (the next state
            isn't) and OUTSIDE (the next state is beyond its limits).
    """

    states: Floats
    observations: NDArray[np.float32]
    rewards: Floats
    flags: NDArray[np.int64]


def compile_transition(
    dynamics: nn.Module, reward: nn.Module, *, state_limit: Floats, control_limit: float
) -> CompiledTransition:
    """Compile dynamics and a reward into one function of NumPy arrays.

    What can't be compiled runs in PyTorch, with one line in the log that says why.

    Args:
        dynamics: (x, u) -> next x, with the attribute `control_size`; its tensors are 0-d parameters, for which a transition
            takes numbers instead.
        reward: (x, u) -> reward (...,); its tensors stay as they are now.
        state_limit: (n,), the largest absolute values of a state that is inside.
        control_limit: the control for an action of 1.
    """
    limits = np.array([control_limit, *state_limit], np.float64)
    system = _System(dynamics, reward)
    key = (fingerprint(dynamics), fingerprint(reward), limits.size)
    if key not in _compiled:
        while len(_compiled) >= _MOST:
            del _compiled[next(iter(_compiled))]
        _compiled[key] = _compile(system, limits.size - 1)
    return CompiledTransition(system, limits, _compiled[key])


class CompiledTransition:
    """What `compile_transition` returns. It never changes, so that copies of an environment share it.

    Attributes:
        native: whether it is machine code; else it calls the torch functions.
    """

    def __init__(self, system: _System, limits: Floats, step: Callable[..., None] | None) -> None:
        self.native = step is not None
        self._system, self._limits = system, limits
        self._step = step or system.step
        self._rest = system.reward_numbers()

    def numbers(self, physics: Floats) -> Floats:
        """What a call takes for physics (R, p), in the order of the dynamics' parameters: R rows."""
        rows, own = physics.shape
        numbers = np.empty((rows, own + self._rest.size))
        numbers[:, :own], numbers[:, own:] = physics, self._rest
        return numbers

    def observe(self, states: Floats) -> NDArray[np.float32]:
        """Observations (N, n) of states (N, n)."""
        limit = self._limits[1:]
        return states.clip(-limit, limit).astype(np.float32)

    def __call__(self, numbers: Floats, states: Floats, actions: Floats) -> Transition:
        """Apply actions (N, m), clipped to [-1, 1], to states (N, n), with `numbers` for each of them, or one row for all."""
        shape, count = states.shape, len(states)
        result = Transition(np.empty(shape), np.empty(shape, np.float32), np.empty(count), np.empty(count, np.int64))
        self._step(self._limits, numbers, states, actions, *result)
        return result

    def __deepcopy__(self, memo: Any) -> CompiledTransition:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _compiled_again, (self._system.dynamics, self._system.reward, self._limits)


def _compiled_again(dynamics: nn.Module, reward: nn.Module, limits: Floats) -> CompiledTransition:
    return compile_transition(dynamics, reward, state_limit=limits[1:], control_limit=float(limits[0]))


@dataclass(frozen=True)
class _System:
    """Dynamics and a reward, and how to step with torch."""

    dynamics: nn.Module
    reward: nn.Module

    def tensors(self) -> list[Tensor]:
        return [*self._of(self.dynamics).values(), *self._of(self.reward).values()]

    def reward_numbers(self) -> Floats:
        parts = [tensor.detach().double().reshape(-1).numpy() for tensor in self._of(self.reward).values()]
        return np.concatenate([np.empty(0), *parts])

    def outputs(self, x: Tensor, u: Tensor) -> Tensor:
        """Next states and rewards (N, n+1), with the tensors as they are."""
        own = {name: tensor.detach().double() for name, tensor in self._of(self.dynamics).items()}
        return self._call(own, x, u)

    @torch.no_grad()
    def step(
        self,
        limits: Floats,
        numbers: Floats,
        states: Floats,
        actions: Floats,
        following: Floats,
        observations: NDArray[np.float32],
        rewards: Floats,
        flags: NDArray[np.int64],
    ) -> None:
        """As the kernel's `transition`."""
        names = self._of(self.dynamics)
        columns = torch.from_numpy(numbers[:, : len(names)]).unbind(1)
        controls = limits[0] * actions.clip(-1.0, 1.0)
        results = self._call(dict(zip(names, columns, strict=True)), torch.from_numpy(states), torch.from_numpy(controls))
        following[:], rewards[:] = results[:, :-1].numpy(), results[:, -1].numpy()
        observations[:] = following.clip(-limits[1:], limits[1:])
        flags[:] = np.where(np.isfinite(actions).all(1), 0, BAD_ACTION)
        flags += np.where(np.isfinite(following).all(1), 0, NOT_FINITE)
        flags += np.where((np.abs(following) > limits[1:]).any(1), OUTSIDE, 0)

    def _call(self, values: dict[str, Tensor], x: Tensor, u: Tensor) -> Tensor:
        rest = {name: tensor.detach().double() for name, tensor in self._of(self.reward).items()}
        following = functional_call(self.dynamics, values, (x, u))
        rewards = functional_call(self.reward, rest, (x, u))
        return torch.cat((following, rewards.unsqueeze(-1)), dim=-1)

    @staticmethod
    def _of(module: nn.Module) -> dict[str, Tensor]:
        return dict((*module.named_parameters(), *module.named_buffers()))


def _compile(system: _System, n: int) -> Callable[..., None] | None:
    label = type(system.dynamics).__name__
    try:
        m: int = system.dynamics.control_size  # type: ignore[assignment]
        tensors = system.tensors()
        model = write_model(Functions(system.dynamics, system.reward, None, n, m), tensors, only=("constants", "advance"))
        if len(model.values) > len(tensors):
            raise UntraceableError("the dynamics or the reward use a tensor that is none of their parameters or buffers")
        generator = torch.Generator().manual_seed(0)
        x, u = (torch.randn(3, size, generator=generator, dtype=torch.float64) for size in (n, m))
        compare(model, system.outputs, x, u)
        addresses = build.functions(model, f"{label} for stepping")
        sizes = np.array([model.constants_size, model.work_size], np.int64)
        offsets = np.cumsum([0, *(tensor.numel() for tensor in tensors)])[:-1]
        transition = build.stepper().transition
        return lambda limits, numbers, *arrays: transition(addresses, sizes, limits, numbers, offsets, *arrays)
    except Exception as error:  # whatever it is: PyTorch will do, or tell better
        reason = str(error) if isinstance(error, UntraceableError) else f"{type(error).__name__}: {error}"
        _log.warning("stepping %s with PyTorch, which is slower than native code: %s", label, reason)
        return None
