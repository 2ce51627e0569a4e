"""The demo's promise, on the demo as `make demo` runs it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence
from scripts import load_script

from dilqr_rl.cli.demo import Demo

DOCS = Path(__file__).parents[1] / "docs"


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
    if DOCS.exists():
        the_picture_of_the_readme_is_drawn_from(tmp_path / "demo", tmp_path / "swing_up.gif")


def the_picture_of_the_readme_is_drawn_from(demo: Path, file: Path) -> None:
    """A second of it; its colours are its own, so grey values differ by a little."""
    module = load_script(DOCS / "draw_swing_up.py")
    module.main(module.Args(demo=demo, file=file, seconds=1.0))
    with Image.open(file) as drawn, Image.open(DOCS / "pictures" / "swing_up.gif") as kept:
        assert (drawn.n_frames, kept.n_frames) == (11, 101)
        for one, other in zip(ImageSequence.Iterator(drawn), ImageSequence.Iterator(kept), strict=False):
            grey, expected = (np.asarray(frame.convert("L"), float) for frame in (one, other))
            assert np.abs(grey - expected).mean() < 2.0
