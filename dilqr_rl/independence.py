"""Whether the problems of a batch are independent: what a function gives for one must not depend on the others."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dilqr_rl.consistency import ROUGH, agree, is_rounding
from dilqr_rl.instance import SHARED, Instance, own_tensors, usable
from dilqr_rl.solution import Solution

__all__ = ["near", "plain_instance", "refuse_coupled", "refuse_coupled_along"]

_PROBLEMS, _STEPS = 3, 2
_COUNT = _PROBLEMS * _STEPS
_MOST = 8 * _COUNT  # points of a solution that are looked at


def plain_instance(instance: Instance) -> Instance:
    """The problem with its own tensors for values, whatever the batch has been given."""
    values = tuple(usable(t.detach()).to(torch.float64) if t.is_floating_point() else t for t in own_tensors(instance.problem))
    return Instance(instance.problem, values, (SHARED,) * len(values), instance.slots)


def near(given: Tensor, count: int, seed: int) -> Tensor:
    """Points (count, k) near the first and the last of those given (B, k)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, given.shape[-1], generator=generator, dtype=torch.float64).to(given.device)
    return given.detach()[[0] * (count - 1) + [-1]] + 0.1 * noise


def refuse_coupled(instance: Instance, x0: Tensor, u_init: Tensor) -> None:
    """Raise a ValueError where a function mixes the problems of a batch, or their steps.

    Args:
        instance: the problems.
        x0: start states (B, n), near which the functions are called.
        u_init: controls (B, T, m).
    """
    _refuse_coupled_at(plain_instance(instance), near(x0, _COUNT, seed=0), near(u_init[:, 0], _COUNT, seed=1))


def refuse_coupled_along(instance: Instance, solution: Solution) -> None:
    """The same at a solution's own points, the farthest from its starts among them: some functions mix problems only there."""
    x, u = solution.states[:, :-1], solution.controls
    far = torch.where(x.isfinite(), x - x[:, :1], 0.0).square().sum(-1).flatten().argsort(descending=True)
    chosen = far[torch.linspace(0, len(far) - 1, _MOST).long()]
    pairs = zip(x.flatten(0, 1)[chosen].split(_COUNT), u.flatten(0, 1)[chosen].split(_COUNT), strict=True)
    for points in pairs:
        _refuse_coupled_at(plain_instance(instance), *points)


@torch.no_grad()
def _refuse_coupled_at(plain: Instance, x: Tensor, u: Tensor) -> None:
    """Raise where functions give something else for points x (6, n), u (6, m) together than for each alone."""
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "dynamics": plain.dynamics,
        "stage_cost": plain.stage_cost,
        "terminal_cost": lambda x, _: plain.terminal_cost(x.flatten(0, 1)),
    }
    for role, function in functions.items():
        points = (x.view(_PROBLEMS, _STEPS, -1), u.view(_PROBLEMS, _STEPS, -1))
        together = function(*points)
        alone = torch.cat([function(*point).flatten() for point in zip(x[:, None, None], u[:, None, None], strict=True)])
        alone = alone.view_as(together)
        if agree(together, alone, ROUGH) or not agree(together, function(*points), ROUGH):  # which is a random function
            continue
        if not is_rounding([alone], lambda *points, function=function: [function(*points)], points, ROUGH):
            raise ValueError(
                f"{role}: its value for one problem depends on the other problems or steps that it is called with. Reduce over "
                'the last dimension only (.mean(-1) for .mean(), F.mse_loss(..., reduction="none").mean(-1) for F.mse_loss)'
                ", index from the end (x[..., 0] for x[0], x @ A.mT for A @ x) and normalise nothing over the batch."
            )
