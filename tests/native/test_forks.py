"""A fork while another thread compiles: the child goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROCESS = """
import os, sys, threading, time
from dilqr_rl.native import build

SOURCE = '''
import time
from numba import njit
time.sleep(1.0)  # as a compiler takes it
def plain(x):
    return {} * x
double = njit("float64(float64)", cache=True)(plain)
'''
if sys.argv[1] == "compiles":
    import numba
compiling = threading.Thread(target=build.load, args=("example", SOURCE.format(2.0), "an example"))
compiling.start()
time.sleep(0.1)
child = os.fork()
if child == 0:
    os._exit(0 if build.load("example", SOURCE.format(3.0), "another").double(2.0) == 6.0 else 1)
compiling.join()
ended, last = (0, 0), time.monotonic() + 20
while ended[0] == 0 and time.monotonic() < last:
    ended = os.waitpid(child, os.WNOHANG)
    time.sleep(0.01)
if ended[0] == 0:
    os.kill(child, 9)
    sys.exit("the child hangs")
sys.exit(ended[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks of POSIX")
@pytest.mark.parametrize("what", ["imports numba", "compiles"])
def test_the_child_of_a_fork_compiles_by_itself(what: str, tmp_path: Path) -> None:
    """Whatever the other thread does at that moment."""
    pytest.importorskip("numba")
    environment = {**os.environ, "DILQR_CACHE_DIR": f"{tmp_path}/cache"}
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PROCESS, what]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
