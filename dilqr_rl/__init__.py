"""dilqr_rl: an iterative LQR controller as a layer that PyTorch can train.

    problem = ControlProblem(dynamics, stage_cost, horizon=20, state_size=3, control_size=1, u_min=-2.0, u_max=2.0)
    planner = ILQR(problem)
    solution = planner(x0)  # differentiable in x0 and in everything the problem holds

Environments are in `dilqr_rl.envs`, learners and policies in `dilqr_rl.agents`.
"""

from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

if not (_Path(__file__).parent / "envs").is_dir():  # a checkout: dilqr_rl.envs and dilqr_rl.agents lie one folder up
    __path__.append(str(_Path(__file__).parents[1]))

from dilqr_rl.costs import QuadraticCost
from dilqr_rl.guess import Guess
from dilqr_rl.multi_start import MultiStart
from dilqr_rl.native import compile_dynamics
from dilqr_rl.native.explanation import Explanation, explain
from dilqr_rl.options import ILQROptions
from dilqr_rl.planner import ILQR
from dilqr_rl.problem import ControlProblem
from dilqr_rl.simulator import Simulator
from dilqr_rl.solution import History, Solution, Status
from dilqr_rl.tasks import ControlTask, find_task, register_task

if TYPE_CHECKING:
    from dilqr_rl.agents import MPCPolicy

__all__ = [
    "ILQR",
    "ControlProblem",
    "ControlTask",
    "Explanation",
    "Guess",
    "History",
    "ILQROptions",
    "MPCPolicy",
    "MultiStart",
    "QuadraticCost",
    "Simulator",
    "Solution",
    "Status",
    "compile_dynamics",
    "explain",
    "find_task",
    "register_task",
]


def __getattr__(name: str) -> Any:
    """`MPCPolicy`, imported on first use: it brings Stable-Baselines3 along."""
    if name == "MPCPolicy":
        from dilqr_rl.agents import MPCPolicy

        return MPCPolicy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
