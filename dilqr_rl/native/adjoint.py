"""The gradient of a solution by native code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dilqr_rl.adjoint import Adjoint
from dilqr_rl.consistency import TRIES, rounded
from dilqr_rl.fixed_point import LossGradient
from dilqr_rl.instance import Instance
from dilqr_rl.native.arguments import Arguments
from dilqr_rl.native.program import Program
from dilqr_rl.native.programs import drop_program
from dilqr_rl.solution import Solution, Status

__all__ = ["NativeAdjoint"]

_AGREEMENT = 1e-3  # relative to the largest number of a gradient: what is badly conditioned differs by less

Gradients = tuple[Tensor, list[Tensor | None]]


@dataclass(frozen=True)
class NativeAdjoint:
    """A `Pullback` by native code; of singular solutions, which are few, by PyTorch's.

    Now and then a look at what PyTorch makes of one problem of the batch. Where that is something else, the program is dropped.

    Attributes:
        program: the native code.
        instance: the problems.
        arguments: their values, as the program takes them.
        solution: theirs.
        exact: the gradient of the fixed point; else DiffMPC's.
        required: raise where the program is dropped.
    """

    program: Program
    instance: Instance
    arguments: Arguments
    solution: Solution
    exact: bool
    required: bool

    def __call__(self, values: tuple[Tensor, ...], needed: tuple[bool, ...], loss: LossGradient) -> Gradients:
        """See `Pullback`."""
        began, audit = time.perf_counter(), self.program.gradients
        found = self._found(values, needed, loss)
        if not audit.due(time.perf_counter() - began) or audit.look(lambda: self._holds(values, needed, loss)):
            return found
        drop_program(self.instance.problem, self.program, "derivatives", self.required)
        return Adjoint(self.instance, self.solution, self.exact)(values, needed, loss)

    def _found(self, values: tuple[Tensor, ...], needed: tuple[bool, ...], loss: LossGradient) -> Gradients:
        dx0, gradients = self.program.pull_back(self.arguments, self.solution, loss, self.exact, any(needed))
        pairs = enumerate(zip(values, needed, strict=True))
        found = [gradients.gradient(place, value.shape) if need else None for place, (value, need) in pairs]
        if not self.solution.singular.numpy().any():
            return dx0, found
        status = torch.where(self.solution.singular, self.solution.status, Status.MAX_ITERATIONS)
        adjoint = Adjoint(self.instance, replace(self.solution, status=status), self.exact)
        odd_dx0, odd = adjoint(values, needed, loss)
        both = zip(found, odd, strict=True)
        return dx0 + odd_dx0, [None if one is None or two is None else one + two.reshape(one.shape) for one, two in both]

    def _holds(self, values: tuple[Tensor, ...], needed: tuple[bool, ...], loss: LossGradient) -> bool:
        """Whether PyTorch finds the same gradient of one problem: of those that have one, the one with the largest loss."""
        sizes = loss.states.flatten(1).abs().amax(1) + loss.controls.flatten(1).abs().amax(1) + loss.cost.abs()
        place = torch.where(self.solution.converged & ~self.solution.singular, sizes, -1.0).argmax().unsqueeze(0)
        instance, solution = self.instance.select(place), self.solution.select(place)
        some = self.instance.with_values(values).select(place).values
        one = replace(self, instance=instance, arguments=self.program.arrange(instance), solution=solution)
        of_loss = LossGradient(*(part[place] for part in loss))
        dx0, found = one._found(some, needed, of_loss)

        def plainly(states: Tensor) -> list[Tensor | None]:
            right_dx0, right = Adjoint(instance, replace(solution, states=states), self.exact)(some, needed, of_loss)
            return [right_dx0, *right]

        try:
            right = plainly(solution.states)
            if not (right[0] is not None and right[0].any()):  # it has none, as at the norm of a state at rest, NaN to PyTorch
                return True
            if _all_agree([dx0, *found], right):
                return True
            moved = [plainly(rounded(solution.states, seed)) for seed in range(TRIES)]
        except (RuntimeError, ValueError):  # a setting has changed since, or PyTorch has no second derivatives
            return True
        return not all(_all_agree(one, right) for one in moved)  # rounding alone changes them as much


def _all_agree(found: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> bool:
    pairs = zip(found, right, strict=True)
    return all(_agree(one, other.reshape(one.shape)) for one, other in pairs if one is not None and other is not None)


def _agree(found: Tensor, right: Tensor) -> bool:
    """Whether gradients agree, or aren't finite."""
    largest = right.abs().amax() if right.numel() else right.new_zeros(())
    return bool(((found - right).abs() <= _AGREEMENT * largest + 1e-9).all()) or not bool((found + right).isfinite().all())
