"""Tensors with derivatives that a problem's functions use and the problem doesn't hold: their gradient would be lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_dynamic_layer_stack_depth, is_functorch_wrapped_tensor, maybe_get_level
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from dilqr_rl.instance import SHARED, Instance

__all__ = ["refuse_hidden_tensors"]


def refuse_hidden_tensors(instance: Instance, x0: Tensor, controls: Tensor, lowered: bool = False) -> None:
    """Raise a ValueError where a function depends on a tensor with derivatives that isn't the instance's.

    Args:
        instance: the problems.
        x0: start states (B, n).
        controls: (B, T, m).
        lowered: whether a transform of torch.func around this has been lowered, so that it can't be told from one inside a
            function; such a function is refused, too.
    """
    values = tuple(v.detach()[(0,) * lead] for v, lead in zip(instance.values, instance.leads, strict=True))
    plain = replace(instance, values=values, leads=(SHARED,) * len(values))
    x, u = x0[:1].detach(), controls[:1, 0].detach()
    functions = {
        "dynamics": lambda: plain.step(x, u, 0),
        "stage_cost": lambda: plain.at_first_step().stage_cost(x.unsqueeze(1), u.unsqueeze(1)),
        "terminal_cost": lambda: plain.terminal_cost(x),
    }
    for name, function in functions.items():
        if _is_hidden(function, lowered):
            raise ValueError(
                f"{name}: depends on a tensor that requires a gradient but is no parameter or buffer of the problem, so its "
                "gradient would be lost. Make the function an nn.Module that holds it, pass it through params, or detach it."
            )


def _is_hidden(function: Callable[[], Tensor], lowered: bool) -> bool:
    """Whether a function's result has derivatives by a tensor that was there before: one of a transform, or a leaf met twice.

    A function may make leaves of its own, as for `torch.autograd.grad` inside of it; these are others at each call. So it may
    have transforms of its own, whose tensors are those of a level above all that were there before.
    """
    with torch.enable_grad(), _Transformed(lowered) as hidden:
        try:
            first = function()
        except ValueError:
            if not hidden.found:
                raise
            return True
    if hidden.found or not first.requires_grad:
        return hidden.found
    with torch.enable_grad():
        again = function()
    return not _leaves(first).isdisjoint(_leaves(again)) if again.requires_grad else False


def _leaves(result: Tensor) -> set[int]:
    """The tensors, by identity, that a result has derivatives by; the result's graph keeps them alive."""
    found, seen, waiting = set(), set(), [result.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found |= {id(node.variable)} if hasattr(node, "variable") else set()
            waiting += [after for after, _ in node.next_functions]
    return found


class _Transformed(TorchFunctionMode):
    """Notices tensors of a transform of torch.func around this: once it has been lowered, their results know nothing of it."""

    def __init__(self, lowered: bool) -> None:
        super().__init__()
        self.found, self._lowered, self._depth = False, lowered, get_dynamic_layer_stack_depth()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        parts = tree_leaves((args, kwargs))
        self.found |= any(isinstance(part, Tensor) and self._is_from_around(part) for part in parts)
        return func(*args, **(kwargs or {}))

    def _is_from_around(self, tensor: Tensor) -> bool:
        if not is_functorch_wrapped_tensor(tensor):
            return False
        return self._lowered or 0 < maybe_get_level(tensor) <= self._depth  # a level below 0 is of a transform that has ended
