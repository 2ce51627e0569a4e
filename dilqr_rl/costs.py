"""Ready-made costs for a `ControlProblem`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dilqr_rl.checks import real_tensor, shown
from dilqr_rl.problem import refuse_hidden_gradient

__all__ = ["QuadraticCost"]


class QuadraticCost(nn.Module):
    """Weighted squared distance to a goal: 1/2 sum_i weights_i (tau_i - goal_i)^2 over tau = (x, u).

    Python numbers are kept in float64, whatever torch's default type, so that 0.1 means 0.1; tensors keep theirs, and an
    `nn.Parameter` is kept itself. For weights or a goal that a network writes, use the planner's `params`.

    Args:
        weights: (n+m,), how much each component of (x, u) counts. Learnable.
        goal: (n+m,), where each component should be. Learnable.

    Raises:
        ValueError: `weights` and `goal` are not two vectors of one length, hold NaN or infinity, or are the result of a
            computation that requires a gradient, which would be lost.
    """

    def __init__(self, weights: Tensor | Sequence[float], goal: Tensor | Sequence[float]) -> None:
        super().__init__()
        weights, goal = _vector("weights", weights), _vector("goal", goal)
        if weights.shape != goal.shape:
            raise ValueError(
                f"goal: expected the shape of weights, {tuple(weights.shape)}, got {tuple(goal.shape)}. "
                "Give one goal and one weight for each component of (x, u)."
            )
        self.weights = weights if isinstance(weights, nn.Parameter) else nn.Parameter(weights)
        self.goal = goal if isinstance(goal, nn.Parameter) else nn.Parameter(goal)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The cost of states x (..., n) and controls u (..., m), as (...,)."""
        offset = torch.cat((x, u), dim=-1) - self.goal
        return 0.5 * (self.weights * offset * offset).sum(-1)


def _vector(name: str, values: Tensor | Sequence[float]) -> Tensor:
    expected = "a vector (n+m,) of finite numbers"
    refuse_hidden_gradient(name, values)
    if isinstance(values, nn.Parameter):
        vector: Tensor = values
    elif isinstance(values, Tensor):
        vector = values.detach().clone()
    else:
        vector = real_tensor(name, values, expected)
    if vector.ndim != 1 or not vector.is_floating_point() or not torch.isfinite(vector).all():
        raise ValueError(f"{name}: expected {expected}, got {shown(values)}.")
    return vector
