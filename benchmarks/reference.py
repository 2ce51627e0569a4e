"""The truth that every solver is judged by: the residual of its controls, and gradients by central differences."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from benchmarks.protocol import Array
from benchmarks.systems import SYSTEMS, System
from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost
from dilqr_rl.envs import CartPoleDynamics, PendulumDynamics

CHECKED = 20  # problems of each system and horizon whose gradients are compared
CONVERGED = 1e-4  # largest residual that counts as converged, for everybody
_LONGEST = 100  # horizons beyond it end in too many local solutions to compare
_TIGHT, _NEWTON_STEPS = 1e-9, 6
_STEP = 1e-4  # of a central difference, relative; two of them are extrapolated to fourth order
_DYNAMICS = {"pendulum": PendulumDynamics, "cart-pole": CartPoleDynamics}


@dataclass(frozen=True)
class Reference:
    """Tight solutions of the first problems of a system.

    Attributes:
        controls: (CHECKED, T).
        gradients: (CHECKED, P), of each problem's loss.
        usable: (CHECKED,) bool: converged, and no control enters or leaves a bound within the differences.
    """

    controls: Array
    gradients: Array
    usable: Array


@cache
def reference(name: str, horizon: int) -> Reference:
    """Solve, and solve again with every parameter moved a little to either side."""
    system = SYSTEMS[name]
    x0 = torch.tensor(system.starts(CHECKED), dtype=torch.float64)
    targets = torch.tensor(system.targets(CHECKED, horizon), dtype=torch.float64)
    if horizon > _LONGEST:
        return Reference(np.zeros(targets.shape), np.zeros((CHECKED, len(system.physics))), np.zeros(CHECKED, bool))
    start = ILQR(problem(system, horizon), ILQROptions(max_iterations=300, tolerance=_TIGHT, backend="torch"))
    # A few Newton steps more, down to rounding, however large that is.
    planner = ILQR(start.problem, ILQROptions(max_iterations=_NEWTON_STEPS, tolerance=1e-14, backend="torch"))
    with torch.no_grad():
        tight = planner(x0, u_init=start(x0).controls)
        active = _active(system, tight.controls)
        usable = tight.residual <= _TIGHT
        columns = []
        for parameter, value in system.physics.items():
            slopes = []
            for step in (_STEP * value, 0.5 * _STEP * value):
                sides = []
                for moved in (value + step, value - step):
                    params = {f"dynamics.{parameter}": torch.tensor(moved, dtype=torch.float64)}
                    solution = planner(x0, params, tight.controls)
                    usable &= (solution.residual <= _TIGHT) & (_active(system, solution.controls) == active).all(1)
                    sides.append((solution.controls[..., 0] - targets).square().sum(1))
                slopes.append((sides[0] - sides[1]) / (2.0 * step))
            columns.append((4.0 * slopes[1] - slopes[0]) / 3.0)
    return Reference(tight.controls[..., 0].numpy(), torch.stack(columns, 1).numpy(), usable.numpy())


def residuals(system: System, x0: Array, controls: Array) -> Array:
    """Norms (B,) of u - clip(u - dcost/du), for controls (B, T) from start states x0 (B, n)."""
    model = problem(system, controls.shape[1])
    u = torch.tensor(controls, dtype=torch.float64).unsqueeze(-1).requires_grad_()
    x, cost = torch.tensor(x0, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for u_t in u.unbind(1):
        cost = cost + model.stage_cost(x, u_t).sum()
        x = model.dynamics(x, u_t)
    (gradient,) = torch.autograd.grad(cost, u)
    with torch.no_grad():
        distance = (u - torch.clamp(u - gradient, -system.bound, system.bound)).flatten(1).norm(dim=1)
    return np.where(np.isfinite(distance.numpy()), distance.numpy(), np.inf)


def problem(system: System, horizon: int) -> ControlProblem:
    """A system as our planner takes it."""
    dynamics = _DYNAMICS[system.name](**system.physics)
    cost = QuadraticCost(system.weights, system.goal)
    return ControlProblem(
        dynamics,
        cost,
        horizon=horizon,
        state_size=system.state_size,
        control_size=1,
        u_min=-system.bound,
        u_max=system.bound,
    )


def _active(system: System, controls: Tensor) -> Tensor:
    """(B, T), -1, 0 or 1: at which bound a control is."""
    return torch.sign(controls[..., 0]) * (controls[..., 0].abs() >= system.bound)
