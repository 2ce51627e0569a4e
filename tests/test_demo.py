"""The demo's promise, on the demo as `make demo` runs it."""

from pathlib import Path

import pytest

from dilqr_rl.cli.demo import Demo


@pytest.mark.slow
def test_the_clone_learns_what_the_actions_identify(tmp_path: Path) -> None:
    outcome = Demo(out=tmp_path / "demo").run()
    _, before, after, _ = outcome.losses
    expert, _, clone, _ = outcome.returns
    assert before > 1e6 * after
    assert clone == pytest.approx(expert, rel=0.01)
    # Rounding decides where in the valley the scan ends, and so how far 300 steps get: losses from 1e-12 to 1e-16 were seen. One at
    # 1e-8 would leave errors of 1e-4 in the actions, and these some 1e-3 in the combinations.
    assert outcome.combinations["gravity / length"] == pytest.approx(10.0, rel=0.003)
    assert outcome.combinations["mass · length²"] == pytest.approx(1.0, rel=0.003)
