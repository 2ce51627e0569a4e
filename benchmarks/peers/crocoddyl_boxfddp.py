"""crocoddyl: box-constrained feasibility-driven DDP, with the model in Python; forward only."""

from __future__ import annotations

import math

import crocoddyl
import numpy as np

from benchmarks.protocol import MAX_ITERATIONS, TOLERANCE, Array, CannotError, serve
from benchmarks.systems import System


class Action(crocoddyl.ActionModelAbstract):
    """One step with its cost and hand-written derivatives, in Python's own floats, the fastest for a handful of numbers."""

    def __init__(self, system: System) -> None:
        n = system.state_size
        super().__init__(crocoddyl.StateVector(n), 1, 1)
        self.system, self.n, self.physics = system, n, list(system.physics.values())
        self.q, self.goal = np.array(system.weights), np.array(system.goal)
        self.curvature = np.diag(self.q)
        self.u_lb, self.u_ub = np.array([-system.bound]), np.array([system.bound])

    def calc(self, data, x, u=None):
        """The next state and the cost; without a control, those of the last state, which costs nothing."""
        if u is None:
            data.xnext, data.cost = x, 0.0
            return
        data.xnext = np.array(self.system.step(math, x.tolist(), u.item(), self.physics))
        offset = np.append(x, u) - self.goal
        data.cost = 0.5 * self.q.dot(offset * offset)

    def calcDiff(self, data, x, u=None):  # noqa: N802
        """The derivatives of both."""
        n = self.n
        if u is None:
            data.Lx = np.zeros(n)
            return
        F = np.array(self.system.jacobian(math, x.tolist(), u.item(), self.physics))
        data.Fx, data.Fu = F[:, :n], F[:, n:]
        gradient = self.q * (np.append(x, u) - self.goal)
        data.Lx, data.Lu = gradient[:n], gradient[n:]
        data.Lxx, data.Luu = self.curvature[:n, :n], self.curvature[n:, n:]


class Peer:
    """A problem and a solver for each start, as a user would."""

    version = crocoddyl.__version__
    notes = ["model in Python: its code generation isn't part of the package"]

    def __init__(self, system: System, horizon: int) -> None:
        self.horizon = horizon
        self.action = Action(system)

    def prepare(self, x0: Array, targets: Array) -> None:
        running = [self.action] * self.horizon
        self.solvers = [crocoddyl.SolverBoxFDDP(crocoddyl.ShootingProblem(row, running, self.action)) for row in x0]
        for solver in self.solvers:
            solver.th_stop = TOLERANCE**2  # compared with the square of the gradient's norm

    def forward(self) -> None:
        self.controls, self.iterations = [], []
        for solver in self.solvers:
            controls = [np.zeros(1)] * self.horizon
            solver.solve(solver.problem.rollout(controls), controls, MAX_ITERATIONS, True)
            self.controls.append(np.array(solver.us)[:, 0])
            self.iterations.append(solver.iter)

    def backward(self, weights: Array) -> Array:
        raise CannotError("it has no gradient with respect to a model's parameters")

    def result(self) -> tuple[Array, Array]:
        return np.array(self.controls), np.array(self.iterations)


if __name__ == "__main__":
    serve(Peer)
