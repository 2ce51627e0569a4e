"""Rewards that several systems share."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["SurvivalReward"]


class SurvivalReward(nn.Module):
    """exp(-cost), in (0, 1]: every further step adds to the return, so that ending an episode early is never worth it.

    Args:
        cost: (x, u) -> cost (...,), at least 0.
    """

    def __init__(self, cost: nn.Module) -> None:
        super().__init__()
        self.cost = cost

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        """The reward (...,) of states x (..., n) and controls u (..., m)."""
        reward: Tensor = (-self.cost(x, u)).exp()
        return reward
