import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from dilqr_rl import ControlProblem, planner
from dilqr_rl.native.programs import Structure, structure_of
from dilqr_rl.native.tracing import fingerprint


@pytest.fixture(autouse=True)
def every_watch_that_holds_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all tests of this folder: where no walk is made, one would have found the same fingerprint."""

    def checked(problem: ControlProblem) -> Structure:
        structure = structure_of(problem)
        assert fingerprint(problem) == structure.fingerprint
        return structure

    monkeypatch.setattr(planner, "structure_of", checked)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and no module loaded so far."""
    from dilqr_rl.native import cache

    monkeypatch.setattr(cache, "_modules", {})
    monkeypatch.setattr(cache, "_refused", [])
    monkeypatch.setattr(cache, "_made", Counter())
    monkeypatch.setenv("DILQR_CACHE_DIR", str(tmp_path / "cache"))
    before = set(sys.modules)
    yield tmp_path / "cache"
    for name in set(sys.modules) - before:
        if name.startswith("_dilqr_rl_"):
            del sys.modules[name]
