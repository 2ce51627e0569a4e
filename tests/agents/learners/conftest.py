"""What fits that are cut off learn from."""

from __future__ import annotations

import pytest
from learner_data import plans

from dilqr_rl.agents import Demonstrations


@pytest.fixture(scope="module")
def train() -> Demonstrations:
    return plans(7)


@pytest.fixture(scope="module")
def held_out() -> Demonstrations:
    return plans(2, seed=1)
