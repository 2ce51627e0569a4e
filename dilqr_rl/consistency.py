"""Whether trajectories are those of a problem's own functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dilqr_rl.instance import Instance
from dilqr_rl.solution import Solution

__all__ = ["ROUGH", "TRIES", "agree", "disagreement", "is_random", "is_rounding", "rounded"]

_NATIVE = 1e-8  # relative and absolute: rounding of float64 leaves less, a function that was misread more
ROUGH = 1e-5  # the same of functions that may compute in float32 inside, whose sums depend on the size of a batch
_EPSILON = torch.finfo(torch.float64).eps
TRIES = 3  # changes by rounding, of which the largest effect counts
_MORE = 16  # times that effect may be rounding, too, since so few tries only estimate it


def agree(found: Tensor, expected: Tensor, tolerance: float = _NATIVE) -> bool:
    """Whether numbers agree, or aren't finite in the same places."""
    return bool(_close(found, expected, tolerance).all())


def _close(found: Tensor, expected: Tensor, tolerance: float) -> Tensor:
    close = torch.isclose(found, expected, rtol=tolerance, atol=tolerance)
    return close | ~(found.isfinite() | expected.isfinite())


def is_rounding(
    found: Sequence[Tensor], function: Callable[..., Sequence[Tensor]], points: Sequence[Tensor], tolerance: float = _NATIVE
) -> bool:
    """Whether numbers that don't agree with a function's differ by no more than what rounding makes there.

    A cart-pole that spins with 1e11 rad/s is one: nobody knows its angle after a step. So the function is asked what becomes of
    changes of its arguments by a few times float64's epsilon. One that gives something else when it is asked again doesn't say.

    Args:
        found: the numbers.
        function: of the points, as many results as `found` has.
        points: arguments, in float64.
        tolerance: relative and absolute, of numbers that agree.
    """
    expected = [result.detach() for result in function(*points)]
    again = function(*points)
    if not all(torch.equal(one.nan_to_num(), other.detach().nan_to_num()) for one, other in zip(expected, again, strict=True)):
        return False
    effects = [torch.zeros_like(one) for one in expected]
    for seed in range(TRIES):
        moved = zip(expected, function(*(rounded(point, seed) for point in points)), strict=True)
        changes = [(after.detach() - before).abs().nan_to_num(nan=torch.inf) for before, after in moved]
        effects = [torch.maximum(*pair) for pair in zip(effects, changes, strict=True)]
    return all(
        bool((_close(one, right, tolerance) | ((one - right).abs() <= _MORE * effect)).all())
        for one, right, effect in zip(found, expected, effects, strict=True)
    )


def rounded(numbers: Tensor, seed: int) -> Tensor:
    """Each number changed by up to eight times its rounding, up or down."""
    generator = torch.Generator().manual_seed(seed)
    shares = 2 * torch.rand(numbers.shape, generator=generator, dtype=torch.float64).to(numbers.device) - 1
    return numbers.detach() * (1 + 8 * _EPSILON * shares)


@torch.no_grad()
def disagreement(instance: Instance, solution: Solution, tolerance: float = _NATIVE) -> str | None:
    """Which of a problem's functions don't lead to a solution, in float64, if there are such: "dynamics" or "costs"."""
    x, u = solution.states, solution.controls
    reached, whole = x[:, :-1].isfinite().all(-1, keepdim=True), x.isfinite().flatten(1).all(1)

    def steps(before: Tensor, u: Tensor) -> list[Tensor]:
        return [torch.where(reached, instance.dynamics(before, u), x[:, 1:])]

    def costs(x: Tensor, u: Tensor) -> list[Tensor]:
        return [torch.where(whole, instance.total_cost(x, u), solution.cost)]

    for role, found, function, states in (("dynamics", x[:, 1:], steps, x[:, :-1]), ("costs", solution.cost, costs, x)):
        if not agree(found, function(states, u)[0], tolerance) and not is_rounding([found], function, (states, u), tolerance):
            return role
    return None


@torch.no_grad()
def is_random(instance: Instance, solution: Solution) -> bool:
    """Whether a problem's functions give other results when they are called again."""
    x, u = solution.states, solution.controls
    first, second = ((instance.dynamics(x[:, :-1], u), instance.total_cost(x, u)) for _ in range(2))
    return not all(agree(one, other) for one, other in zip(first, second, strict=True))
