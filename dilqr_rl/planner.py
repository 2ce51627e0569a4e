"""The planner: a control problem as a differentiable layer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dilqr_rl.adjoint import Adjoint
from dilqr_rl.consistency import disagreement
from dilqr_rl.endings import reason_for_doubt
from dilqr_rl.fixed_point import Pullback, attach
from dilqr_rl.guess import Guess, checked_guess, finite
from dilqr_rl.hidden import refuse_hidden_tensors
from dilqr_rl.ilqr import solve
from dilqr_rl.independence import refuse_coupled, refuse_coupled_along
from dilqr_rl.instance import Instance, bind, check_values, named_tensors, named_values, usable
from dilqr_rl.native.adjoint import NativeAdjoint
from dilqr_rl.native.audit import SHARE, Audit
from dilqr_rl.native.program import Program
from dilqr_rl.native.programs import Structure, drop_program, find_program, structure_of
from dilqr_rl.no_derivatives import find_idle, told
from dilqr_rl.options import ILQROptions
from dilqr_rl.problem import ControlProblem
from dilqr_rl.second_starts import between_bounds, doubts, feedback_start, is_better
from dilqr_rl.simulator import Simulator
from dilqr_rl.solution import Solution, Status
from dilqr_rl.surroundings import uncompiled, undisturbed
from dilqr_rl.transforms import Call, is_transformed, transformed
from dilqr_rl.unroll import unrolled

__all__ = ["ILQR"]

_log = logging.getLogger("dilqr_rl")
_GRADIENTS = ("implicit", "diffmpc", "unroll")


class _Bound:
    """A problem with values, and what solves it: native code, or torch."""

    def __init__(self, instance: Instance, program: Program | None, whole: _Bound | None = None) -> None:
        self.instance, self.program, self._whole = instance, program, whole
        self._arguments = None if program is None else program.arrange(instance)

    def solve(self, x0: Tensor, guess: Guess, options: ILQROptions) -> Solution:
        """The solution from x0 (B, n), without gradients."""
        if self.program is None or self._arguments is None:
            solved, history = solve(self.instance, x0, guess, options)
            return solved.solution(history)
        began, audit = time.perf_counter(), self.program.solves
        solution = self.program.solve(self._arguments, x0, guess, options)
        took, budget = time.perf_counter() - began, options.max_seconds
        if not audit.due(took, math.inf if budget is None else budget - took):
            return solution
        role = audit.look(lambda: disagreement(self.instance, solution))
        if role is None:
            return solution
        audit.owe()  # where it ends in an error now, it has to next time
        refuse_coupled_along(self.instance, solution)
        drop_program(self.instance.problem, self.program, role, options.backend == "native")
        bound: _Bound | None = self
        while bound is not None:
            bound.program = bound._arguments = None
            bound = bound._whole
        return self.solve(x0, guess, options)

    def pullback(self, solution: Solution, exact: bool, required: bool) -> Pullback:
        """What differentiates a solution; with `required`, natively or not at all, once it has been solved so."""
        if self.program is None or self._arguments is None:
            return Adjoint(self.instance, solution, exact)
        return NativeAdjoint(self.program, self.instance, self._arguments, solution, exact, required)

    def refuse_hidden_tensors(self, x0: Tensor, controls: Tensor) -> None:
        """Raise a ValueError where a function depends on a tensor that requires a gradient and isn't the instance's."""
        if self.program is None or self.program.depends_on_hidden_tensors:
            refuse_hidden_tensors(self.instance, x0, controls)

    def select(self, index: Tensor) -> _Bound:
        """Some problems of the batch."""
        return _Bound(self.instance.select(index), self.program, self)


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
        if gradient == "unroll" and isinstance(problem.dynamics, Simulator):
            raise ValueError('gradient: "unroll" wants derivatives of the steps themselves, which a Simulator has none of.')
        if gradient == "unroll" and options is not None and options.backend == "native":
            raise ValueError('gradient: "unroll" has no native form; use backend="auto" or "torch" with it.')
        self.problem = problem
        self.options = options or ILQROptions()
        self.gradient = gradient
        self._said: set[str] = set()
        self._idle = Audit(share=0.1 * SHARE)  # the rest of a program's

    def forward(
        self,
        x0: Tensor,
        params: Mapping[str, Tensor] | None = None,
        u_init: Tensor | None = None,
        *,
        guess: Guess | None = None,
    ) -> Solution:
        """Plan from x0.

        Args:
            x0: (B, n), or (n,) for results without a batch dimension.
            params: replaces any parameter or buffer of the problem by its qualified name, e.g. {"dynamics.mass": tensor}:
                with its own shape, or with (B,) or (B, T) in front, one value per problem, or per problem and step (an
                unbatched x0 has B = 1).
            u_init: controls to start from, (B, T, m), or (T, m) for the same start everywhere; clipped to the bounds. Zero
                by default; where these lead nowhere, as at a saddle or to infinity, others are tried (not with "unroll").
            guess: a start with states, in the place of u_init; see `Guess`.

        Returns:
            The `Solution`, whether converged or not: look at its `status`.

        Raises:
            ValueError: an argument has another shape or type, or holds NaN or infinity; a name is unknown; a parameter that
                must be positive isn't; u_min > u_max; both u_init and guess; a function returns another shape, or holds a
                tensor that requires a gradient without being the problem's.
        """
        if torch.compiler.is_dynamo_compiling():
            return uncompiled(self._planned, x0, params, u_init, guess, self.options)
        return self._planned(x0, params, u_init, guess, self.options)

    def attached(self, x0: Tensor, params: Mapping[str, Tensor] | None, solution: Solution) -> Solution:
        """A solution that was found without gradients, differentiable as if it had been found with them.

        Args:
            x0: (B, n), of the solution.
            params: as for the call that found it.
            solution: (B, ...), of this planner's problem.

        Raises:
            ValueError: gradient="unroll", which needs the iterations.
        """
        if not torch.is_grad_enabled():
            return solution
        bound = self._bound(x0.to(torch.float64), params, solution.controls.to(torch.float64))
        bound.refuse_hidden_tensors(x0.to(torch.float64), solution.controls.to(torch.float64))
        if self.gradient == "unroll" and _is_differentiable(x0, *bound.instance.values):
            raise ValueError('gradient: "unroll" has no gradient at a point; call the planner from a guess instead.')
        exact = solution.cast(torch.float64)
        return self._attached(bound, x0.to(torch.float64), exact).cast(x0.dtype)

    def within(
        self, max_seconds: float | None, x0: Tensor, params: Mapping[str, Tensor] | None = None, guess: Guess | None = None
    ) -> Solution:
        """The same as calling it, with another time budget than its options'."""
        options = self.options if max_seconds is None else replace(self.options, max_seconds=max_seconds)
        return self._planned(x0, params, None, guess, options)

    def extra_repr(self) -> str:
        """The settings, for `print(planner)`."""
        return f"gradient={self.gradient!r}, {self.options}"

    def _planned(
        self,
        x0: Tensor,
        params: Mapping[str, Tensor] | None,
        u_init: Tensor | None,
        guess: Guess | None,
        options: ILQROptions,
    ) -> Solution:
        if torch.is_inference_mode_enabled():  # whose tensors have no derivatives, which the solver needs
            with torch.inference_mode(False), torch.no_grad():
                values = None if params is None else {name: usable(value) for name, value in params.items()}
                starts = None if u_init is None else usable(u_init), None if guess is None else guess.map(usable)
                return self._planned(usable(x0), values, *starts, options)
        batch = self._start_states(x0)
        start = checked_guess(self.problem, batch, u_init, guess)
        by_default = u_init is None and guess is None
        exact = batch.to(torch.float64)
        if is_transformed(self.tensors(x0, params)):

            def find(x0: Tensor, params: Mapping[str, Tensor], guess: Guess | None) -> Solution:
                return self._planned(x0, params, None, guess, options)

            solution = self.transformed(find, exact, params, None if by_default else start)
        else:
            solution = self._plan(self._bound(exact, params, start.controls), exact, start, by_default, options)
        solution = solution.cast(x0.dtype)
        return solution if x0.ndim == 2 else solution.squeeze()

    def tensors(self, x0: Tensor, params: Mapping[str, Tensor] | None) -> Iterator[Tensor]:
        """Whatever a call's solution depends on."""
        yield x0
        yield from (params or {}).values()
        yield from named_tensors(self.problem).values()

    def transformed(
        self,
        find: Callable[[Tensor, Mapping[str, Tensor], Guess | None], Solution],
        x0: Tensor,
        params: Mapping[str, Tensor] | None,
        guess: Guess | None,
    ) -> Solution:
        """What `find` gives where tensors are those of a transform or carry tangents, with the derivatives that it asks for.

        Args:
            find: finds this planner's solutions from plain tensors; called without gradients.
            x0: (B, n) in float64.
            params: as for a call.
            guess: (B, ...), or None.
        """
        if self.gradient == "unroll":
            raise NotImplementedError('gradient: "unroll" is for backward() and autograd.grad; use "implicit" with torch.func.')

        def solve(instance: Instance, x0: Tensor, guess: Guess | None) -> Solution:
            controls = x0.new_zeros(1, 1, self.problem.control_size) if guess is None else guess.controls
            refuse_hidden_tensors(instance, x0, controls, lowered=True)
            return find(x0, named_values(instance), guess)

        def pullback(instance: Instance, solution: Solution) -> Pullback:
            self._tell_singular(solution)
            bound = self._bound_to(instance, solution.states[:, 0], solution.controls)
            return bound.pullback(solution, self.gradient == "implicit", self.options.backend == "native")

        return transformed(Call(bind(self.problem, x0, params), solve, pullback, self.gradient == "implicit"), x0, guess)

    def _bound(self, x0: Tensor, params: Mapping[str, Tensor] | None, controls: Tensor) -> _Bound:
        """The problem with values, and the native code for it, if there is any; new code is tried at the start."""
        structure = self._structure()
        instance = bind(self.problem, x0, params, None if structure is None else structure.tensors)
        return self._bound_to(instance, x0, controls, structure)

    def _structure(self) -> Structure | None:
        """Of the problem's functions, where native code is wanted."""
        never = self.options.backend == "torch" or self.gradient == "unroll"
        never |= self.options.backend == "auto" and isinstance(self.problem.dynamics, Simulator)
        return None if never else structure_of(self.problem)

    def _bound_to(self, instance: Instance, x0: Tensor, controls: Tensor, structure: Structure | None = None) -> _Bound:
        """The same for an instance; `structure` is that of its functions, if it is known."""
        program = None
        structure = self._structure() if structure is None else structure
        with undisturbed():
            if structure is not None:
                program = find_program(instance, structure, x0, controls, required=self.options.backend == "native")
            if program is None:
                check_values(instance)
                refuse_coupled(instance, x0, controls)
        return _Bound(instance, program)

    def _plan(self, bound: _Bound, x0: Tensor, guess: Guess, by_default: bool, options: ILQROptions) -> Solution:
        if torch.is_grad_enabled():
            bound.refuse_hidden_tensors(x0, guess.controls)
        if self.gradient == "unroll" and _is_differentiable(x0, *guess.parts(), *bound.instance.values):
            return unrolled(bound.instance, x0, guess, options)
        return self._attached(bound, x0, self._found(bound, x0, guess, by_default, options))

    def _found(self, bound: _Bound, x0: Tensor, guess: Guess, by_default: bool, options: ILQROptions) -> Solution:
        with undisturbed():
            native, began = bound.program is not None, time.perf_counter()
            solution = self._solved(bound, x0, guess, by_default, options)
            if native and bound.program is None:  # dropped on the way: what it had found before doesn't count
                solution = self._solved(bound, x0, guess, by_default, options)
            took = time.perf_counter() - began
            solution = told(bound.instance, solution)
            if self._idle.due(took, math.inf if options.max_seconds is None else options.max_seconds - took):
                self._idle.look(lambda: self._tell_trouble(bound.instance, solution))
            return solution

    def _solved(self, bound: _Bound, x0: Tensor, guess: Guess, by_default: bool, options: ILQROptions) -> Solution:
        began = time.monotonic()
        solution = bound.solve(x0, guess, options)
        if by_default and self.gradient != "unroll":
            solution = self._doubted(bound, x0, solution, options, began)
        return solution

    def _attached(self, bound: _Bound, x0: Tensor, solution: Solution) -> Solution:
        if self.gradient == "unroll" or not _is_differentiable(x0, *bound.instance.values):
            return solution
        self._tell_singular(solution)
        pullback = bound.pullback(solution, self.gradient == "implicit", self.options.backend == "native")
        states, controls, cost = attach(pullback, solution, x0, bound.instance.values)
        return replace(solution, states=states, controls=controls, cost=cost)

    def _tell_singular(self, solution: Solution) -> None:
        """Log how many solutions with gradients are singular."""
        count = int(solution.singular.sum())
        text = (
            "%d of %d solutions are singular: some controls, or combinations of them, cost nothing, and their derivatives "
            "are those of least norm; Solution.singular tells which"
        )
        if count > 0:
            self._tell(text, count, len(solution.singular))

    def _tell_trouble(self, instance: Instance, solution: Solution) -> None:
        """Log why a solve is in doubt, and which controls are where they started since no derivative leads to them."""
        reason = reason_for_doubt(instance, solution)
        if reason:
            self._tell(f"a solve is in doubt: {reason}")
        idle = find_idle(instance, solution)
        text = (
            "%d of %d solutions have cheaper values for some controls, by number %s, to which no derivative leads: are these "
            "under torch.no_grad(), detached, rounded or in a dead band?"
        )
        if idle.any():
            self._tell(text, int(idle.any(1).sum()), len(idle), idle.any(0).nonzero().flatten().tolist())

    def _tell(self, text: str, *numbers: Any) -> None:
        """Log something of solutions, as a warning the first time and at level INFO from then on."""
        _log.log(logging.INFO if text in self._said else logging.WARNING, text, *numbers)
        self._said.add(text)

    def _doubted(self, bound: _Bound, x0: Tensor, solution: Solution, options: ILQROptions, began: float) -> Solution:
        """The solution from zero controls, and where it can't be trusted, a cheaper one from another start, if there is one.

        `began` is when the time budget did, which is for all of it.
        """
        doubtful = doubts(solution, lambda: bound.instance.bounds(x0.shape[0]))
        if doubtful.numel() == 0:
            return solution
        escaped = doubtful[solution.status[doubtful] == Status.NONFINITE]
        if escaped.numel() > 0:
            start = feedback_start(bound.select(escaped).instance, x0[escaped])
            solution = self._tried(bound, x0, solution, escaped, start, options, began)
        for start in between_bounds(*bound.select(doubtful).instance.bounds(doubtful.numel())):
            solution = self._tried(bound, x0, solution, doubtful, start, options, began)
        return solution

    def _tried(
        self, bound: _Bound, x0: Tensor, solution: Solution, index: Tensor, start: Guess, options: ILQROptions, began: float
    ) -> Solution:
        """The solution, or from another start of the problems at `index` (K,) a better one, if there is time for it."""
        if options.max_seconds is not None:
            left = options.max_seconds - (time.monotonic() - began)
            if left <= 0:
                return solution
            options = replace(options, max_seconds=left)
        other = bound.select(index).solve(x0[index], start, options)
        better = is_better(other, solution.select(index)).nonzero().squeeze(1)
        return solution.merge(index[better], other.select(better))

    def _start_states(self, x0: Tensor) -> Tensor:
        n = self.problem.state_size
        if not isinstance(x0, Tensor) or not x0.is_floating_point():
            came = f"a tensor of {x0.dtype}" if isinstance(x0, Tensor) else type(x0).__name__
            raise ValueError(f"x0: expected a floating-point tensor (B, {n}) or ({n},), got {came}.")
        if x0.device.type == "meta":
            raise ValueError("x0: expected numbers, got a tensor on the meta device, which has none.")
        if x0.ndim not in (1, 2) or x0.shape[-1] != n or x0.shape[0] == 0:
            raise ValueError(f"x0: expected the shape (B, {n}) or ({n},), got {tuple(x0.shape)}.")
        return finite("x0", x0.reshape(-1, n))


def _is_differentiable(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
