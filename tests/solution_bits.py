"""The solutions and gradients of the agreement tests' models, down to the last bit; also as a process: names, or none for all."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Container

import torch
from models import MODELS
from problems import CASES

from dilqr_rl import ILQR, ILQROptions

EVERY = frozenset(case.name for case in (*CASES, *MODELS))


def digests(names: Container[str]) -> dict[str, str]:
    """A hash of all numbers that the native path finds, by the model's name."""
    found = {}
    for case in (*CASES, *MODELS):
        if case.name in names:
            problem, x0 = case.build(12), case.starts(8, 3).requires_grad_()
            solution = ILQR(problem, ILQROptions(backend="native", max_iterations=20))(x0)
            solution.controls.sum().backward()
            parts = [getattr(solution, name).detach() for name in ("states", "controls", "gains", "cost", "residual")]
            parts += [x0.grad, *(p.grad for p in problem.parameters() if p.grad is not None)]
            found[case.name] = hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, digest in digests(sys.argv[1:] or EVERY).items():
        print(name, digest)
