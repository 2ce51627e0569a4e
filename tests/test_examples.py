"""The examples of reinforcement learning do what they say, those that take a minute in a smaller setting."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from processes import started
from scripts import load_script
from stable_baselines3 import SAC

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "ppo_pendulum.py"

if not SCRIPT.exists():
    pytest.skip("not in a checkout", allow_module_level=True)


@pytest.fixture(scope="module")
def example() -> Any:
    return load_script(SCRIPT)


@pytest.mark.slow
def test_ppo_swings_the_state_pendulum_up(example: Any, tmp_path: Path) -> None:
    points = example.main(example.Args("state", out=tmp_path))
    assert points[0].mean_return < -900
    assert points[-1].mean_return > -250  # seeds 0 to 4 end between -136 and -126
    assert [point.steps for point in points] == list(range(0, 24_577, 2_048))
    with (tmp_path / "ppo_state.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["mean_return"]) for row in rows] == [point.mean_return for point in points]
    assert (tmp_path / "ppo_state.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_ppo_starts_learning_from_pixels(example: Any, tmp_path: Path) -> None:
    points = example.main(example.Args("pixels", environments=4, steps=512, seeds=(0, 1), out=tmp_path))
    assert [(point.seed, point.steps) for point in points] == [(0, 0), (0, 512), (1, 0), (1, 512)]
    assert all(before.mean_return != after.mean_return for before, after in zip(points[::2], points[1::2], strict=True))
    assert (tmp_path / "ppo_pixels.png").exists()


@pytest.mark.slow
def test_ppo_learns_physics_and_goal() -> None:
    module = load_script(EXAMPLES / "ppo_wrong_physics.py")
    found = [module.main(module.Args(steps=3_072, seed=seed, episodes=10)) for seed in range(3)]
    assert max(run["before"] for run in found) < -650
    assert median(run["after"] for run in found) > -250  # which seed of five takes longer is the processor's rounding


@pytest.mark.slow
def test_a_cost_map_learns_where_to_go() -> None:
    module = load_script(EXAMPLES / "ppo_cost_map.py")
    found = module.main(module.Args(steps=2_560))
    assert found["after"] > found["before"]
    assert found["low"] < found["high"]


@pytest.mark.slow
def test_sac_starts_from_the_plan() -> None:
    module = load_script(EXAMPLES / "sac_planner.py")
    found = module.main(module.Args(steps=250, episodes=5))
    assert -500 < found["before"] < -150
    assert found["after"] != found["before"]


@pytest.mark.slow
def test_ppo_goes_on_from_the_clone() -> None:
    module = load_script(EXAMPLES / "clone_then_ppo.py")
    found = module.main(module.Args(steps=1_024, episodes=10))
    assert found["clone"] == pytest.approx(found["demonstrator"], rel=0.05)
    assert found["PPO, before"] == pytest.approx(found["clone"], rel=1e-3)
    assert found["PPO, after"] > found["clone"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_training_that_is_told_to_end_keeps_its_model(name: str, tmp_path: Path) -> None:
    """Stable-Baselines3's own `learn` knows nothing of signals."""
    command = [
        sys.executable,
        EXAMPLES / "sac_planner.py",
        "--steps",
        "1000000",
        "--episodes",
        "1",
        "--out",
        tmp_path / "model.zip",
    ]
    with started(command, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("before: mean return")
        time.sleep(2.0)
        process.send_signal(getattr(signal, name))
        out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "interrupted: going on with what there is so far" in errors
    assert out.startswith("after ")
    assert SAC.load(tmp_path / "model.zip").num_timesteps > 0
