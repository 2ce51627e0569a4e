"""Which path a problem takes, and why, told without compiling anything."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dilqr_rl.derivatives import dynamics_jacobian, stage_hessian, terminal_hessian
from dilqr_rl.guess import finite
from dilqr_rl.hidden import refuse_hidden_tensors
from dilqr_rl.instance import Instance, bind, own_tensors
from dilqr_rl.native.programs import SIMULATED, structure_of, traced
from dilqr_rl.native.tracing import UntraceableError
from dilqr_rl.problem import ControlProblem
from dilqr_rl.simulator import Simulator

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True)
class Explanation:
    """Which path a problem takes with backend="auto".

    Attributes:
        native: whether it is the native one; else PyTorch's.
        reason: why it isn't: the operation, with the file and the line of the function that calls it. Empty if it is.
        lines: of the code that would be compiled; 0 if there is none. 1,000 take some 6 s of a core.
        parameters: how many numbers the problem's parameters and buffers have.
    """

    native: bool
    reason: str
    lines: int
    parameters: int

    def __str__(self) -> str:
        """It in one line."""
        if self.native:
            return f"native: {self.lines} lines of code to compile, {self.parameters} parameters as arguments"
        return f"PyTorch, which is slower than native code: {self.reason}"


def explain(problem: ControlProblem, x0: Tensor | None = None) -> Explanation:
    """Tell which path a problem takes, and what stands in the way of the native one.

    Args:
        problem: the problem.
        x0: a start state (n,), near which native code is compared with the functions; zero by default.

    Raises:
        ValueError: what a planner would raise: a function that fails, that PyTorch can't differentiate,
            that mixes the problems of a batch or uses a network which the problem doesn't hold, a wrong shape.
    """
    if not isinstance(problem, ControlProblem):
        raise ValueError(f"problem: expected a ControlProblem, got {type(problem).__name__}.")
    start = torch.zeros(problem.state_size) if x0 is None else x0
    if not isinstance(start, Tensor) or tuple(start.shape) != (problem.state_size,):
        came = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
        raise ValueError(f"x0: expected a tensor ({problem.state_size},), got {came}.")
    batch = finite("x0", start).detach().to("cpu", torch.float64)[None]
    controls = batch.new_zeros(1, problem.horizon, problem.control_size)
    count = sum(tensor.numel() for tensor in own_tensors(problem))
    if isinstance(problem.dynamics, Simulator):
        return Explanation(False, SIMULATED, 0, count)
    unseen = structure_of(problem).watch.blind
    if unseen is not None:
        return Explanation(False, unseen, 0, count)
    bound = bind(problem, batch, None)
    if torch.is_grad_enabled():
        refuse_hidden_tensors(bound, batch, controls)
    try:
        model = traced(bound, batch, controls)
    except UntraceableError as error:
        _differentiate_once(bound, batch, controls)
        return Explanation(False, str(error), 0, count)
    return Explanation(True, "", len(model.source.splitlines()), count)


def _differentiate_once(instance: Instance, x: Tensor, u: Tensor) -> None:
    """Have PyTorch take each derivative that a solve needs at the start, so that one it refuses is told.

    Args:
        instance: the problem.
        x: (1, n).
        u: (1, T, m).
    """
    first, states, controls = instance.at_first_step(), x.unsqueeze(1), u[:, :1]
    dynamics_jacobian(first, states, controls)
    stage_hessian(first, states, controls)
    terminal_hessian(first, x)
