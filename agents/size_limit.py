"""How much a file may ask for: what is made by its settings is to take over its tensors, and so can't be much larger."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["SizeLimit"]

_FREE = 10_000_000  # numbers, some 80 MB: starts, copies, and what else isn't kept
_COPIES = 8  # of what is kept: a policy, its target, and what their first weights are drawn with
_BY_NUMBER = ("arange", "eye", "linspace", "randperm")  # operations that are told a size by itself
_EACH = 1000  # numbers that a tensor counts for beside its own: layers of width 1 take memory, too


class SizeLimit(TorchDispatchMode):
    """A context in which torch makes no more numbers than tensors of these sizes can have use for.

    It counts before memory is asked for. torch itself allows no other way: a module's constructor can't be asked for the
    shapes of its parameters, and on the "meta" device it couldn't check its arguments.

    Args:
        tensors: those that are to be taken over.

    Raises:
        ValueError: inside the context, where more is asked for.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._held = sum(tensor.numel() for tensor in tensors.values())
        self._left = _FREE + _COPIES * (self._held + _EACH * len(tensors))

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        asked = max(map(_asked, (*arguments, *(named or {}).values())), default=0)
        if operation.overloadpacket.__name__ in _BY_NUMBER:
            asked = max((abs(int(one)) for one in arguments if isinstance(one, int | float)), default=0)
        if asked > 0:
            self._left -= _EACH + asked
        if self._left < 0:
            raise ValueError(f"its settings ask for far more numbers than the {self._held} that its tensors hold")
        return operation(*arguments, **(named or {}))


def _asked(argument: Any) -> int:
    """How many numbers an argument is the size of: sizes come as lists; what isn't told one is no larger than its operands."""
    if isinstance(argument, list | tuple) and argument and all(isinstance(size, int) for size in argument):
        return math.prod(max(size, 1) for size in argument)
    return 0
