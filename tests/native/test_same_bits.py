"""The process that compiles computes the bits of those that come after it and read the machine code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from models import MODELS
from problems import CASES

pytest.importorskip("numba")

TESTS = Path(__file__).parents[1]

SCRIPT = """
import hashlib
import torch
from models import MODELS
from problems import CASES
from dilqr_rl import ILQR, ILQROptions

torch.set_num_threads(1)
for case in (*CASES, *MODELS):
    problem, x0 = case.build(12), case.starts(8, 3).requires_grad_()
    solution = ILQR(problem, ILQROptions(backend="native", max_iterations=20))(x0)
    solution.controls.sum().backward()
    parts = [getattr(solution, name).detach() for name in ("states", "controls", "gains", "cost", "residual")]
    parts += [x0.grad, *(p.grad for p in problem.parameters() if p.grad is not None)]
    digest = hashlib.sha256(b"".join(part.contiguous().numpy().tobytes() for part in parts)).hexdigest()
    print(case.name, digest)
"""


def hashes(cache: Path) -> dict[str, str]:
    """Of the solutions and gradients of all models of the agreement tests, as a process of its own computes them, by name."""
    paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"DILQR_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines())


@pytest.mark.slow
def test_a_process_that_compiles_and_one_that_reads_the_code_compute_the_same_bits(tmp_path: Path) -> None:
    cold, cached = hashes(tmp_path), hashes(tmp_path)
    assert set(cold) == {case.name for case in (*CASES, *MODELS)}
    assert cold == cached
