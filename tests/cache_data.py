"""What the tests of the cache share: a module that compiles in an instant."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from dilqr_rl.native import cache

SOURCE = """
from numba import njit

def plain(x):
    return {factor} * x

double = njit("float64(float64)", cache=True)(plain)
"""


def load(factor: float = 2.0, *, afresh: bool = True) -> ModuleType:
    """The example's module; `afresh` as in a new process."""
    if afresh:
        cache._modules.clear()
    return cache.load_module("example", SOURCE.format(factor=factor), "an example")


def compiled(module: ModuleType) -> bool:
    assert module.double(3.0) == 6.0
    return not module.double.stats.cache_hits


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.exists() else []
