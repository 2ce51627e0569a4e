"""Gradients of a solution by the conditions that it meets, as one dense system: a truth that knows of no sweep and no iteration.

z = (x_1..T, u, lambda) solves F(z, theta) = 0: the Lagrangian's derivatives by the states and the free controls, the held
controls' distance to their bounds, and the dynamics' defects. dz/dtheta = -F_z^-1 F_theta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from problems import value_of
from torch import Tensor
from torch.func import functional_call

from dilqr_rl import ControlProblem, Solution


@dataclass(frozen=True)
class Conditions:
    """F of the one problem of a solution, and which of its controls are held.

    Attributes:
        problem: what is minimised.
        names: of what is differentiated beside the start state: parameters and bounds.
        at_lower: (T, m)
        at_upper: (T, m)
    """

    problem: ControlProblem
    names: tuple[str, ...]
    at_lower: Tensor
    at_upper: Tensor

    @classmethod
    def of(cls, problem: ControlProblem, names: tuple[str, ...], u: Tensor) -> Conditions:
        return cls(problem, names, u <= problem.u_min, u >= problem.u_max)

    def split(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States after the first (T, n), controls (T, m) and multipliers (T, n)."""
        T, n, m = self.problem.horizon, self.problem.state_size, self.problem.control_size
        x, u, multipliers = z.split((T * n, T * m, T * n))
        return x.view(T, n), u.view(T, m), multipliers.view(T, n)

    def residual(self, z: Tensor, x0: Tensor, *values: Tensor) -> Tensor:
        """F, as long as z."""
        given, (x, u, multipliers) = dict(zip(self.names, values, strict=True)), self.split(z)
        before = torch.cat((x0[None], x[:-1]))
        defects = self._call("dynamics", given, before, u) - x
        cost = self._call("stage_cost", given, before, u).sum()
        if self.problem.terminal_cost is not None:
            cost = cost + self._call("terminal_cost", given, x[-1])
        by_x, by_u = torch.autograd.grad(cost + (multipliers * defects).sum(), (x, u), create_graph=True)
        lower, upper = (given.get(name, value_of(self.problem, name)) for name in ("u_min", "u_max"))
        controls = torch.where(self.at_lower, u - lower, torch.where(self.at_upper, u - upper, by_u))
        return torch.cat((by_x.flatten(), controls.flatten(), defects.flatten()))

    def _call(self, part: str, given: Mapping[str, Tensor], *inputs: Tensor) -> Tensor:
        own = {name.removeprefix(f"{part}."): value for name, value in given.items() if name.startswith(f"{part}.")}
        found: Tensor = functional_call(getattr(self.problem, part), own, inputs)
        return found


def stationarity_gradients(
    problem: ControlProblem, names: tuple[str, ...], x0: Tensor, solution: Solution, direction: Tensor
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """direction . d(x_1..T, u)/dtheta, flat, by name and as "x0"; F at the solution; and the held controls' reduced gradients.

    Args:
        problem: what was solved.
        names: of parameters and bounds.
        x0: (n,).
        solution: of this one problem.
        direction: (T (n + m),) in the states after the first, then the controls.
    """
    u = solution.controls[0].detach()
    conditions, theta = Conditions.of(problem, names, u), tuple(value_of(problem, name).clone() for name in names)
    z = torch.cat((solution.states[0, 1:].detach().flatten(), u.flatten()))
    z = _with_multipliers(conditions, z, (x0, *theta))
    F_z, *F_theta = torch.autograd.functional.jacobian(conditions.residual, (z, x0, *theta))
    adjoint = torch.linalg.solve(F_z.T, torch.cat((direction, direction.new_zeros(len(z) - len(direction)))))
    found = {name: -adjoint @ part.reshape(len(z), -1) for name, part in zip(("x0", *names), F_theta, strict=True)}
    no_bounds = Conditions(problem, names, torch.zeros_like(conditions.at_lower), torch.zeros_like(conditions.at_lower))
    by_u = conditions.split(_values(no_bounds, z, (x0, *theta)))[1]
    signs = conditions.at_lower.double() - conditions.at_upper.double()
    return found, _values(conditions, z, (x0, *theta)), (by_u * signs)[signs != 0]


def _with_multipliers(conditions: Conditions, z: Tensor, others: tuple[Tensor, ...]) -> Tensor:
    """z with the multipliers at which the Lagrangian doesn't depend on the states, of which it is a linear function."""
    size = conditions.problem.horizon * conditions.problem.state_size

    def by_x(multipliers: Tensor) -> Tensor:
        return conditions.residual(torch.cat((z, multipliers)), *others)[:size]

    zero = z.new_zeros(size, requires_grad=True)
    slope = torch.autograd.functional.jacobian(by_x, zero)
    return torch.cat((z, torch.linalg.solve(slope, -by_x(zero).detach())))


def _values(conditions: Conditions, z: Tensor, others: tuple[Tensor, ...]) -> Tensor:
    return conditions.residual(z.clone().requires_grad_(), *others).detach()
