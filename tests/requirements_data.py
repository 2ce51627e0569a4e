"""What the tests of CONVENTIONS.md's P1 to P13 share: every argument changed, fresh processes, the actor's means."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from policy_data import (
    POLICIES,
)

from dilqr_rl import ILQROptions
from dilqr_rl.agents import CostMap, MPCPolicy, MPCSACPolicy, MPCTD3Policy, PlanningPolicy

SMALL_MAP = CostMap(hidden=(4,))
EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
each_algorithm = pytest.mark.parametrize("algorithm", POLICIES)
each_kind = pytest.mark.parametrize("kind", [MPCPolicy, MPCSACPolicy, MPCTD3Policy])
# Everything of `PlanningPolicy`'s own, other than its default.
OWN: dict[str, Any] = {
    "horizon": 3,
    "physics": {"mass": 1.5},
    "learn": ("goal", "terminal"),
    "options": ILQROptions(max_iterations=9, tolerance=1e-4),
    "gradient": "diffmpc",
    "model_rate": 2.0,
    "cost_map": CostMap(("weights",), per_step=False, hidden=(3,)),
    "terminal_value": (5,),
    "activation_fn": torch.nn.ELU,
    "optimizer_kwargs": {"eps": 1e-4},
}
OWN_BY_KIND: dict[type[PlanningPolicy], dict[str, Any]] = {
    MPCPolicy: {
        "warm_start": True,  # which off-policy algorithms refuse
        "plan_cost_feature": True,
        "share_features_extractor": False,
        "net_arch": {"pi": [], "vf": [6]},
        "log_std_init": -0.5,
        "ortho_init": False,
    },
    MPCSACPolicy: {
        "squash_margin": 0.1,
        "share_features_extractor": True,
        "n_critics": 3,
        "net_arch": {"pi": [3], "qf": [6]},
        "log_std_init": -2.0,
    },
    MPCTD3Policy: {"share_features_extractor": True, "n_critics": 1, "net_arch": {"pi": [], "qf": [6]}},
}


def run(program: str, folder: Path) -> str:
    """What a fresh process prints."""
    paths = [str(Path(__file__).parent), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    arguments = [sys.executable, "-W", "error::UserWarning", "-c", "import torch; torch.set_num_threads(1)\n" + program]
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def means(a_policy: Any, seen: Any) -> torch.Tensor:
    """The actor's mean actions (B, m), as training sees them: in the environment's unit, or within [-1, 1] off policy."""
    seen = {name: torch.as_tensor(part) for name, part in seen.items()} if isinstance(seen, dict) else torch.as_tensor(seen)
    with torch.no_grad():
        if isinstance(a_policy, MPCPolicy):
            return a_policy(seen, deterministic=True)[0]
        return a_policy.actor(seen, deterministic=True) if isinstance(a_policy, MPCSACPolicy) else a_policy.actor(seen)
