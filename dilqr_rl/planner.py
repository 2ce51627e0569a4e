"""The planner: a control problem as a differentiable layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from dilqr_rl.adjoint import Adjoint
from dilqr_rl.fixed_point import Pullback, attach
from dilqr_rl.ilqr import Decision, Iterate, solve
from dilqr_rl.instance import Instance, bind, check_values
from dilqr_rl.native.program import Program, Structure, find_program, structure_of
from dilqr_rl.options import ILQROptions
from dilqr_rl.problem import ControlProblem
from dilqr_rl.solution import Solution, Status
from dilqr_rl.unroll import replay

__all__ = ["ILQR"]

_GRADIENTS = ("implicit", "diffmpc", "unroll")


class ILQR(nn.Module):
    """Solves a `ControlProblem` from given start states; the solution is differentiable.

    It computes in float64, whatever the type of x0 and of the parameters, and returns x0's type. The gradient reaches x0, every
    parameter and buffer of the problem (bounds included), and whatever produced the tensors in `params`.

    Args:
        problem: what to solve.
        options: settings of the solver.
        gradient: "implicit" is exact (one LQR sweep; see adjoint.py). "diffmpc" is the approximation of Amos et al. (2018),
            which leaves out the curvature of the dynamics. "unroll" backpropagates through every iteration: slow,
            memory-hungry, for comparison. A problem that did not converge passes a gradient of zero with the first two;
            with "unroll", one that ended NONFINITE.

    Raises:
        ValueError: `problem`, `options` or `gradient` is not one of these.
    """

    def __init__(
        self,
        problem: ControlProblem,
        options: ILQROptions | None = None,
        gradient: Literal["implicit", "diffmpc", "unroll"] = "implicit",
    ) -> None:
        super().__init__()
        if not isinstance(problem, ControlProblem):
            raise ValueError(f"problem: expected a ControlProblem, got {type(problem).__name__}.")
        if options is not None and not isinstance(options, ILQROptions):
            raise ValueError(f"options: expected ILQROptions, got {type(options).__name__}.")
        if gradient not in _GRADIENTS:
            raise ValueError(f"gradient: expected one of {_GRADIENTS}, got {gradient!r}.")
        if gradient == "unroll" and options is not None and options.backend == "native":
            raise ValueError('gradient: "unroll" has no native form; use backend="auto" or "torch" with it.')
        self.problem = problem
        self.options = options or ILQROptions()
        self.gradient = gradient

    def forward(self, x0: Tensor, params: Mapping[str, Tensor] | None = None, u_init: Tensor | None = None) -> Solution:
        """Plan from x0.

        Args:
            x0: (B, n), or (n,) for results without a batch dimension.
            params: replaces any parameter or buffer of the problem by its qualified name, e.g. {"dynamics.mass": tensor}:
                with its own shape, or with (B,) or (B, T) in front, one value per problem, or per problem and step (an
                unbatched x0 has B = 1).
            u_init: controls to start from, (B, T, m), or (T, m) for the same start everywhere; clipped to the bounds. Zero
                by default.

        Returns:
            The `Solution`, whether converged or not: look at its `status`.

        Raises:
            ValueError: an argument has another shape or type, or holds NaN or infinity; a name is unknown; a parameter that
                must be positive isn't; u_min > u_max; a function returns another shape, or holds a tensor that requires a
                gradient without being the problem's.
        """
        batch = self._start_states(x0)
        structure = structure_of(self.problem) if self._may_be_native else None
        instance = bind(self.problem, batch, params, None if structure is None else structure.tensors)
        start = self._start_controls(u_init, batch)
        solution = self._plan(instance, structure, batch.to(torch.float64), start).cast(x0.dtype)
        return solution if x0.ndim == 2 else solution.squeeze()

    def extra_repr(self) -> str:
        """The settings, for `print(planner)`."""
        return f"gradient={self.gradient!r}, {self.options}"

    @property
    def _may_be_native(self) -> bool:
        return self.options.backend != "torch" and self.gradient != "unroll"

    def _plan(self, instance: Instance, structure: Structure | None, x0: Tensor, u_init: Tensor) -> Solution:
        differentiable = torch.is_grad_enabled() and any(v.requires_grad for v in (x0, u_init, *instance.values))
        program = None
        if structure is not None:
            program = find_program(instance, structure, x0, u_init, required=self.options.backend == "native")
        if program is None:
            check_values(instance)
        if torch.is_grad_enabled():
            _refuse_hidden_tensors(instance, x0, u_init, program)
        if differentiable and self.gradient == "unroll":
            return self._unroll(instance, x0, u_init)
        exact = self.gradient == "implicit"
        pullback: Pullback
        if program is None:
            solved = replace(solve(instance, x0, u_init, self.options), instance=instance)
            solution, pullback = _solution(solved), Adjoint(solved, exact)
        else:
            solution, pullback = program.solve(instance, x0, u_init, self.options, exact)
        if not differentiable:
            return solution
        states, controls, cost = attach(pullback, solution, x0, instance.values)
        return replace(solution, states=states, controls=controls, cost=cost)

    def _unroll(self, instance: Instance, x0: Tensor, u_init: Tensor) -> Solution:
        decisions: list[Decision] = []
        solved = replace(solve(instance, x0, u_init, self.options, decisions), instance=instance)
        passes = solved.status != Status.NONFINITE
        if not passes.any():
            x, u, cost = attach(Adjoint(solved, exact=True), _solution(solved), x0, instance.values)
            return replace(_solution(solved), states=x, controls=u, cost=cost)
        x, u = replay(solved, decisions, x0, u_init)
        return replace(_solution(solved), states=x, controls=u, cost=_cost(solved, x, u, passes))

    def _start_states(self, x0: Tensor) -> Tensor:
        n = self.problem.state_size
        if not isinstance(x0, Tensor) or not x0.is_floating_point():
            came = f"a tensor of {x0.dtype}" if isinstance(x0, Tensor) else type(x0).__name__
            raise ValueError(f"x0: expected a floating-point tensor (B, {n}) or ({n},), got {came}.")
        if x0.ndim not in (1, 2) or x0.shape[-1] != n or x0.shape[0] == 0:
            raise ValueError(f"x0: expected the shape (B, {n}) or ({n},), got {tuple(x0.shape)}.")
        return _finite("x0", x0.reshape(-1, n))

    def _start_controls(self, u_init: Tensor | None, x0: Tensor) -> Tensor:
        shape = (x0.shape[0], self.problem.horizon, self.problem.control_size)
        if u_init is None:
            return torch.zeros(shape, dtype=torch.float64, device=x0.device)
        if not isinstance(u_init, Tensor) or tuple(u_init.shape) not in (shape, shape[1:]):
            came = tuple(u_init.shape) if isinstance(u_init, Tensor) else type(u_init).__name__
            raise ValueError(f"u_init: expected a tensor of shape {shape} or {shape[1:]}, got {came}.")
        return _finite("u_init", u_init).to(x0.device, torch.float64).expand(shape)


def _cost(solved: Iterate, x: Tensor, u: Tensor, passes: Tensor) -> Tensor:
    """The cost (B,), a function of x, u and the values; of problems outside `passes` (B,) a number without a gradient."""
    index = passes.nonzero().squeeze(1)
    number = solved.cost + 0.0 * u.flatten(1).sum(1)  # a zero gradient, not none
    if index.numel() == 0:
        return number
    return number.index_put((index,), solved.instance.select(index).total_cost(x[index], u[index]))


def _solution(solved: Iterate) -> Solution:
    return Solution(
        states=solved.x,
        controls=solved.u,
        cost=solved.cost,
        status=solved.status,
        num_iterations=solved.iterations,
        residual=solved.residual,
        gains=solved.gains,
    )


def _refuse_hidden_tensors(instance: Instance, x0: Tensor, u_init: Tensor, program: Program | None) -> None:
    """Raise a ValueError where a function depends on a tensor that requires a gradient and isn't the instance's."""
    if program is not None and not program.depends_on_hidden_tensors:
        return
    first = torch.zeros(1, dtype=torch.int64, device=x0.device)
    plain = instance.with_values(tuple(value.detach() for value in instance.values)).select(first)
    x, u = x0[:1].detach(), u_init[:1, 0].detach()
    results = {
        "dynamics": plain.step(x, u, 0),
        "stage_cost": plain.at_first_step().stage_cost(x.unsqueeze(1), u.unsqueeze(1)),
        "terminal_cost": plain.terminal_cost(x),
    }
    for name, result in results.items():
        if result.requires_grad:
            raise ValueError(
                f"{name}: depends on a tensor that requires a gradient but is no parameter or buffer of the problem, so its "
                "gradient would be lost. Make the function an nn.Module that holds it, pass it through params, or detach it."
            )


def _finite(name: str, values: Tensor) -> Tensor:
    if not torch.isfinite(values).all():
        wrong = values.detach()[~torch.isfinite(values)][0].item()
        raise ValueError(f"{name}: expected finite numbers, got {wrong}.")
    return values
