"""The policy of an iteration: which Hessian it is found with, and how far its whole step would go."""

from __future__ import annotations

import math
from typing import NamedTuple

from dilqr_rl.native.kernel.convex import make_convex
from dilqr_rl.native.kernel.instance import Bounds, Expansion, Instance, Trajectory, linearise
from dilqr_rl.native.kernel.memory import INDEFINITE, MN, NK, POSITIVE, SINGULAR, K, M, N, Pointer, clamp, inner, local, shift
from dilqr_rl.native.kernel.sweep import LIFTING, STRICT, Policy, backward_sweep

SHARES = 10  # of the dynamics' curvature: 1, then 9/10, ..., 0


class Memory(NamedTuple):
    """Memory for one problem.

    Attributes:
        model: around the trajectory.
        convex: the costs' Hessians made positive semidefinite (T+1, n+m, n+m).
        policy: of the last sweep.
        other_policy: Gauss-Newton's, where both are tried.
        bounds: of the controls.
        room: of the step, bounds - u.
        trial: the line search's trajectory.
        other_trial: the same along the other policy.
        sweep: the address of `sweep_loop`.
    """

    model: Expansion
    convex: Pointer
    policy: Policy
    other_policy: Policy
    bounds: Bounds
    room: Bounds
    trial: Trajectory
    other_trial: Trajectory
    sweep: int


class Step(NamedTuple):
    """What a sweep finds beside the policy.

    Attributes:
        slope: expected change of the cost per unit of step length, to first order.
        curvature: its second order.
        share: of the dynamics' curvature in the Hessian; -1 where there is no policy.
        strict: whether every Q_uu was positive definite without lifting.
    """

    slope: float
    curvature: float
    share: float
    strict: bool


@inner
def find_policy(T: int, memory: Memory, damping: float) -> Step:
    """Newton's policy where every Q_uu is positive definite; else that of the largest share of curvature, or Gauss-Newton's."""
    for tenths in range(SHARES, 0, -1):
        share = tenths / SHARES
        slope, curvature, sign = backward_sweep(
            memory.sweep, T, memory.model, share, memory.room, damping, STRICT, memory.policy
        )
        if sign == POSITIVE or (sign == SINGULAR and tenths == SHARES):
            return Step(slope, curvature, share, sign == POSITIVE)
    return find_gauss_newton(T, memory, damping, memory.policy)


@inner
def find_gauss_newton(T: int, memory: Memory, damping: float, policy: Policy) -> Step:
    """The policy without the dynamics' curvature, with convex costs, lifted where it must be."""
    model = memory.model
    make_convex(T, model.H, memory.convex)
    plain = Expansion(model.F, model.g, memory.convex, model.C, model.costate, model.gradient)
    slope, curvature, sign = backward_sweep(memory.sweep, T, plain, 0.0, memory.room, damping, LIFTING, policy)
    if sign == INDEFINITE:  # it was broken off
        for i in range(T * M):
            policy.k[i] = 0.0
        for i in range(T * MN):
            policy.feedback[i] = 0.0
    return Step(slope, curvature, 0.0 if sign != INDEFINITE else -1.0, sign == POSITIVE)


@inner
def find_gains(instance: Instance, memory: Memory) -> None:
    """Feedback around the guess in `memory.trial`, whose states need not be those of its controls."""
    linearise(instance, memory.trial.x, memory.trial.u, memory.model)
    measure(instance.T, memory.trial.u, memory)
    find_gauss_newton(instance.T, memory, 0.0, memory.policy)


@inner
def measure(T: int, u: Pointer, memory: Memory) -> float:
    """Write the room of the step and return the norm of the projected gradient."""
    total = 0.0
    for i in range(T * M):
        low, high = memory.bounds.lower[i], memory.bounds.upper[i]
        moved = u[i] - clamp(u[i] - memory.model.gradient[i], low, high)
        total += moved * moved
        memory.room.lower[i], memory.room.upper[i] = low - u[i], high - u[i]
    return math.sqrt(total)


@inner
def largest_change(T: int, memory: Memory) -> float:
    """The largest change of a control in the whole step of the policy, along the linearised dynamics."""
    d, after, most = local(K), local(N), 0.0
    for i in range(N):
        d[i] = 0.0
    for t in range(T):
        F = shift(memory.model.F, t * NK)
        for a in range(M):
            i = t * M + a
            change = memory.policy.k[i]
            for j in range(N):
                change += memory.policy.feedback[i * N + j] * d[j]
            d[N + a] = clamp(change, memory.room.lower[i], memory.room.upper[i])
            most = max(most, abs(d[N + a]))
        for i in range(N):
            after[i] = 0.0
            for j in range(K):
                after[i] += F[i * K + j] * d[j]
        for i in range(N):
            d[i] = after[i]
    return most


@inner
def largest(T: int, u: Pointer) -> float:
    """The largest size of a control."""
    most = 0.0
    for i in range(T * M):
        most = max(most, abs(u[i]))
    return most
