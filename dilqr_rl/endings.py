"""Why a solve is in doubt: functions that are random, coarse, or have kinks, where it stopped.

Second differences tell. Those of smooth functions, divided by their step, fall with the step; at a kink they stay, and where
numbers jump, as those that were rounded to float32 do, they rise, until the step no longer reaches that place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from dilqr_rl.consistency import is_random
from dilqr_rl.instance import Instance
from dilqr_rl.solution import Solution, Status

__all__ = ["reason_for_doubt"]

_STEPS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # in the functions' own units: that they vary over 1 is their scale
_STAYS, _RISES = 0.5, 3.0  # from one step to the next: smooth functions' second differences fall to a tenth
_GONE = 0.02  # of the one before: the step doesn't reach a kink any more
_JUMP = 1e-3  # of the slope: less is no kink
_ROUNDING = 1e-14  # of the values: less is float64's own
_FEW = 4  # steps of a simulator's plan that are looked at, since each may take long

_RANDOM = "its functions give other results when they are called again; draw random numbers once, outside of them"
_COARSE = "{role}: its values jump as {name} changes: are they of float32 somewhere, which is too coarse, or rounded?"
_KINK = (
    "{role}: its slope jumps as {name} changes, at a kink, as of |u|, max or a contact; make it smooth, say "
    "sqrt(u^2 + eps^2) - eps"
)


@torch.no_grad()
def reason_for_doubt(instance: Instance, solution: Solution) -> str:
    """What is in the way of the problem that is farthest from its end, or makes a simulator's differences wrong; else "".

    Functions that fail where the plan doesn't lead tell nothing.
    """
    stuck = (solution.status == Status.MAX_ITERATIONS) | (solution.status == Status.LINE_SEARCH_FAILED)
    found_no_end = bool(stuck.any())
    if not found_no_end and instance.simulator is None:
        return ""
    worst = torch.where(stuck, solution.residual, -1.0).argmax()[None]
    try:
        return _reason(instance.select(worst), solution.select(worst), kinks=found_no_end)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # any, of anybody's function
        return ""


def _reason(one: Instance, part: Solution, *, kinks: bool) -> str:
    if is_random(one, part):
        return _RANDOM
    n = part.states.shape[-1]
    for role, function, z, low, high in _functions(one, part):
        steps = _STEPS if kinks else _STEPS[-2:]
        jumps = torch.stack([_second_differences(function, _within(z, low, high, step), step) for step in steps])
        for text, of in ((_COARSE, _is_coarse), (_KINK, _is_kink))[: 1 + kinks]:
            found = of(jumps).nonzero().flatten().tolist()
            if found:
                name = f"x[..., {found[0]}]" if found[0] < n else f"u[..., {found[0] - n}]"
                return text.format(role=role, name=name)
    return ""


def _is_coarse(jumps: Tensor) -> Tensor:
    """Which of k columns rise, from some step on as far as they are reached; jumps (steps, k)."""
    rises, _, falls = _courses(jumps)
    return rises.any(0) & ~(falls & _before(rises)).any(0)


def _is_kink(jumps: Tensor) -> Tensor:
    """Which of k columns stay, over two steps in a row and as far as they are reached; jumps (steps, k)."""
    _, stays, falls = _courses(jumps)
    twice = stays[1:] & stays[:-1]
    return twice.any(0) & ~(falls[1:] & _before(twice)).any(0)


def _courses(jumps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From each step to the next (steps - 1, k): what rises, stays and falls; neither what is small, nor infinite, nor gone."""
    wide, close = jumps[:-1], jumps[1:]
    known = (wide > _JUMP) & wide.isfinite() & close.isfinite()
    rises = (close > _RISES * wide) & (close > _JUMP) & wide.isfinite() & close.isfinite()
    stays = known & ~rises & (close > _STAYS * wide)
    return rises, stays, known & ~rises & ~stays & (close > _GONE * wide)


def _before(found: Tensor) -> Tensor:
    """Where something was found at a wider step, too, or here."""
    return found.cumsum(0) > 0


def _within(z: Tensor, low: Tensor, high: Tensor, step: float) -> Tensor:
    """The points, moved so far that a step to both sides stays within the bounds, where there is room for it."""
    middle = torch.where((low.isfinite() & high.isfinite()), 0.5 * (low + high), z)
    return torch.where(high - low >= 2.0 * step, torch.maximum(torch.minimum(z, high - step), low + step), middle)


def _functions(
    instance: Instance, solution: Solution
) -> Iterator[tuple[str, Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]]:
    """The functions as ones of z (1, T, k, k') that give (1, T, k, q), with the z (1, T, k') of a plan, and its bounds."""
    x, u = solution.states, solution.controls
    n, z = x.shape[-1], torch.cat((x[:, :-1], u), dim=-1)
    low, high = (
        torch.cat((torch.full_like(x[:, :-1], far), bound), dim=-1)
        for far, bound in zip((-torch.inf, torch.inf), instance.bounds(1), strict=True)
    )

    def of_pair(function: Callable[[Tensor, Tensor], Tensor], z: Tensor) -> Tensor:
        return function(z[..., :n], z[..., n:])

    few = slice(None, None, 1 if instance.simulator is None else -(-z.shape[1] // _FEW))
    yield "dynamics", partial(of_pair, instance.dynamics), z[:, few], low[:, few], high[:, few]
    yield "stage_cost", lambda z: of_pair(instance.stage_cost, z).unsqueeze(-1), z, low, high
    last = x[:, -1:]
    free = torch.full_like(last, torch.inf)
    yield "terminal_cost", lambda z: instance.terminal_cost(z[:, 0]).unsqueeze(1).unsqueeze(-1), last, -free, free


def _second_differences(function: Callable[[Tensor], Tensor], z: Tensor, step: float) -> Tensor:
    """The largest along each of k columns of z (1, T, k), divided by the step, relative to 1 + the slope, as (k,)."""
    k = z.shape[-1]
    units = torch.eye(k, dtype=z.dtype, device=z.device) * step
    ahead, here, behind = function(z.unsqueeze(-2) + torch.cat((units, 0.0 * units, -units), dim=-2)).chunk(3, dim=-2)
    second = (ahead - 2.0 * here + behind).abs()
    second = torch.where(second <= _ROUNDING * (1.0 + here.abs()), 0.0, second)
    relative = second / (step + (ahead - behind).abs())
    return torch.where(relative.isnan(), torch.inf, relative).flatten(0, 1).amax((0, 2))
