"""How far gradients are from the truth: central differences of the converged float64 solution, and the fixed-point system.

The loss is one random direction through all states and controls, so that no derivative is zero by chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dilqr_rl import ILQR, ControlProblem, ILQROptions, Solution
from dilqr_rl.ilqr import expand, take_step
from dilqr_rl.instance import bind
from dilqr_rl.lqr import backward_sweep

__all__ = ["GRADIENTS", "TIGHT", "Differences", "differences", "fixed_point_gradients", "gradients", "relative_error"]

Gradient = Literal["implicit", "diffmpc", "unroll"]
GRADIENTS: tuple[Gradient, ...] = ("implicit", "diffmpc", "unroll")
# A difference over 2h = 2e-5 turns an error of the solution into one of the gradient 5e4 times as large.
TIGHT = ILQROptions(max_iterations=300, tolerance=1e-12)
_STEP = 2e-5  # of the differences, relative
_NOTHING = 1e-3  # a gradient below this is nearly zero: errors are relative to this then


def gradients(
    problem: ControlProblem, names: tuple[str, ...], x0: Tensor, gradient: Gradient
) -> tuple[dict[str, Tensor], Solution]:
    """dloss/dtheta and dloss/dx0 (as "x0") of every problem, (B, size) each, and the solution, all from zero controls.

    Args:
        problem: to differentiate.
        names: of its parameters and bounds, differentiated for each problem of the batch apart.
        x0: (B, n).
        gradient: of the planner.
    """
    leaves = {name: value.requires_grad_() for name, value in _values(problem, names, x0).items()}
    params = {name: leaf for name, leaf in leaves.items() if name != "x0"}
    solution = ILQR(problem, TIGHT, gradient=gradient)(leaves["x0"], params=params)
    found = torch.autograd.grad(_loss(solution).sum(), list(leaves.values()))
    return {name: part.reshape(len(x0), -1) for name, part in zip(leaves, found, strict=True)}, solution


@dataclass(frozen=True)
class Differences:
    """Central differences over B problems.

    Attributes:
        quotients: by name, (B, size), from steps h and h/2 with the error of order h^2 removed.
        rough: those of step h alone. Where the two are far apart the solution has a kink within h, a control that has just
            reached its bound, and differences say nothing.
        usable: (B,), whether all their neighbours have converged.
    """

    quotients: dict[str, Tensor]
    rough: dict[str, Tensor]
    usable: Tensor


def differences(problem: ControlProblem, names: tuple[str, ...], x0: Tensor, u: Tensor) -> Differences:
    """The same by central differences, re-solved from the solution's controls u (B, T, m)."""
    rough, usable = _quotients(problem, _values(problem, names, x0), u, _STEP)
    fine, usable_too = _quotients(problem, _values(problem, names, x0), u, _STEP / 2)
    quotients = {name: (4 * fine[name] - rough[name]) / 3 for name in rough}
    return Differences(quotients, rough, usable & usable_too)


def relative_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """|found - expected| / |expected| over the named parts together, (B,)."""
    one, other = (torch.cat([part[name] for name in names], dim=1) for part in (found, expected))
    return (one - other).norm(dim=1) / other.norm(dim=1).clamp(min=_NOTHING)


