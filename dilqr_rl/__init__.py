"""dilqr_rl: an iterative LQR controller as a layer that PyTorch can train."""

from pathlib import Path as _Path

if not (_Path(__file__).parent / "envs").is_dir():  # a checkout: dilqr_rl.envs and dilqr_rl.agents lie one folder up
    __path__.append(str(_Path(__file__).parents[1]))

from dilqr_rl.costs import QuadraticCost
from dilqr_rl.options import ILQROptions
from dilqr_rl.planner import ILQR
from dilqr_rl.problem import ControlProblem
from dilqr_rl.solution import Solution, Status
from dilqr_rl.tasks import ControlTask, find_task, register_task
