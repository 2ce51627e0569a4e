"""A problem's native code, with what it takes to run it."""

from __future__ import annotations

from dataclasses import fields, replace
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dilqr_rl.fixed_point import LossGradient
from dilqr_rl.guess import Guess
from dilqr_rl.instance import Instance, check_values
from dilqr_rl.native.arguments import Arguments, GradientArrays, arrange
from dilqr_rl.native.audit import ONCE, SHARE, Audit
from dilqr_rl.native.clock import clock
from dilqr_rl.native.model import Model
from dilqr_rl.native.threads import GROUP, in_groups, workers
from dilqr_rl.options import ILQROptions
from dilqr_rl.solution import History, Solution, Status

_REALS = (
    "tolerance",
    "step_tolerance",
    "sufficient_decrease",
    "regularisation_min",
    "regularisation_max",
    "regularisation_factor",
)
_COLUMNS = len(fields(History))  # in the order of the kernel's


class Program:
    """A problem's native code.

    Args:
        model: the generated source, and what it takes.
        addresses: of the functions compiled from it.
        kernel: the compiled module with `solve` and `adjoint` for the problem's sizes.
        count: how many values the problem has; those after them are of closures.
        positive: the places of those that must be above zero.

    Attributes:
        solves: when to hold a solution against the problem's functions.
        gradients: when to do so with a gradient.
    """

    def __init__(self, model: Model, addresses: NDArray[np.int64], kernel: ModuleType, count: int, positive: set[int]) -> None:
        self._addresses, self._kernel, self._source, self._constants = addresses, kernel, model.source, model.constants
        self._sizes = np.array([model.constants_size, model.work_size], np.int64)
        self._own, self._closures, self._positive = model.values[:count], model.values[count:], positive
        self.solves, self.gradients = Audit(share=0.9 * SHARE), Audit(ONCE, 0.5 * SHARE)

    def is_of(self, model: Model) -> bool:
        """Whether the same code, with the same tensors, comes of another trace."""
        same = self._source == model.source and [*map(id, model.values)] == [*map(id, (*self._own, *self._closures))]
        return same and [(id(tensor), version) for tensor, version in self._constants] == [
            (id(tensor), version) for tensor, version in model.constants
        ]

    @property
    def depends_on_hidden_tensors(self) -> bool:
        """Whether a tensor of a closure requires a gradient."""
        return any(tensor.requires_grad for tensor in self._closures)

    def fits(self, instance: Instance) -> bool:
        """Whether the integer tensors are still those whose numbers are in the code."""
        same = all(tensor._version == version for tensor, version in self._constants)
        pairs = zip(instance.values, self._own, strict=True)
        return same and all(value.is_floating_point() or value is own for value, own in pairs)

    def arrange(self, instance: Instance) -> Arguments:
        """The values of an instance as arguments, once for its solve and its gradient."""
        arguments = arrange(instance, self._closures)
        if not arguments.sound(self._positive):
            check_values(instance)
        return arguments

    def solve(self, arguments: Arguments, x0: Tensor, guess: Guess, options: ILQROptions) -> Solution:
        """Solve B problems from x0 (B, n), beginning with a guess (B, ...)."""
        start, u = _array(x0), _array(guess.controls).copy()
        (B, n), T, m = start.shape, arguments.horizon, u.shape[-1]
        x = np.empty((B, T + 1, n)) if guess.states is None else _array(guess.states).copy()
        gains = np.empty((B, T, m, n)) if guess.gains is None else _array(guess.gains).copy()
        cost, residual = np.empty(B), np.empty(B)
        status, iterations, singular = np.empty(B, np.int64), np.empty(B, np.int64), np.empty(B, np.int64)
        history = np.full((B, options.max_iterations + 1 if options.record else 0, _COLUMNS), np.nan)
        given = (start, arguments.numbers, arguments.table, arguments.bound_rows)
        results = (x, u, cost, status, iterations, residual, gains, singular, history)
        settings = _Settings(options, (guess.states is not None) + (guess.gains is not None), workers(B, T))

        def solve_group(first: int, last: int) -> None:
            numbers = settings.integers, settings.reals(first, B)
            self._kernel.solve(self._addresses, T, self._sizes, first, last, *given, *numbers, *results)

        in_groups(solve_group, B, T)
        told = _history(history, iterations) if options.record else None
        found = (torch.from_numpy(part) for part in (x, u, cost, status, iterations, residual, gains, singular != 0))
        return replace(Solution(*found), history=told) if told else Solution(*found)  # type: ignore[arg-type]

    def pull_back(
        self, arguments: Arguments, solution: Solution, loss: LossGradient, exact: bool, with_values: bool
    ) -> tuple[Tensor, GradientArrays]:
        """The gradients with respect to x0 and, if asked for, all values."""
        x, u, status, singular = (
            part.numpy() for part in (solution.states, solution.controls, solution.status, solution.singular)
        )
        if singular.any():  # these are PyTorch's
            status = np.where(singular, Status.MAX_ITERATIONS, status)
        B, T, dx0 = x.shape[0], arguments.horizon, np.empty_like(x[:, 0])
        gradients = GradientArrays(arguments, B, -(-B // GROUP))
        given = (
            arguments.numbers,
            arguments.table,
            arguments.bound_rows,
            x,
            u,
            status,
            *map(_array, loss),
            int(with_values),
            dx0,
        )

        def differentiate_group(first: int, last: int) -> None:
            results = (gradients.numbers, gradients.table(first // GROUP))
            self._kernel.adjoint(self._addresses, T, self._sizes, first, last, int(exact), *given, *results)

        in_groups(differentiate_group, B, T)
        return torch.from_numpy(dx0), gradients


class _Settings:
    """The options as the kernel takes them: for a group of problems, with its share of the time.

    `guess` is 0 where it has controls only, 1 where it has states, 2 where it has gains, too.
    """

    def __init__(self, options: ILQROptions, guess: int, threads: int) -> None:
        timed, self._threads = options.max_seconds is not None, threads
        self._clock = clock() if timed else None
        self._ends = self._clock.read() + (options.max_seconds or 0.0) if self._clock else np.inf
        told = (self._clock.address, self._clock.which) if self._clock else (0, 0)
        self.integers = np.array([options.max_iterations, options.line_search_steps, guess, *told], np.int64)
        self._reals = [getattr(options, name) for name in _REALS]

    def reals(self, first: int, batch_size: int) -> NDArray[np.float64]:
        """Those of the group that begins with problem `first`: as many groups as there are threads share the time in turns."""
        if self._clock is None:
            return np.array([*self._reals, np.inf])
        turns = -(-(batch_size - first) // (GROUP * self._threads))
        now = self._clock.read()
        return np.array([*self._reals, now + (self._ends - now) / turns])


def _history(rows: NDArray[np.float64], iterations: NDArray[np.int64]) -> History:
    used = rows[:, : iterations.max() + 1]
    return History(*(torch.from_numpy(used[..., column].copy()) for column in range(_COLUMNS)))


def _array(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.detach().contiguous().numpy()
    return array
