"""CasADi: a multiple-shooting NLP with fatrop or ipopt, and the adjoint of its solution (parametric sensitivity)."""

from __future__ import annotations

import math
from typing import Any

import casadi
import numpy as np

from benchmarks.protocol import MAX_ITERATIONS, TOLERANCE, Array
from benchmarks.systems import System

OPTIONS: dict[str, dict[str, Any]] = {
    "fatrop": {
        "structure_detection": "auto",
        "fatrop": {"tolerance": TOLERANCE, "max_iter": MAX_ITERATIONS, "print_level": 0, "mu_init": 0.1},
    },
    "ipopt": {"ipopt": {"tol": TOLERANCE, "max_iter": MAX_ITERATIONS, "print_level": 0, "sb": "yes"}},
}

# An interior point leaves small multipliers on bounds that are not active, and CasADi's sensitivity takes every multiplier but
# zero for an active bound, so that all gradients were zero. Multipliers below this are set to zero; active ones are far above.
SMALL_MULTIPLIER = 1e-6


def solver(name: str, system: System, horizon: int) -> tuple[casadi.Function, dict[str, Array | float]]:
    """The solver as one function of (x0, physics), expanded to scalar operations, and the bounds of its variables.

    Variables and constraints are ordered by stages, x_0, u_0, x_1, ..., which is what fatrop's structure detection looks for.
    """
    n, bound = system.state_size, system.bound
    p = casadi.SX.sym("p", n + len(system.physics))
    x0, physics = p[:n], casadi.vertsplit(p[n:])
    x = casadi.SX.sym("x", n, horizon + 1)
    u = casadi.SX.sym("u", 1, horizon)
    variables, constraints, equality, cost = [], [], [], 0.0
    for t in range(horizon):
        offset = casadi.vertcat(x[:, t], u[:, t]) - casadi.DM(system.goal)
        cost += 0.5 * casadi.dot(casadi.DM(system.weights), offset**2)
        following = casadi.vertcat(*system.step(casadi, casadi.vertsplit(x[:, t]), u[0, t], physics))
        variables += [x[:, t], u[:, t]]
        constraints += [x[:, t + 1] - following, *([x[:, 0] - x0] if t == 0 else []), u[:, t]]
        equality += [True] * (2 * n if t == 0 else n) + [False]
    nlp = {"x": casadi.vertcat(*variables, x[:, horizon]), "p": p, "f": cost, "g": casadi.vertcat(*constraints)}
    options = {"print_time": False, "expand": True, "equality": equality, "error_on_fail": False, **OPTIONS[name]}
    options["sens_force_equality"] = True  # else the last step, which no cost depends on, makes the sensitivity singular
    if name == "ipopt":
        del options["equality"]
    low = np.where(equality, 0.0, -bound)
    return casadi.nlpsol("solve", name, nlp, options), {"lbx": -np.inf, "ubx": np.inf, "lbg": low, "ubg": -low}


class Peer:
    """The solver in a loop over the batch, its adjoint in a second one."""

    name = "fatrop"
    version = casadi.__version__

    def __init__(self, system: System, horizon: int) -> None:
        self.system, self.horizon = system, horizon
        self.notes: list[str] = []
        self.solve, self.bounds = solver(self.name, system, horizon)
        self.inequality = self.bounds["lbg"] < self.bounds["ubg"]
        self.reverse = self.solve.reverse(1)
        n = system.state_size
        self.controls_at = np.arange(horizon) * (n + 1) + n

    def prepare(self, x0: Array, targets: Array) -> None:
        physics = np.array(list(self.system.physics.values()))
        n, T = self.system.state_size, self.horizon
        self.problems = [casadi.DM(np.concatenate((row, physics))) for row in x0]
        self.guesses = [casadi.DM(_rollout(self.system, row, T)) for row in x0]
        self.targets, self.size = targets, (n + 1) * T + n

    def forward(self) -> None:
        self.solutions, self.iterations = [], []
        for p, guess in zip(self.problems, self.guesses, strict=True):
            self.solutions.append(self.solve(x0=guess, p=p, **self.bounds))
            self.iterations.append(self.solve.stats()["iter_count"])

    def backward(self, weights: Array) -> Array:
        total = np.zeros(len(self.system.physics))
        for place, (p, solution) in enumerate(zip(self.problems, self.solutions, strict=True)):
            if weights[place] == 0.0:
                continue
            seed = np.zeros(self.size)
            controls = np.asarray(solution["x"]).ravel()[self.controls_at]
            seed[self.controls_at] = 2.0 * weights[place] * (controls - self.targets[place])
            multipliers = np.asarray(solution["lam_g"]).ravel()
            multipliers[self.inequality & (np.abs(multipliers) < SMALL_MULTIPLIER)] = 0.0
            outputs = {f"out_{name}": value for name, value in solution.items()} | {"out_lam_g": multipliers}
            adjoint = self.reverse(p=p, **self.bounds, **outputs, adj_x=seed)["adj_p"]
            total += np.asarray(adjoint).ravel()[self.system.state_size :]
        return total

    def result(self) -> tuple[Array, Array]:
        found = [np.asarray(solution["x"]).ravel()[self.controls_at] for solution in self.solutions]
        return np.array(found), np.array(self.iterations)


def _rollout(system: System, x0: Array, horizon: int) -> Array:
    """The variables under zero controls, the start that the others have too."""
    x, found = list(x0), []
    for _ in range(horizon):
        found += [*x, 0.0]
        x = list(system.step(math, x, 0.0, list(system.physics.values())))
    return np.array([*found, *x])
