"""Models that change with the control or the state while their derivatives say that they don't.

The solver moves along derivatives. Under `torch.no_grad()`, behind `detach()` or a rounding, in a dead band and on the plateau
of a sparse cost they are zero, and the first controls pass for the best. So where a solve has found nothing to move, values are
compared with derivatives (`told`). Where it has moved some of the controls, another one may have been left behind
(`find_idle`): that solution is the best in what moved, so it keeps its status, and a line in the log tells.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from dilqr_rl.derivatives import dynamics_jacobian, stage_gradient, stage_hessian, terminal_gradient, terminal_hessian
from dilqr_rl.ilqr import rollout
from dilqr_rl.instance import Instance
from dilqr_rl.solution import Solution, Status

__all__ = ["find_idle", "told"]

_log = logging.getLogger("dilqr_rl")

_STEPS = (1e-3, 0.1, 1.0, 10.0)  # relative to 1 + the size of what is moved
_DRAWS = 16  # of states, for each size
_DIRECTIONS = 6  # of random signs, beside the constant ones and those of the first step alone
_CHANGE = 1e-9  # relative: less is rounding
_CHEAPER = 1e-6  # relative
_ELSEWHERE = 8  # other points at which derivatives are looked for


class _Finding(NamedTuple):
    """What `_find_missing` finds of K problems.

    Attributes:
        missing: (K,) bool, whether derivatives are missing on the way to what is cheaper.
        role: "dynamics" or "costs" where they are missing at other points as well; "" where only here.
    """

    missing: Tensor
    role: str


def told(instance: Instance, solution: Solution) -> Solution:
    """The solution, with the status NO_DERIVATIVE where derivatives are missing; a ValueError where the model has none."""
    index = _suspects(solution)
    if index is None or index.numel() == 0:
        return solution
    missing, role = _find_missing(instance.select(index), solution.select(index))
    if not missing.any():
        return solution
    if role:
        raise ValueError(
            f"{role}: expected functions with derivatives, along which the solver moves; the values change, but all of the "
            "derivatives are zero. Is it under torch.no_grad(), does it compute with NumPy (a Simulator may), or detach, round "
            "or compare what it is given? Planners that draw samples need no derivatives; this one does."
        )
    total = len(solution.cost)
    _log.warning("%d of %d problems have no derivative at their start, and cheaper controls elsewhere", missing.sum(), total)
    status = solution.status.index_put((index[missing],), torch.tensor(int(Status.NO_DERIVATIVE), device=index.device))
    return replace(solution, status=status)


def _suspects(solution: Solution) -> Tensor | None:
    """The problems (K,) that ended where they began, or got stuck, with a control that never answers to the state.

    None in the usual case that no problem did. Those that got stuck may have begun at another start, which was cheaper.
    """
    status = solution.status.numpy(force=True)
    stuck = (status == Status.MAX_ITERATIONS) | (status == Status.LINE_SEARCH_FAILED)
    if solution.num_iterations.numpy(force=True).min() > 0 and not stuck.any():
        return None
    still = (solution.converged & (solution.num_iterations == 0)) | torch.from_numpy(stuck).to(solution.status.device)
    idle = (solution.gains == 0.0).all(3).all(1)
    return (still & idle.any(1)).nonzero().squeeze(1)


@torch.no_grad()
def _find_missing(instance: Instance, solution: Solution) -> _Finding:
    """Which of K problems have cheaper controls or states that no derivative leads to."""
    x, u = solution.states, solution.controls
    lacking = list(_lacking(instance, x, u))
    dynamics = torch.stack([found for role, _, found in lacking if role == "dynamics"]).any(0)
    costs = torch.stack([found for role, _, found in lacking if role == "costs"]).any(0)
    missing = costs | (dynamics & _can_be_cheaper(instance, solution) if dynamics.any() else dynamics)
    index = missing.nonzero().squeeze(1)
    if index.numel() == 0:
        return _Finding(missing, "")
    points = list(_elsewhere(x[index], u[index]))
    some = instance.select(index)
    for role, columns, found in lacking:
        if found[index].all() and all(bool(_is_flat(some, *point, role, columns).all()) for point in points):
            return _Finding(missing, role)
    return _Finding(missing, "")


@torch.no_grad()
def find_idle(instance: Instance, solution: Solution) -> Tensor:
    """Which controls (B, m) no derivative leads to, at any step, though another value of theirs alone is cheaper."""
    idle = solution.converged.unsqueeze(1) & (solution.gains == 0.0).all(3).all(1)
    for control in idle.any(0).nonzero().flatten().tolist():
        index = idle[:, control].nonzero().squeeze(1)
        some, part = instance.select(index), solution.select(index)
        x, u, column = part.states, part.controls, slice(control, control + 1)
        of_both = slice(x.shape[-1] + control, x.shape[-1] + control + 1)
        flat = _is_flat(some, x, u, "dynamics", of_both)
        if flat.any():
            stages = stage_gradient(some, x[:, :-1], u)[..., of_both], stage_hessian(some, x[:, :-1], u)[..., of_both, :]
            without = torch.stack([(stage == 0.0).flatten(1).all(1) for stage in stages]).all(0)
            flat = flat & (without | _moves(some, x, u, of_both)) & _can_be_cheaper(some, part, column)
        idle[index, control] = flat
    return idle


def _lacking(instance: Instance, x: Tensor, u: Tensor) -> Iterator[tuple[str, slice, Tensor]]:
    """Where (K,) values change while derivatives are 0: the dynamics by a control or the state, the costs by the state."""
    n, m = x.shape[-1], u.shape[-1]
    state, controls = slice(0, n), [slice(n + i, n + i + 1) for i in range(m)]
    for columns in (*controls, state):
        flat = _is_flat(instance, x, u, "dynamics", columns)
        yield "dynamics", columns, flat & _moves(instance, x, u, columns) if flat.any() else flat
    flat = _is_flat(instance, x, u, "costs", state)
    yield "costs", state, flat & _is_above(instance, x, u) if flat.any() else flat


def _is_flat(instance: Instance, x: Tensor, u: Tensor, role: str, columns: slice) -> Tensor:
    """Whether (K,) all derivatives by some columns of (x, u) are zero, along x (K, T+1, n) and u (K, T, m)."""
    if role == "dynamics":
        parts = [dynamics_jacobian(instance, x[:, :-1], u)[..., columns]]
    else:
        of_stages = stage_gradient(instance, x[:, :-1], u)[..., columns], stage_hessian(instance, x[:, :-1], u)[..., columns, :]
        parts = [*of_stages, terminal_gradient(instance, x[:, -1]), terminal_hessian(instance, x[:, -1])]
    return torch.stack([(part == 0.0).flatten(1).all(1) for part in parts]).all(0)


def _moves(instance: Instance, x: Tensor, u: Tensor, columns: slice) -> Tensor:
    """Whether (K,) the next state changes with some columns of (x, u), at some step and by some way."""
    n = x.shape[-1]
    z = torch.cat((x[:, :-1], u), dim=-1)
    unit = torch.zeros_like(z)
    unit[..., columns] = 1.0 + z[..., columns].abs()
    before = instance.dynamics(x[:, :-1], u)
    moves = torch.zeros_like(x[:, 0, 0], dtype=torch.bool)
    for step in (sign * size for size in _STEPS for sign in (1.0, -1.0)):
        after = instance.dynamics(*(z + step * unit).split((n, u.shape[-1]), dim=-1))
        moves |= ((after - before).abs() > _CHANGE * (1.0 + before.abs())).flatten(1).any(1)
    return moves


def _is_above(instance: Instance, x: Tensor, u: Tensor) -> Tensor:
    """Whether (K,) some other states, near or far, around these or around zero, cost less."""
    generator, above = torch.Generator().manual_seed(0), torch.zeros_like(x[:, 0, 0], dtype=torch.bool)
    before = torch.cat((instance.stage_cost(x[:, :-1], u), instance.terminal_cost(x[:, -1]).unsqueeze(1)), dim=1)
    for size in _STEPS[1:]:
        for draw in range(_DRAWS):
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x)
            other = (x if draw % 2 else 0.0 * x) + size * noise
            costs = instance.stage_cost(other[:, :-1], u), instance.terminal_cost(other[:, -1]).unsqueeze(1)
            above |= (torch.cat(costs, dim=1) < before - _CHANGE * (1.0 + before.abs())).any(1)
    return above


def _can_be_cheaper(instance: Instance, solution: Solution, columns: slice = slice(None)) -> Tensor:
    """Whether (K,) some other controls, near or far, cost less, with other numbers in some columns."""
    x0, u, (lower, upper) = solution.states[:, 0], solution.controls, instance.bounds(len(solution.cost))
    generator = torch.Generator().manual_seed(0)
    signs = 2.0 * torch.randint(2, (_DIRECTIONS, *u.shape[1:]), generator=generator).to(u) - 1.0
    constant, moved = torch.ones_like(signs[:1]), torch.zeros_like(u[0, 0])
    first = torch.zeros_like(constant)
    first[:, 0], moved[columns] = 1.0, 1.0
    ways = torch.cat((constant, -constant, first, -first, signs))
    cheaper = torch.zeros_like(solution.cost, dtype=torch.bool)
    for way in (size * way * moved for size in _STEPS for way in ways):
        other = torch.clamp(u + way * (1.0 + u.abs()), lower, upper)
        cost = instance.total_cost(rollout(instance, x0, other), other)
        cheaper |= cost < solution.cost - _CHEAPER * (1.0 + solution.cost.abs())
    return cheaper


def _elsewhere(x: Tensor, u: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Other states and controls, around these and around zero."""
    generator = torch.Generator().manual_seed(1)
    for size in torch.logspace(-1, 1, _ELSEWHERE).tolist():
        noise = [size * torch.randn(z.shape, generator=generator, dtype=z.dtype).to(z) for z in (x, u)]
        yield x + noise[0], u + noise[1]
        yield noise[0], noise[1]
