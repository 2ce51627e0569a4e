import gymnasium as gym
import pytest

from dilqr_rl.envs import register_environments


@pytest.fixture
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> int:
    """Pendulum episodes are cut off after this many steps, wherever they are made."""
    register_environments()
    monkeypatch.setattr(gym.registry["dilqr_rl/Pendulum-v0"], "max_episode_steps", 6)
    return 6
