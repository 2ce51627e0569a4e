from collections.abc import Iterator

import gymnasium as gym
import pytest
import torch

from dilqr_rl.envs import register_environments


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """LAPACK on 2 x 2 matrices wins nothing from a second thread, and waits milliseconds for it where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> int:
    """Pendulum episodes are cut off after this many steps, wherever they are made."""
    register_environments()
    monkeypatch.setattr(gym.registry["dilqr_rl/Pendulum-v0"], "max_episode_steps", 6)
    return 6
