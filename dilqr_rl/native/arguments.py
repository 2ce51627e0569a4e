"""The parameters of a batch of problems in one flat array, as generated code takes them, and their gradients back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dilqr_rl.instance import PER_STEP, SHARED, Instance

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Arguments:
    """Values of B problems, those of closures included, V in all.

    Attributes:
        numbers: all of them, flat.
        table: (3, V), where each value starts, and its strides from problem to problem and from step to step.
        bound_rows: (2, 2), for u_min and u_max: which value it is, and its stride from component to component.
        sizes: (V,), numbers of one value for one problem and step; 0 for integer tensors, which are no arguments.
        leads: (V,), SHARED, PER_PROBLEM or PER_STEP.
        horizon: T.
        parts: each value's numbers.
        bounds: the places of u_min and u_max, whose numbers stand last in `numbers`.
    """

    numbers: Floats
    table: Integers
    bound_rows: Integers
    sizes: tuple[int, ...]
    leads: tuple[int, ...]
    horizon: int
    parts: list[Floats]
    bounds: tuple[int, int]

    def sound(self, positive: set[int]) -> bool:
        """Whether the numbers need no closer look: all finite, the bounds in order, those at `positive` places above 0."""
        lower, upper = (self.parts[place] for place in self.bounds)
        shared = all(self.leads[place] == SHARED for place in self.bounds)
        finite = np.isfinite(self.numbers[: self.numbers.size - lower.size - upper.size]).all()
        bounded = shared and (lower <= upper).all() and lower.max() < np.inf and upper.min() > -np.inf
        return bool(bounded and finite and all((self.parts[place] > 0).all() for place in positive))


def arrange(instance: Instance, closures: Sequence[Tensor]) -> Arguments:
    """The instance's values and those of closures, side by side."""
    T = instance.problem.horizon
    values, leads = (*instance.values, *closures), (*instance.leads, *[SHARED] * len(closures))
    parts = [_flat(value) for value in values]
    sizes = [part.size for part in parts]
    table = np.zeros((3, len(leads)), np.int64)
    for place, lead in enumerate(leads):
        if lead != SHARED:
            sizes[place] //= values[place].shape[0] * (T if lead == PER_STEP else 1)
            table[1, place] = sizes[place] * (T if lead == PER_STEP else 1)
            table[2, place] = sizes[place] if lead == PER_STEP else 0
    places = dict(instance.slots[""])
    bounds = (places["u_min"], places["u_max"])
    order = [place for place in range(len(parts)) if place not in bounds] + [*dict.fromkeys(bounds)]
    start = 0
    for place in order:
        table[0, place] = start
        start += parts[place].size
    rows = np.array([(place, int(sizes[place] > 1)) for place in bounds], np.int64)
    numbers = np.concatenate([parts[place] for place in order])
    return Arguments(numbers, table, rows, tuple(sizes), leads, T, parts, bounds)


def _flat(value: Tensor) -> Floats:
    if not value.is_floating_point():
        return np.empty(0)
    exact = value.detach() if value.dtype == torch.float64 else value.detach().to(torch.float64)
    flat: Floats = exact.numpy().ravel()
    return flat


class GradientArrays:
    """Room for the gradients of all values.

    The gradient of a shared value is summed up in groups of problems, each with room of its own, and then over the groups: so
    it is the same however the groups are shared out among threads.

    Args:
        arguments: the values.
        batch_size: B.
        groups: number of groups.
    """

    def __init__(self, arguments: Arguments, batch_size: int, groups: int) -> None:
        self._arguments, self._groups = arguments, groups
        shared = [lead == SHARED for lead in arguments.leads]
        self._room = sum(size for size, is_shared in zip(arguments.sizes, shared, strict=True) if is_shared)
        self._shared = np.array(shared)
        self._table = arguments.table.copy()
        next_shared, next_own = 0, groups * self._room
        for place, (size, lead) in enumerate(zip(arguments.sizes, arguments.leads, strict=True)):
            self._table[0, place] = next_shared if lead == SHARED else next_own
            if lead == SHARED:
                next_shared += size
            else:
                next_own += size * batch_size * (arguments.horizon if lead == PER_STEP else 1)
        self.numbers: Floats = np.zeros(next_own)

    def table(self, group: int) -> Integers:
        """(3, V), as for the values, for a group's problems."""
        table = self._table.copy()
        table[0, self._shared] += group * self._room
        return table

    def gradient(self, place: int, shape: Sequence[int]) -> Tensor:
        """The gradient of a value, in its shape."""
        size, first = self._arguments.sizes[place], self._table[0, place]
        if self._shared[place]:
            groups = self.numbers[: self._groups * self._room].reshape(self._groups, self._room)
            return torch.from_numpy(groups[:, first : first + size].sum(0)).reshape(tuple(shape))
        count = int(np.prod(shape))
        return torch.from_numpy(self.numbers[first : first + count].copy()).reshape(tuple(shape))
