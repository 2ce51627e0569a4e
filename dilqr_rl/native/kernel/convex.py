"""The nearest positive semidefinite matrices of the costs' Hessians: convex.py of the PyTorch path, for one problem."""

from __future__ import annotations

import math

from dilqr_rl.native.kernel.memory import KK, K, N, Pointer, inner, local, shift

JACOBI_SWEEPS = 30  # of rotations; they converge quadratically
JACOBI_ROUNDING = 2.0**-52  # of an element, relative to the two on the diagonal: below it nothing is left to rotate


@inner
def make_convex(T: int, H: Pointer, convex: Pointer) -> None:
    """Write the costs' Hessians H (T+1, n+m, n+m), each with its negative eigenvalues set to zero.

    The last is that of the terminal cost, in the leading n x n numbers.
    """
    for t in range(T + 1):
        _project(shift(H, t * KK), K if t < T else N, shift(convex, t * KK))


@inner
def _project(H: Pointer, size: int, convex: Pointer) -> None:
    """One of them, of a matrix H (size, size), by Jacobi's rotations."""
    A, vectors = local(KK), local(KK)
    for i in range(size):
        for j in range(size):
            A[i * size + j] = H[i * size + j] if i <= j else H[j * size + i]
            vectors[i * size + j] = 1.0 if i == j else 0.0
    for _ in range(JACOBI_SWEEPS):
        rotated = False
        for i in range(size):
            for j in range(i + 1, size):
                if abs(A[i * size + j]) > JACOBI_ROUNDING * math.sqrt(abs(A[i * size + i] * A[j * size + j])):
                    rotated = True
                    _rotate(A, vectors, size, i, j)
        if not rotated:
            break
    negative = False
    for i in range(size):
        negative = negative or A[i * size + i] < 0.0
    for i in range(size):
        for j in range(size):
            total = H[i * size + j]
            if negative:
                for a in range(size):
                    if A[a * size + a] < 0.0:
                        total -= A[a * size + a] * vectors[i * size + a] * vectors[j * size + a]
            convex[i * size + j] = total


@inner
def _rotate(A: Pointer, vectors: Pointer, size: int, i: int, j: int) -> None:
    """Make A_ij zero, i < j, by a rotation of A's rows and columns i and j, and of the vectors' columns."""
    ratio = 0.5 * (A[j * size + j] - A[i * size + i]) / A[i * size + j]
    tangent = (1.0 if ratio >= 0.0 else -1.0) / (abs(ratio) + math.sqrt(1.0 + ratio * ratio))
    cosine = 1.0 / math.sqrt(1.0 + tangent * tangent)
    sine = tangent * cosine
    for a in range(size):
        left, right = A[a * size + i], A[a * size + j]
        A[a * size + i], A[a * size + j] = cosine * left - sine * right, sine * left + cosine * right
    for a in range(size):
        left, right = A[i * size + a], A[j * size + a]
        A[i * size + a], A[j * size + a] = cosine * left - sine * right, sine * left + cosine * right
        left, right = vectors[a * size + i], vectors[a * size + j]
        vectors[a * size + i], vectors[a * size + j] = cosine * left - sine * right, sine * left + cosine * right
    A[i * size + j] = A[j * size + i] = 0.0
