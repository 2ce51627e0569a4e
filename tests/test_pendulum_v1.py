"""The controller on Gymnasium's own pendulum, as a user wraps it."""

import numpy as np
import pytest

from dilqr_rl.agents import MPCPolicy, roll_out
from dilqr_rl.agents.environments import make_env


@pytest.mark.slow
def test_swings_up_from_twenty_seeded_starts() -> None:
    env = make_env("Pendulum-v1")
    found = roll_out(MPCPolicy.for_env(env), "Pendulum-v1", episodes=20)
    env.close()
    upright = [episode.observations[-1, 0] > 0.99 for episode in found.demonstrations.episodes]
    assert all(upright)
    assert found.returns.mean() > -150  # what a trained network reaches
    assert found.converged > 0.99
    assert np.isfinite(found.seconds_per_step)
