"""A learnt value at the end of a plan, which makes a short horizon act like a long one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor, nn

from dilqr_rl.agents.networks import perceptron
from dilqr_rl.tasks import ControlTask

__all__ = ["TerminalValue", "with_terminal_value"]


class TerminalValue(nn.Module):
    """known(x) + network(x): the cost that a plan expects after its end.

    The network has tanh in its hidden layers, so that no state far away has a value without bound. Its last layer starts at
    zero: at first the plan ends as without it.

    Args:
        state_size: n.
        hidden: widths of the hidden layers.
        known: the model's own terminal cost, if any.

    Raises:
        ValueError: a width that isn't a positive integer.
    """

    def __init__(self, state_size: int, hidden: Sequence[int], known: nn.Module | None = None) -> None:
        super().__init__()
        self.known = known
        self.network = perceptron((state_size, *hidden, 1), "tanh", generator=None)
        for parameter in self.network[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """The cost (...,) of the last states x (..., n)."""
        value: Tensor = self.network(x).squeeze(-1)
        return value if self.known is None else value + self.known(x)


def with_terminal_value(task: ControlTask, hidden: Sequence[int] | None) -> ControlTask:
    """The task with a learnable value at the end of its plans, a network of these hidden widths; None: the task as it is."""
    if hidden is None:
        return task
    return replace(task, terminal_cost=TerminalValue(task.state_size, hidden, task.terminal_cost))
