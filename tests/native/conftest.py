import pytest

from dilqr_rl import ControlProblem, planner
from dilqr_rl.native.program import Structure, structure_of
from dilqr_rl.native.tracing import fingerprint


@pytest.fixture(autouse=True)
def every_watch_that_holds_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """In all tests of this folder: where no walk is made, one would have found the same fingerprint."""

    def checked(problem: ControlProblem) -> Structure:
        structure = structure_of(problem)
        assert fingerprint(problem) == structure.fingerprint
        return structure

    monkeypatch.setattr(planner, "structure_of", checked)
