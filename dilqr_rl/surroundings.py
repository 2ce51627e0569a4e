"""What surrounds a call and is none of the solver's business: hooks on saved tensors, and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd.graph import saved_tensors_hooks

__all__ = ["uncompiled", "undisturbed"]

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def undisturbed() -> AbstractContextManager[object]:
    """Within it, what autograd saves inside the solver goes by any hooks, as `torch.utils.checkpoint` sets them.

    Only the solution belongs to the caller's graph.
    """
    hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    return saved_tensors_hooks(_same, _same) if hooked else nullcontext()


def _same(tensor: Tensor) -> Tensor:
    return tensor


@_disable_dynamo  # torch.compiler.disable would load the compiler, which takes a second, for everybody
def uncompiled(function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
    """The function's result, where `torch.compile` is looking: its graph breaks here, and the function runs as it is."""
    return function(*args, **kwargs)
