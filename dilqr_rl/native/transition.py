"""What an environment does in one step, as a fast NumPy function: dynamics and reward, written in torch, for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dilqr_rl.modules import call_with, doubles_of, everywhere, tensors_of
from dilqr_rl.native import build
from dilqr_rl.native.model import Functions
from dilqr_rl.native.stepping import Code, Stepper, compile_step

__all__ = ["BAD_ACTION", "NOT_FINITE", "OUTSIDE", "CompiledTransition", "Transition", "compile_transition"]

Floats = NDArray[np.float64]
BAD_ACTION, NOT_FINITE, OUTSIDE = 1, 2, 4  # as in kernel/step.py, which imports numba


class Transition(NamedTuple):
    """What becomes of N states.

    Attributes:
        states: the next ones (N, n).
        observations: these, clipped to the state limits, (N, n) in float32.
        rewards: (N,), of the states before and the controls.
        flags: (N,), 0 where all is well, BAD_ACTION where the action isn't finite, else the sum of NOT_FINITE (the next state
            isn't) and OUTSIDE (the next state is beyond its limits).
    """

    states: Floats
    observations: NDArray[np.float32]
    rewards: Floats
    flags: NDArray[np.int64]


def compile_transition(
    dynamics: nn.Module, reward: nn.Module, physics: Sequence[str], *, state_limit: Floats, control_limit: float
) -> CompiledTransition:
    """Compile dynamics and a reward into one function of NumPy arrays.

    What can't be compiled runs in PyTorch, with one line in the log that says why.

    Args:
        dynamics: (x, u) -> next x, with the attribute `control_size`.
        reward: (x, u) -> reward (...,).
        physics: names of parameters of the dynamics, each a single number, for which a transition takes numbers. All other
            tensors, of the dynamics and of the reward, stay as they are now.
        state_limit: (n,), the largest absolute values of a state that is inside.
        control_limit: the control for an action of 1.

    Raises:
        ValueError: the functions' results have other shapes or aren't float64, or physics aren't numbers.
    """
    limits = np.array([control_limit, *state_limit], np.float64)
    system = _System(dynamics, reward, tuple(physics))
    system.check_names()
    # Inference mode and no_grad, where a person builds environments in them, would hide derivatives from the comparison.
    with torch.inference_mode(False), torch.enable_grad():
        system.check_results(limits.size - 1)
        functions = Functions(dynamics, reward, None, limits.size - 1, system.control_size)
        code = compile_step(type(dynamics).__name__, functions, system.tensors(), system.outputs, closures=False)
        return CompiledTransition(system, limits, code)


class CompiledTransition(Stepper):
    """What `compile_transition` returns. Copies of an environment share it.

    Attributes:
        native: whether it is machine code; else it calls the torch functions.
    """

    def __init__(self, system: _System, limits: Floats, code: Code | None) -> None:
        super().__init__(type(system.dynamics).__name__, code is not None)
        self._system, self._limits, self._offsets = system, limits, system.offsets()
        self._function: Any = partial(build.stepper().transition, code.addresses, code.sizes, limits) if code else None
        self._template, self._places = system.numbers()

    def numbers(self, physics: Floats) -> Floats:
        """What a call takes for physics (R, p): R rows, with all other tensors as they were."""
        numbers = np.empty((len(physics), self._template.size))
        numbers[:] = self._template
        numbers[:, self._places] = physics
        return numbers

    def observe(self, states: Floats) -> NDArray[np.float32]:
        """Observations (N, n) of states (N, n)."""
        limit = self._limits[1:]
        return states.clip(-limit, limit).astype(np.float32)

    def __call__(self, numbers: Floats, states: Floats, actions: Floats) -> Transition:
        """Apply actions (N, m), clipped to [-1, 1], to states (N, n), with `numbers` for each of them, or one row for all."""
        result: Transition = self._step(numbers, states, actions)
        return result

    def _natively(self, numbers: Floats, states: Floats, actions: Floats) -> Transition:
        result = _room(states.shape)
        self._function(numbers, self._offsets, states, actions, *result)
        return result

    def _plainly(self, numbers: Floats, states: Floats, actions: Floats) -> Transition:
        result = _room(states.shape)
        self._system.step(self._limits, numbers, states, actions, *result)
        return result

    def _compared(self, result: Transition) -> tuple[Floats, ...]:
        return result.states, result.rewards

    def _is_as_compiled(self) -> bool:
        return np.array_equal(self._system.numbers()[0], self._template)

    def __deepcopy__(self, memo: Any) -> CompiledTransition:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _compiled_again, (self._system, self._limits)


def _room(shape: tuple[int, ...]) -> Transition:
    """For the results of states of a shape (N, n)."""
    return Transition(np.empty(shape), np.empty(shape, np.float32), np.empty(shape[0]), np.empty(shape[0], np.int64))


def _compiled_again(system: _System, limits: Floats) -> CompiledTransition:
    return compile_transition(
        system.dynamics, system.reward, system.physics, state_limit=limits[1:], control_limit=float(limits[0])
    )


@dataclass(frozen=True)
class _System:
    """Dynamics and a reward, and how to step with torch."""

    dynamics: nn.Module
    reward: nn.Module
    physics: tuple[str, ...]

    @property
    def control_size(self) -> int:
        """The number m of controls."""
        size: int = self.dynamics.control_size  # type: ignore[assignment]
        return size

    def tensors(self) -> list[Tensor]:
        """All of them, those of the dynamics first."""
        return [*tensors_of(self.dynamics).values(), *tensors_of(self.reward).values()]

    def offsets(self) -> NDArray[np.int64]:
        """Where each tensor starts in a row of numbers."""
        return np.cumsum([0, *(tensor.numel() for tensor in self.tensors())])[:-1]

    def numbers(self) -> tuple[Floats, NDArray[np.int64]]:
        """The tensors' numbers in a row, and the places of the physics among them."""
        parts = [tensor.detach().double().reshape(-1).numpy() for tensor in self.tensors()]
        starts = dict(zip(tensors_of(self.dynamics), self.offsets(), strict=False))
        return np.concatenate([np.empty(0), *parts]), np.array([starts[name] for name in self.physics], np.int64)

    def check_names(self) -> None:
        """Look for the physics; see `compile_transition`."""
        for label, module in (("dynamics", self.dynamics), ("reward", self.reward)):
            if not isinstance(module, nn.Module):
                raise ValueError(f"{label}: expected an nn.Module, got {module!r}.")
        own = tensors_of(self.dynamics)
        for name in self.physics:
            if name not in own or own[name].numel() != 1:
                raise ValueError(f"physics: expected a parameter of a single number for {name!r}, got {own.get(name)}.")

    def check_results(self, n: int) -> None:
        """Call the functions once; see `compile_transition`."""
        m = self.control_size
        x, u = (torch.full((3, size), 0.5, dtype=torch.float64, device="cpu") for size in (n, m))
        for label, function, shape in (("dynamics", self.dynamics, (3, n)), ("reward", self.reward, (3,))):
            result: Any = call_with(function, doubles_of(function), x, u)
            if not isinstance(result, Tensor) or tuple(result.shape) != shape or result.dtype != torch.float64:
                came = f"{tuple(result.shape)} of {result.dtype}" if isinstance(result, Tensor) else repr(result)
                raise ValueError(
                    f"{label}: expected a float64 tensor of shape {shape} for 3 float64 states (3, {n}) and controls (3, {m}), "
                    f"got {came}."
                )

    def outputs(self, x: Tensor, u: Tensor) -> Tensor:
        """Next states and rewards (N, n+1), with the tensors as they are."""
        return self._call({}, x, u)

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
        _, places = self.numbers()
        columns = torch.from_numpy(numbers[:, places]).unbind(1)
        controls = limits[0] * actions.clip(-1.0, 1.0)
        results = self._call(
            dict(zip(self.physics, columns, strict=True)), torch.from_numpy(states), torch.from_numpy(controls)
        )
        following[:], rewards[:] = results[:, :-1].numpy(), results[:, -1].numpy()
        observations[:] = following.clip(-limits[1:], limits[1:])
        flags[:] = np.where(np.isfinite(following).all(1), 0, NOT_FINITE)
        flags += np.where((np.abs(following) > limits[1:]).any(1), OUTSIDE, 0)
        flags[~np.isfinite(actions).all(1)] = BAD_ACTION

    def _call(self, values: dict[str, Tensor], x: Tensor, u: Tensor) -> Tensor:
        following = call_with(self.dynamics, {**doubles_of(self.dynamics), **everywhere(self.dynamics, values)}, x, u)
        rewards = call_with(self.reward, doubles_of(self.reward), x, u)
        return torch.cat((following, rewards.unsqueeze(-1)), dim=-1)
