"""Plans from several starts at once, of which the cheapest is kept."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from dilqr_rl.checks import whole
from dilqr_rl.guess import Guess, checked_guess, either, finite, refuse_unreal
from dilqr_rl.planner import ILQR
from dilqr_rl.problem import ControlProblem
from dilqr_rl.solution import Solution, Status
from dilqr_rl.surroundings import uncompiled
from dilqr_rl.transforms import is_transformed

__all__ = ["MultiStart", "best_of", "first_swings", "swings"]

_PERIODS = (0.4, 0.6, 0.8, 1.2)  # of the horizon
_PHASES = (0.0, 0.25, 0.5, 0.75)  # of the period
_CHEAPER = 1e-6  # relative: a plan that is cheaper by less than what solves leave over doesn't take a guess's place
_DOOR = 5e-4  # s, what a policy's call takes after the solve
_SHORTEST = 1e-6  # s, what is left of a time budget that is over


class MultiStart(nn.Module):
    """A planner that begins from several starts, as one batch, and keeps each problem's cheapest plan.

    Where a plan has several local minima, the one that is found depends on the start. The gradient is that of the plan kept;
    which of them is the cheapest has none.

    Args:
        planner: what plans.
        starts: controls (S, T, m), clipped to the bounds; by default `swings` of the planner's problem, between its bounds as
            they are now.

    Raises:
        ValueError: a planner with gradient="unroll", whose gradient is that of iterations from one start; starts of another
            shape, or that aren't finite real numbers.
    """

    starts: Tensor

    def __init__(self, planner: ILQR, starts: Tensor | None = None) -> None:
        super().__init__()
        if not isinstance(planner, ILQR):
            raise ValueError(f"planner: expected an ILQR, got {type(planner).__name__}.")
        if planner.gradient == "unroll":
            raise ValueError('planner: expected gradient="implicit" or "diffmpc", got "unroll", which is that of one start.')
        starts = swings(planner.problem) if starts is None else starts
        shape = (planner.problem.horizon, planner.problem.control_size)
        if not isinstance(starts, Tensor) or starts.ndim != 3 or tuple(starts.shape[1:]) != shape or len(starts) == 0:
            came = tuple(starts.shape) if isinstance(starts, Tensor) else type(starts).__name__
            raise ValueError(f"starts: expected a tensor of shape {('S', *shape)}, got {came}.")
        refuse_unreal("starts", starts)
        self.planner = planner
        self.register_buffer("starts", finite("starts", starts).detach().to(torch.float64), persistent=False)

    @property
    def problem(self) -> ControlProblem:
        """What the planner solves."""
        return self.planner.problem

    def forward(
        self,
        x0: Tensor,
        params: Mapping[str, Tensor] | None = None,
        u_init: Tensor | None = None,
        *,
        guess: Guess | None = None,
    ) -> Solution:
        """Plan from x0, see `ILQR`; u_init or guess is one more start.

        Returns:
            Of each problem the plan of the lowest cost, whether it converged or not; the guess's where none is cheaper by 1e-6.
        """
        if torch.compiler.is_dynamo_compiling():
            return uncompiled(self._planned, x0, params, u_init, guess)
        return self._planned(x0, params, u_init, guess)

    def _planned(self, x0: Tensor, params: Mapping[str, Tensor] | None, u_init: Tensor | None, guess: Guess | None) -> Solution:
        if not isinstance(x0, Tensor) or x0.ndim not in (1, 2):
            return self.planner(x0)  # says what is wrong
        batch = x0 if x0.ndim == 2 else x0.unsqueeze(0)
        first = either(u_init, guess)
        if is_transformed(self.planner.tensors(x0, params)):
            first = None if first is None else checked_guess(self.problem, batch, None, first)
            find = partial(best_of, self.planner, self.starts)
            solution = self.planner.transformed(find, batch.to(torch.float64), params, first).cast(x0.dtype)
        else:
            solution = best_of(self.planner, self.starts, batch, params, first)
        return solution if x0.ndim == 2 else solution.squeeze()


def best_of(
    planner: ILQR,
    starts: Tensor,
    x0: Tensor,
    params: Mapping[str, Tensor] | None = None,
    guess: Guess | None = None,
    began: float | None = None,
    share: float = 1.0,
) -> Solution:
    """The cheapest plans from x0 (B, n) among those from a guess, if there is one, and from each of the starts (S, T, m).

    A time budget of the planner, or this share of it, is that of all of them together, from `began` on (`time.monotonic()`;
    now, if None). Here the first call of a process, which loads or compiles native code, counts.
    """
    if guess is None and _is_zero(starts) and began is None:
        return planner(x0, params)
    budget, began = planner.options.max_seconds, time.monotonic() if began is None else began
    budget, exact = None if budget is None else share * budget, x0.to(torch.float64)

    def left(part: float = 1.0) -> float | None:
        return None if budget is None else max(part * (budget - (time.monotonic() - began) - _DOOR), _SHORTEST)

    with torch.no_grad():
        given = None if guess is None else planner.within(left(0.5), exact, params, guess)
        best = _from_starts(planner, left(), starts, exact, params)
        if given is not None:
            margin = _CHEAPER * (1.0 + given.cost.abs())
            cheaper = (~(_cost(given) <= _cost(best) + margin)).nonzero().squeeze(1)
            best = given if cheaper.numel() == 0 else given.merge(cheaper, best.select(cheaper))
    return planner.attached(exact, params, best).cast(x0.dtype)


def _from_starts(
    planner: ILQR, seconds: float | None, starts: Tensor, x0: Tensor, params: Mapping[str, Tensor] | None
) -> Solution:
    S, B = len(starts), len(x0)
    if _is_zero(starts):
        return planner.within(seconds, x0, params)  # which looks again where zero controls lead nowhere
    own = {**dict(planner.problem.named_parameters()), **dict(planner.problem.named_buffers())}
    repeated = {
        name: value.repeat_interleave(S, 0)
        if isinstance(value, Tensor) and name in own and value.ndim > own[name].ndim
        else value
        for name, value in (params or {}).items()
    }
    guess = Guess(starts.to(x0.device).repeat(B, 1, 1))
    try:
        solution = planner.within(seconds, x0.repeat_interleave(S, 0), repeated, guess)
    except ValueError as error:
        refused = error
    else:
        return _cheapest(solution, B)
    planner.within(seconds, x0, params)  # which says what is wrong in the sizes that the user gave
    raise refused


def _cheapest(solution: Solution, B: int) -> Solution:
    """Of solutions (B S, ...) those (B, ...) of the lowest cost."""
    S = len(solution.cost) // B
    return solution.select(_cost(solution).view(B, S).argmin(1) + S * torch.arange(B, device=solution.cost.device))


def _is_zero(starts: Tensor) -> bool:
    """Whether they are what a planner starts from by itself."""
    return len(starts) == 1 and not starts.any()


def _cost(solution: Solution) -> Tensor:
    usable = solution.cost.isfinite() & (solution.status != Status.NONFINITE)
    return torch.where(usable, solution.cost, torch.inf)


def swings(problem: ControlProblem) -> Tensor:
    """Controls (S, T, m) to start from when nothing is known, so that a pendulum finds its way up.

    The first is zero. Where all controls are bounded, there follow rest at either bound and square waves between them. Several
    controls do so alike, then every second one the other way round, without which a body that its controls turn between them
    would never be turned.
    """
    T, m = problem.horizon, problem.control_size
    lower, upper = (bound.detach().to(torch.float64).expand(m) for bound in (problem.u_min, problem.u_max))
    zero = torch.zeros(1, T, m, dtype=torch.float64, device=lower.device)
    if not (lower.isfinite().all() and upper.isfinite().all()):
        return zero
    time = torch.arange(T, device=lower.device) + 0.5
    waves = [torch.ones(T, device=lower.device), -torch.ones(T, device=lower.device)]
    waves += [torch.sin(2 * torch.pi * (time / (period * T) + phase)) for period in _PERIODS for phase in _PHASES]
    together = torch.where(torch.stack(waves).unsqueeze(-1) > 0, upper, lower)
    if m == 1:
        return torch.cat((zero, together))
    opposed = together.clone()
    opposed[..., 1::2] = (lower + upper)[1::2] - together[..., 1::2]
    return torch.cat((zero, together, opposed))


def first_swings(planner: ILQR, starts: int) -> Tensor:
    """The first of the swings (starts, T, m) of a planner's problem; one is zero controls alone.

    Raises:
        ValueError: there are not as many, or several where the gradient is that of iterations from one.
    """
    every = swings(planner.problem)
    expected = f"from 1 to {len(every)}, the number of swings for this problem"
    starts = whole("starts", starts, expected)
    if starts > len(every):
        raise ValueError(f"starts: expected {expected}, got {starts}.")
    if starts > 1 and planner.gradient == "unroll":
        raise ValueError(f'starts: expected 1 with gradient="unroll", whose iterations have one start, got {starts}.')
    return every[:starts]