def fixed_point_gradients(problem: ControlProblem, names: tuple[str, ...], x0: Tensor) -> dict[str, Tensor]:
    """The gradients by the dense system of [DiLQR] eq. 10, dtau/dtheta = (I - dG/dtau)^-1 dG/dtheta.

    G is one iteration of iLQR, tau all states but the first and all controls; its derivatives are automatic ones, those with
    respect to theta at fixed tau.

    Args:
        problem: with a short horizon: the system has T (n + m) unknowns.
        names: as in `gradients`.
        x0: (1, n).

    Returns:
        As `gradients`, without "x0".
    """
    with torch.no_grad():
        solution = ILQR(problem, TIGHT)(x0)
    T, n, m = problem.horizon, problem.state_size, problem.control_size
    tau = torch.cat((solution.states[:, 1:].flatten(), solution.controls.flatten()))
    theta = tuple(_values(problem, names, x0)[name] for name in names)
    zero, one = x0.new_zeros(1), x0.new_ones(1)

    def iteration(tau: Tensor, *values: Tensor) -> Tensor:
        instance = bind(problem, x0, dict(zip(names, values, strict=True)))
        x, u = torch.cat((x0[:, None], tau[: T * n].view(1, T, n)), dim=1), tau[T * n :].view(1, T, m)
        model, _ = expand(instance, x, u)
        lower, upper = bounds = instance.bounds(1)
        x, u = take_step(instance, bounds, x, u, backward_sweep(model, lower - u, upper - u, zero), one)
        return torch.cat((x[:, 1:].flatten(), u.flatten()))

    dG_dtau, *dG_dtheta = torch.autograd.functional.jacobian(iteration, (tau, *theta))
    directions = _directions(solution)
    dloss_dtau = torch.cat((directions[0][1:].flatten(), directions[1].flatten()))
    adjoint = torch.linalg.solve((torch.eye(len(tau), dtype=tau.dtype) - dG_dtau).T, dloss_dtau)  # eq. 10, transposed
    return {name: (adjoint @ part.flatten(1))[None] for name, part in zip(names, dG_dtheta, strict=True)}


def _quotients(
    problem: ControlProblem, leaves: Mapping[str, Tensor], u: Tensor, step: float
) -> tuple[dict[str, Tensor], Tensor]:
    """Differences over 2 * step, and which problems they hold for. All neighbours of all problems are one batch."""
    B = len(u)
    rows: dict[str, list[Tensor]] = {name: [] for name in leaves}
    steps: list[Tensor] = []
    for moved, value in leaves.items():
        for place in range(value[0].numel()):
            size = value.reshape(B, -1)[:, place].abs()
            steps.append(step * torch.where((size == 0) | (moved == "x0"), 1.0, size))
            for sign in (1.0, -1.0):
                for name, leaf in leaves.items():
                    row = leaf.clone()
                    if name == moved:
                        row.view(B, -1)[:, place] += sign * steps[-1]
                    rows[name].append(row)
    stacked = {name: torch.cat(parts) for name, parts in rows.items()}
    with torch.no_grad():
        solution = ILQR(problem, TIGHT)(stacked.pop("x0"), params=stacked, u_init=u.repeat(2 * len(steps), 1, 1))
    values = _loss(solution).view(len(steps), 2, B)
    quotients = ((values[:, 0] - values[:, 1]) / (2 * torch.stack(steps))).T
    sizes = [leaf[0].numel() for leaf in leaves.values()]
    usable = solution.converged.view(2 * len(steps), B).all(0)
    return dict(zip(leaves, quotients.split(sizes, dim=1), strict=True)), usable


def _values(problem: ControlProblem, names: tuple[str, ...], x0: Tensor) -> dict[str, Tensor]:
    """Copies of the named tensors, one for each problem, and of the start states."""
    own = {**dict(problem.named_parameters()), **dict(problem.named_buffers())}
    copies = {name: own[name].detach().expand(len(x0), *own[name].shape).clone() for name in names}
    return {**copies, "x0": x0.clone()}


def _loss(solution: Solution) -> Tensor:
    states, controls = _directions(solution)
    return (solution.states * states).sum((1, 2)) + (solution.controls * controls).sum((1, 2))


def _directions(solution: Solution) -> tuple[Tensor, Tensor]:
    """Normal numbers in the shapes of a problem's states and controls, always the same."""
    draws = np.random.default_rng(11)
    shapes = (solution.states.shape[1:], solution.controls.shape[1:])
    states, controls = (torch.from_numpy(draws.standard_normal(tuple(shape))) for shape in shapes)
    return states, controls
