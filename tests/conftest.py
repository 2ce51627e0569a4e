import os
import sys
from collections.abc import Iterator

# Before anything imports pygame, matplotlib or torch; processes that a test starts inherit it.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))  # more threads only wait on problems of our size

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("dilqr_rl", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
hypothesis.settings.load_profile("dilqr_rl")


def pytest_configure(config: pytest.Config) -> None:
    """Machine code goes beside pytest's own cache, not into the user's; processes that a test starts inherit it."""
    folder = config.cache.mkdir("native_code")
    folder.chmod(0o700)  # whatever the umask: machine code isn't read from where others may write
    os.environ.setdefault("DILQR_CACHE_DIR", str(folder))


@pytest.fixture(autouse=True)
def no_test_counts_what_another_compiled() -> None:
    """Of a process that compiles much of one kind it is said, once, that none of it is freed."""
    cache = sys.modules.get("dilqr_rl.native.cache")
    if cache is not None:
        cache._made.clear()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Matrices this small win nothing from a second thread, and wait milliseconds for it where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
