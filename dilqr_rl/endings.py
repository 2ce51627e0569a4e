"""Why a solve is in doubt: functions that are random, coarse, or have kinks, where it stopped.

Second differences tell. Those of smooth functions, divided by their step, fall with the step; at a kink they stay, and where
numbers jump, as those that were rounded to float32 do, they rise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from dilqr_rl.consistency import is_random
from dilqr_rl.instance import Instance
from dilqr_rl.solution import Solution, Status

__all__ = ["reason_for_doubt"]

_STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # relative to 1 + the size of what is moved
_STAYS, _RISES = 0.5, 3.0  # from one step to the next: smooth functions' second differences fall to a tenth
_JUMP = 1e-3  # of the slope: less is no kink
_ROUNDING = 1e-14  # of the values: less is float64's own

_RANDOM = "its functions give other results when they are called again; draw random numbers once, outside of them"
_COARSE = "{role}: its values jump as {name} changes: are they of float32 somewhere, which is too coarse, or rounded?"
_KINK = (
    "{role}: its slope jumps as {name} changes, at a kink, as of |u|, max or a contact; make it smooth, say "
    "sqrt(u^2 + eps^2) - eps"
)


@torch.no_grad()
def reason_for_doubt(instance: Instance, solution: Solution) -> str:
    """What is in the way of the problem that is farthest from its end, or makes a simulator's differences wrong; else ""."""
    stuck = (solution.status == Status.MAX_ITERATIONS) | (solution.status == Status.LINE_SEARCH_FAILED)
    found_no_end = bool(stuck.any())
    if not found_no_end and instance.simulator is None:
        return ""
    worst = torch.where(stuck, solution.residual, -1.0).argmax()[None]
    one, part = instance.select(worst), solution.select(worst)
    if is_random(one, part):
        return _RANDOM
    for role, function, z in _functions(one, part):
        n = part.states.shape[-1]
        jumps = [_second_differences(function, z, step) for step in (_STEPS if found_no_end else _STEPS[-2:])]
        for wide, close in pairwise(jumps):
            for text, least in ((_COARSE, _RISES), (_KINK, _STAYS))[: 1 + found_no_end]:
                found = ((close > least * wide) & (close > _JUMP)).nonzero().flatten().tolist()
                if found:
                    name = f"x[..., {found[0]}]" if found[0] < n else f"u[..., {found[0] - n}]"
                    return text.format(role=role, name=name)
    return ""


def _functions(instance: Instance, solution: Solution) -> Iterator[tuple[str, Callable[[Tensor], Tensor], Tensor]]:
    """The functions as ones of z (1, T, k, k') that give (1, T, k, q), and the z (1, T, k') of a plan."""
    x, u = solution.states, solution.controls
    n, z = x.shape[-1], torch.cat((x[:, :-1], u), dim=-1)

    def of_pair(function: Callable[[Tensor, Tensor], Tensor], z: Tensor) -> Tensor:
        return function(z[..., :n], z[..., n:])

    yield "dynamics", partial(of_pair, instance.dynamics), z
    yield "stage_cost", lambda z: of_pair(instance.stage_cost, z).unsqueeze(-1), z
    yield "terminal_cost", lambda z: instance.terminal_cost(z[:, 0]).unsqueeze(1).unsqueeze(-1), x[:, -1:]


def _second_differences(function: Callable[[Tensor], Tensor], z: Tensor, step: float) -> Tensor:
    """The largest along each of k columns of z (1, T, k), divided by the step, relative to 1 + the slope, as (k,)."""
    k = z.shape[-1]
    units = torch.eye(k, dtype=z.dtype, device=z.device) * step * (1.0 + z.abs().unsqueeze(-1))
    ahead, here, behind = function(z.unsqueeze(-2) + torch.cat((units, 0.0 * units, -units), dim=-2)).chunk(3, dim=-2)
    second = (ahead - 2.0 * here + behind).abs()
    second = torch.where(second > _ROUNDING * (1.0 + here.abs()), second, 0.0)
    return (second / (step + (ahead - behind).abs())).nan_to_num().flatten(0, 1).amax((0, 2))
