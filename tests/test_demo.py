"""The demo's promise, on the demo as `make demo` runs it."""

from pathlib import Path

import pytest

from dilqr_rl.cli.demo import Demo


@pytest.mark.slow
def test_the_clone_learns_what_the_actions_identify(tmp_path: Path) -> None:
    outcome = Demo(out=tmp_path / "demo").run()
    _, before, after, _ = outcome.losses
    expert, _, clone, _ = outcome.returns
    assert before > 1e9 * after
    assert clone == pytest.approx(expert, rel=0.01)
    # Actions are float32: errors of 1e-8 in them leave some 1e-7 in the combinations.
    assert outcome.combinations["gravity / length"] == pytest.approx(10.0, rel=1e-5)
    assert outcome.combinations["mass · length²"] == pytest.approx(1.0, rel=1e-5)
