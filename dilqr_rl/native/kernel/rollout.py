"""Trajectories of one problem: rollouts, and the line search along a policy."""

from __future__ import annotations

from typing import NamedTuple

from dilqr_rl.native.kernel.instance import Bounds, Instance, Trajectory
from dilqr_rl.native.kernel.memory import M, N, Pointer, call_float, clamp, inner, shift
from dilqr_rl.native.kernel.sweep import Policy

ADVANCE, TERMINAL = 1, 2  # places of the model's functions
ROUNDING = 64 * 2.0**-52  # of a cost, relative: differences below it mean nothing
ROUNDING_OF_STEP = 4 * 2.0**-52  # of u + (bound - u), relative to its terms


class Descent(NamedTuple):
    """A step that a sweep has found, and what it takes to try it.

    Attributes:
        policy: of the sweep.
        bounds: of the controls.
        slope: expected change of the cost per unit of step length, to first order.
        curvature: its second order.
        share: of the expected decrease, which a step must bring.
        halvings: how many to try.
    """

    policy: Policy
    bounds: Bounds
    slope: float
    curvature: float
    share: float
    halvings: int


@inner
def search(instance: Instance, step: Descent, now: Trajectory, trial: Trajectory, cost: float) -> tuple[float, float]:
    """Write the end of the longest step that lowers the cost by enough; returns its length, 0 for none, and the cost."""
    length = 1.0
    slack = ROUNDING * (1.0 + abs(cost))
    for _ in range(step.halvings + 1):
        expected = step.slope * length + 0.5 * step.curvature * length * length
        trial_cost = _take_step(instance, step, now, length, trial)
        if trial_cost <= cost + step.share * expected + slack:
            return length, trial_cost
        length *= 0.5
    return 0.0, cost


@inner
def _take_step(instance: Instance, step: Descent, now: Trajectory, length: float, trial: Trajectory) -> float:
    """Roll out under u + length k + K (x' - x), clipped; returns the cost."""
    x, u, policy = trial.x, trial.u, step.policy
    for i in range(N):
        x[i] = now.x[i]
    cost = 0.0
    for t in range(instance.T):
        for a in range(t * M, (t + 1) * M):
            control = now.u[a] + length * policy.k[a]
            for j in range(N):
                control += policy.feedback[a * N + j] * (x[t * N + j] - now.x[t * N + j])
            u[a] = _within(control, now.u[a], step.bounds.lower[a], step.bounds.upper[a])
        cost += _advance(instance, trial, t)
    return cost + _terminal(instance, x)


@inner
def _within(control: float, before: float, low: float, high: float) -> float:
    """The control, clipped, and on the bound where only rounding keeps it off: there, it counts as held."""
    rounding = ROUNDING_OF_STEP * (abs(control) + abs(before))
    if control - low <= rounding:
        return low
    return high if high - control <= rounding else control


@inner
def follow(instance: Instance, bounds: Bounds, guess: Trajectory, feedback: Pointer, closed: bool, now: Trajectory) -> float:
    """Roll a guess's controls out from the first state of `now`, clipped, with feedback around its states if `closed`."""
    cost = 0.0
    for t in range(instance.T):
        for a in range(t * M, (t + 1) * M):
            control = guess.u[a]
            if closed:
                for j in range(N):
                    control += feedback[a * N + j] * (now.x[t * N + j] - guess.x[t * N + j])
            now.u[a] = clamp(control, bounds.lower[a], bounds.upper[a])
        cost += _advance(instance, now, t)
    return cost + _terminal(instance, now.x)


@inner
def copy(T: int, source: Trajectory, target: Trajectory) -> None:
    """Write a trajectory."""
    for i in range((T + 1) * N):
        target.x[i] = source.x[i]
    for i in range(T * M):
        target.u[i] = source.u[i]


@inner
def _advance(instance: Instance, now: Trajectory, t: int) -> float:
    """Write the state after step t; returns the stage cost."""
    x, u = shift(now.x, t * N), shift(now.u, t * M)
    c, offs = shift(instance.c, t * instance.c_step), shift(instance.offs, t * instance.offs_step)
    return call_float(instance.model[ADVANCE], (x, u, c, instance.P, offs, instance.work, shift(x, N)))


@inner
def _terminal(instance: Instance, x: Pointer) -> float:
    last = shift(x, instance.T * N)
    return call_float(instance.model[TERMINAL], (last, instance.c, instance.P, instance.offs, instance.work))
