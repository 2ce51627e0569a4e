"""Without numba's compiler everything works as with it, more slowly."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from systems import IDS

SCRIPT = """
import sys, warnings
import gymnasium as gym, numpy as np
import dilqr_rl.envs
found = {}
for env_id in dilqr_rl.envs.ENVIRONMENTS:
    arguments = {"size": 16, "frame_stack": 2} if "Pixels" in env_id else {}
    env = gym.make_vec(env_id, 3, "vector_entry_point", max_episode_steps=4, randomize={"gravity": (8.0, 11.0)}, **arguments)
    results = [env.reset(seed=0)[0]]
    for step in range(6):
        observation, reward, terminated, truncated, info = env.step(0.1 * step * np.ones(env.action_space.shape))
        results += [observation, reward, terminated, truncated, info["state"]]
    for place, result in enumerate(results):
        found[f"{env_id} {place}"] = result
np.savez(sys.argv[1], **found)
"""


@pytest.mark.slow
def test_environments_without_the_compiler_give_the_same_numbers(tmp_path: Path) -> None:
    results = []
    for disabled in ("0", "1"):
        file = tmp_path / f"{disabled}.npz"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "NUMBA_DISABLE_JIT": disabled}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(file)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert ("NUMBA_DISABLE_JIT is set" in done.stderr) == (disabled == "1")
        results.append(np.load(file))
    compiled, interpreted = results
    assert set(compiled) == set(interpreted)
    assert len(compiled) == 31 * len(IDS)
    for name in compiled:
        if compiled[name].dtype == np.uint8:  # sines differ in their last bit, which may round a level up
            assert np.abs(compiled[name].astype(int) - interpreted[name]).max() <= 1
        else:
            np.testing.assert_allclose(compiled[name], interpreted[name], rtol=1e-6, atol=1e-6)  # observations are float32
