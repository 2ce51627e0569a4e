"""Models written by hand, as the native kernel takes them: for tests and measurements of the kernel alone.

Each has a table of values (`values`: name, shape) whose order is that of the offsets, bounds included, and `functions`, the C
functions in the order in which the kernel expects their addresses.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numba import cfunc, types

D, I = types.CPointer(types.float64), types.CPointer(types.int64)  # noqa: E741
OPTIONS = {"error_model": "numpy", "fastmath": {"contract", "reassoc", "nsz", "arcp"}}
SIGNATURES = (
    types.void(D, I, D, D),
    types.float64(D, D, D, D, I, D, D),
    types.float64(D, D, D, I, D),
    types.void(D, D, D, D, D, I, D, D, D, D, D),
    types.void(D, D, D, I, D, D, D),
    types.void(D, D, D, D, D, types.float64, D, D, I, D, D, D, I),
    types.void(D, D, types.float64, D, D, I, D, D, D, I),
    types.void(D, I, D, D, D, D, I),
)


@cache
def compiled(functions):
    """The C functions; they live on, since their addresses are all that the kernel has of them."""
    return [cfunc(signature, **OPTIONS)(f) for signature, f in zip(SIGNATURES, functions, strict=True)]


def addresses(functions) -> np.ndarray:
    return np.array([function.address for function in compiled(functions)])


# A pendulum without damping and wind: x = (cos, sin, rate). Values: mass, length, gravity, weights (4,), goal (4,).
# Constants: a = 3 g h / 2 l, b = 3 h / m l^2, with h = 0.05, so that rate' = rate + a sin + b u.

PENDULUM_VALUES = (
    "dynamics.mass",
    "dynamics.length",
    "dynamics.gravity",
    "stage_cost.weights",
    "stage_cost.goal",
    "u_min",
    "u_max",
)
STEP = 0.05


def pendulum_constants(P, offs, c, work):
    mass, length, gravity = P[offs[0]], P[offs[1]], P[offs[2]]
    c[0] = 1.5 * STEP * gravity / length
    c[1] = 3.0 * STEP / (mass * length * length)


def pendulum_advance(x, u, c, P, offs, work, after):
    x0, x1, x2, u0 = x[0], x[1], x[2], u[0]
    w, q = offs[3], offs[4]
    cost = 0.5 * (
        P[w] * (x0 - P[q]) ** 2
        + P[w + 1] * (x1 - P[q + 1]) ** 2
        + P[w + 2] * (x2 - P[q + 2]) ** 2
        + P[w + 3] * (u0 - P[q + 3]) ** 2
    )
    rate = x2 + c[0] * x1 + c[1] * u0
    angle = math.atan2(x1, x0) + STEP * rate
    after[0] = math.cos(angle)
    after[1] = math.sin(angle)
    after[2] = rate
    return cost


def pendulum_terminal(x, c, P, offs, work):
    return 0.0


def pendulum_expand(x, u, lam, c, P, offs, work, F, g, H, C):
    x0, x1, x2, u0 = x[0], x[1], x[2], u[0]
    l0, l1 = lam[0], lam[1]
    a, b = c[0], c[1]
    w, q = offs[3], offs[4]
    w0, w1, w2, w3 = P[w], P[w + 1], P[w + 2], P[w + 3]
    g0, g1, g2, g3 = w0 * (x0 - P[q]), w1 * (x1 - P[q + 1]), w2 * (x2 - P[q + 2]), w3 * (u0 - P[q + 3])
    angle = math.atan2(x1, x0) + STEP * (x2 + a * x1 + b * u0)
    cosine, sine = math.cos(angle), math.sin(angle)
    i = 1.0 / (x0 * x0 + x1 * x1)
    s, k = x1 * i, x0 * i
    d0, d1, d2, d3 = -s, k + STEP * a, STEP, STEP * b  # of the angle
    F[0], F[1], F[2], F[3] = -sine * d0, -sine * d1, -sine * d2, -sine * d3
    F[4], F[5], F[6], F[7] = cosine * d0, cosine * d1, cosine * d2, cosine * d3
    F[8], F[9], F[10], F[11] = 0.0, a, 1.0, b
    g[0], g[1], g[2], g[3] = g0, g1, g2, g3
    H[0], H[1], H[2], H[3] = w0, 0.0, 0.0, 0.0
    H[4], H[5], H[6], H[7] = 0.0, w1, 0.0, 0.0
    H[8], H[9], H[10], H[11] = 0.0, 0.0, w2, 0.0
    H[12], H[13], H[14], H[15] = 0.0, 0.0, 0.0, w3
    first = -l0 * sine + l1 * cosine  # derivative of lambda^T f by the angle
    second = -l0 * cosine - l1 * sine
    bend = first * 2.0 * s * k  # from the second derivatives of atan2
    C[0], C[1] = second * d0 * d0 + bend, second * d0 * d1 + first * (s * s - k * k)
    C[2], C[3] = second * d0 * d2, second * d0 * d3
    C[4], C[5], C[6], C[7] = C[1], second * d1 * d1 - bend, second * d1 * d2, second * d1 * d3
    C[8], C[9], C[10], C[11] = C[2], C[6], second * d2 * d2, second * d2 * d3
    C[12], C[13], C[14], C[15] = C[3], C[7], C[11], second * d3 * d3


def pendulum_expand_terminal(x, c, P, offs, work, g, H):
    for i in range(3):
        g[i] = 0.0
    for i in range(9):
        H[i] = 0.0


def pendulum_sensitivity(x, u, lam, d, mu, weight, c, P, offs, work, dc, G, goffs):
    a, b = c[0], c[1]
    angle = math.atan2(x[1], x[0]) + STEP * (x[2] + a * x[1] + b * u[0])
    cosine, sine = math.cos(angle), math.sin(angle)
    first, second = -lam[0] * sine + lam[1] * cosine, -lam[0] * cosine - lam[1] * sine
    along = -mu[0] * sine + mu[1] * cosine
    d_angle = (x[0] * d[1] - x[1] * d[0]) / (x[0] * x[0] + x[1] * x[1]) + STEP * (d[2] + a * d[1] + b * d[3])
    for i in range(2):
        factor, d_factor = (x[1], d[1]) if i == 0 else (u[0], d[3])
        dc[i] += second * STEP * factor * d_angle + (first * STEP + lam[2]) * d_factor + (along * STEP + mu[2]) * factor
    for i in range(4):
        z = x[i] if i < 3 else u[0]
        offset = z - P[offs[4] + i]
        G[goffs[3] + i] += offset * d[i] + 0.5 * weight * offset * offset
        G[goffs[4] + i] -= P[offs[3] + i] * (d[i] + weight * offset)


def pendulum_sensitivity_terminal(x, d, weight, c, P, offs, work, dc, G, goffs):
    pass


def pendulum_constants_gradient(P, offs, c, work, dc, G, goffs):
    mass, length, gravity = P[offs[0]], P[offs[1]], P[offs[2]]
    G[goffs[0]] -= dc[1] * c[1] / mass
    G[goffs[1]] -= (dc[0] * c[0] + 2.0 * dc[1] * c[1]) / length
    G[goffs[2]] += dc[0] * c[0] / gravity


PENDULUM = (
    pendulum_constants,
    pendulum_advance,
    pendulum_terminal,
    pendulum_expand,
    pendulum_expand_terminal,
    pendulum_sensitivity,
    pendulum_sensitivity_terminal,
    pendulum_constants_gradient,
)


# Linear dynamics and quadratic costs of any size: x' = F z, l = z^T H z / 2 + g^T z, l_T = x^T H_T x / 2 + g_T^T x.
# The value "dynamics.sizes" holds n and m. No constants.

LINEAR_VALUES = (
    "dynamics.sizes",
    "dynamics.F",
    "stage_cost.H",
    "stage_cost.g",
    "terminal_cost.H",
    "terminal_cost.g",
    "u_min",
    "u_max",
)


def linear_constants(P, offs, c, work):
    pass


def linear_advance(x, u, c, P, offs, work, after):
    n, m = int(P[offs[0]]), int(P[offs[0] + 1])
    k = n + m
    cost = 0.0
    for i in range(k):
        work[i] = x[i] if i < n else u[i - n]
    for i in range(k):
        total = P[offs[3] + i]
        for j in range(k):
            total += 0.5 * P[offs[2] + i * k + j] * work[j]
        cost += total * work[i]
    for i in range(n):
        total = 0.0
        for j in range(k):
            total += P[offs[1] + i * k + j] * work[j]
        after[i] = total
    return cost


def linear_terminal(x, c, P, offs, work):
    n = int(P[offs[0]])
    cost = 0.0
    for i in range(n):
        total = P[offs[5] + i]
        for j in range(n):
            total += 0.5 * P[offs[4] + i * n + j] * x[j]
        cost += total * x[i]
    return cost


def linear_expand(x, u, lam, c, P, offs, work, F, g, H, C):
    n, m = int(P[offs[0]]), int(P[offs[0] + 1])
    k = n + m
    for i in range(n * k):
        F[i] = P[offs[1] + i]
    for i in range(k):
        g[i] = P[offs[3] + i]
        for j in range(k):
            g[i] += P[offs[2] + i * k + j] * (x[j] if j < n else u[j - n])
            H[i * k + j] = P[offs[2] + i * k + j]
            C[i * k + j] = 0.0


def linear_expand_terminal(x, c, P, offs, work, g, H):
    n = int(P[offs[0]])
    for i in range(n):
        g[i] = P[offs[5] + i]
        for j in range(n):
            g[i] += P[offs[4] + i * n + j] * x[j]
            H[i * n + j] = P[offs[4] + i * n + j]


def linear_sensitivity(x, u, lam, d, mu, weight, c, P, offs, work, dc, G, goffs):
    n, m = int(P[offs[0]]), int(P[offs[0] + 1])
    k = n + m
    for i in range(k):
        work[i] = x[i] if i < n else u[i - n]
    for i in range(n):
        for j in range(k):
            G[goffs[1] + i * k + j] += lam[i] * d[j] + mu[i] * work[j]
    for i in range(k):
        G[goffs[3] + i] += d[i] + weight * work[i]
        for j in range(k):  # H is symmetric, its two halves share their gradient
            G[goffs[2] + i * k + j] += 0.5 * (d[i] * work[j] + work[i] * d[j] + weight * work[i] * work[j])


def linear_sensitivity_terminal(x, d, weight, c, P, offs, work, dc, G, goffs):
    n = int(P[offs[0]])
    for i in range(n):
        G[goffs[5] + i] += d[i] + weight * x[i]
        for j in range(n):
            G[goffs[4] + i * n + j] += 0.5 * (d[i] * x[j] + x[i] * d[j] + weight * x[i] * x[j])


def linear_constants_gradient(P, offs, c, work, dc, G, goffs):
    pass


LINEAR = (
    linear_constants,
    linear_advance,
    linear_terminal,
    linear_expand,
    linear_expand_terminal,
    linear_sensitivity,
    linear_sensitivity_terminal,
    linear_constants_gradient,
)
