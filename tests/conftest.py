import os

# Before anything imports pygame, matplotlib or torch; processes that a test starts inherit it.
os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))  # more threads only wait on problems of our size

import hypothesis

hypothesis.settings.register_profile("dilqr_rl", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
hypothesis.settings.load_profile("dilqr_rl")
