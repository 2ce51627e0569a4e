"""An iLQR for one pendulum, written by hand: the yardstick for generated code. Forward only.

Plain box-constrained Gauss-Newton iLQR without a Newton finish, T states and T controls, one problem at a time, everything
unrolled by hand for n = 3 and m = 1. Cost 1/2 sum_i q_i (tau_i - goal_i)^2 with tau = (cos, sin, rate, u).

Notation as in dilqr_rl/ilqr.py: F = df/d(x, u), Q and qv the quadratic model of the cost to go, V and v its minimum over u,
K and k the policy, mu the regularisation of Q_uu.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit
from numpy.typing import NDArray

from benchmarks.protocol import Array
from benchmarks.systems import h

N = 3
LINE_SEARCH, SHRINK = 10, 0.4
Gain = tuple[float, float]  # what gravity and what a torque of one adds to the rate in one step
Model = tuple[Gain, Array, Array, float]  # gain, q, goal and the bound
Pair = tuple[Array, Array]
Memory = tuple[Array, Array, Array, Array, Array, Array, Array, Array]
Counts = NDArray[np.int64]


@njit(inline="always", fastmath=True)
def _advance(x: Array, u: float, gain: Gain, following: Array) -> None:
    """Write the next state."""
    rate = x[2] + gain[0] * x[1] + gain[1] * u
    angle = math.atan2(x[1], x[0]) + h * rate
    following[0] = math.cos(angle)
    following[1] = math.sin(angle)
    following[2] = rate


@njit(inline="always", fastmath=True)
def _stage_cost(x: Array, u: float, q: Array, goal: Array) -> float:
    cost = q[N] * (u - goal[N]) ** 2
    for i in range(N):
        cost += q[i] * (x[i] - goal[i]) ** 2
    return 0.5 * cost


@njit(inline="always", fastmath=True)
def _linearise(x: Array, following: Array, gain: Gain, F: Array) -> None:
    """F, from a state and the one that follows it."""
    radius = x[0] ** 2 + x[1] ** 2
    slopes = (-x[1] / radius, x[0] / radius + h * gain[0], h, h * gain[1])
    for j in range(N + 1):
        F[0, j] = -following[1] * slopes[j]
        F[1, j] = following[0] * slopes[j]
    F[2, 1], F[2, 2], F[2, 3] = gain[0], 1.0, gain[1]


@njit(fastmath=True)
def _sweep(x: Array, u: Array, model: Model, mu: float, memory: Memory) -> float:
    """The policy K, k along a trajectory, whose entry T is the state after the last control; returns the largest |k|."""
    gain, q, goal, bound = model
    F, VF, Q, qv, V, v, K, k = memory
    V[:] = 0.0
    v[:] = 0.0
    largest = 0.0
    for t in range(len(u) - 1, -1, -1):
        _linearise(x[t], x[t + 1], gain, F)
        for i in range(N):
            for j in range(N + 1):
                VF[i, j] = V[i, 0] * F[0, j] + V[i, 1] * F[1, j] + V[i, 2] * F[2, j]
        for i in range(N + 1):
            for j in range(N + 1):
                Q[i, j] = F[0, i] * VF[0, j] + F[1, i] * VF[1, j] + F[2, i] * VF[2, j]
            Q[i, i] += q[i]
            tau = x[t, i] if i < N else u[t]
            qv[i] = F[0, i] * v[0] + F[1, i] * v[1] + F[2, i] * v[2] + q[i] * (tau - goal[i])
        Quu = Q[N, N] + mu
        newton = -qv[N] / Quu
        step = min(max(newton, -bound - u[t]), bound - u[t])
        k[t] = step
        largest = max(largest, abs(step))
        for i in range(N):
            K[t, i] = -Q[N, i] / Quu if step == newton else 0.0
        for i in range(N):
            v[i] = qv[i] + Q[i, N] * step + K[t, i] * (qv[N] + Q[N, N] * step)
            for j in range(N):
                V[i, j] = Q[i, j] + Q[i, N] * K[t, j] + K[t, i] * (Q[N, j] + Q[N, N] * K[t, j])
    return largest


@njit(fastmath=True)
def _follow(x: Array, u: Array, policy: Pair, length: float, model: Model, new: Pair) -> float:
    """Roll the pendulum out under the policy; returns the cost."""
    gain, q, goal, bound = model
    (k, K), (new_x, new_u) = policy, new
    cost = 0.0
    for i in range(N):
        new_x[0, i] = x[0, i]
    for t in range(len(u)):
        control = u[t] + length * k[t]
        for i in range(N):
            control += K[t, i] * (new_x[t, i] - x[t, i])
        new_u[t] = min(max(control, -bound), bound)
        cost += _stage_cost(new_x[t], new_u[t], q, goal)
        _advance(new_x[t], new_u[t], gain, new_x[t + 1])
    return cost


@njit(fastmath=True)
def _solve_one(x0: Array, u: Array, model: Model, most: int, tolerance: float) -> int:
    """Solve one problem, in place of u (T,); returns the number of iterations."""
    gain, q, goal, _ = model
    T = len(u)
    x, new_x, new_u = np.zeros((T + 1, N)), np.zeros((T + 1, N)), np.zeros(T)
    F, VF, Q, qv = np.zeros((N, N + 1)), np.zeros((N, N + 1)), np.zeros((N + 1, N + 1)), np.zeros(N + 1)
    V, v, K, k = np.zeros((N, N)), np.zeros(N), np.zeros((T, N)), np.zeros(T)
    memory = (F, VF, Q, qv, V, v, K, k)
    x[0] = x0
    cost = 0.0
    for t in range(T):
        cost += _stage_cost(x[t], u[t], q, goal)
        _advance(x[t], u[t], gain, x[t + 1])
    mu = 0.0
    for iteration in range(most):
        if _sweep(x, u, model, mu, memory) < tolerance:
            return iteration + 1
        length = 1.0
        lower = False
        for _ in range(LINE_SEARCH):
            new_cost = _follow(x, u, (k, K), length, model, (new_x, new_u))
            lower = new_cost < cost
            if lower:
                break
            length *= SHRINK
        if lower:
            cost = new_cost
            x[:] = new_x
            u[:] = new_u
            mu *= 0.1
        else:
            mu = max(mu * 10.0, 1e-4)
    return most


@njit(fastmath=True, cache=True)
def solve(x0: Array, horizon: int, model: Model, most: int, tolerance: float) -> tuple[Array, Counts]:
    """Controls (B, T) and iterations (B,) for start states x0 (B, 3), from zero controls."""
    B = len(x0)
    u = np.zeros((B, horizon))
    iterations = np.zeros(B, np.int64)
    for b in range(B):
        iterations[b] = _solve_one(x0[b], u[b], model, most, tolerance)
    return u, iterations
