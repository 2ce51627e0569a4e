"""Machine code that steps dynamics, and what PyTorch makes of the same, in its place from the first difference on."""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dilqr_rl.consistency import agree, is_rounding
from dilqr_rl.native import build
from dilqr_rl.native.audit import Audit
from dilqr_rl.native.comparison import Function, compare
from dilqr_rl.native.model import Functions, write_model
from dilqr_rl.native.tracing import UntraceableError, fingerprint

__all__ = ["Code", "Stepper", "compile_step"]

_MOST = 64  # kept

_log = logging.getLogger("dilqr_rl")
_compiled: dict[Hashable, Code | None] = {}


@dataclass(frozen=True)
class Code:
    """Machine code.

    Attributes:
        addresses: of its functions.
        sizes: of the room that they take.
        closures: the tensors of closures that they take after those they were made with.
        functions: what it was made of, kept alive: the code is found again by their identity.
    """

    addresses: NDArray[np.int64]
    sizes: NDArray[np.int64]
    closures: tuple[Tensor, ...]
    functions: Functions


def compile_step(
    label: str, functions: Functions, tensors: Sequence[Tensor], outputs: Function, *, closures: bool
) -> Code | None:
    """Machine code for dynamics and, as their stage cost, a reward; None, with a line in the log, where there can be none.

    Args:
        label: a name for people.
        functions: the dynamics and the reward.
        tensors: those that the code is to take as arguments.
        outputs: as in `compare`.
        closures: whether it may take those of closures, too.
    """
    parts = (functions.dynamics, functions.stage_cost)
    key = (*(part and fingerprint(part) for part in parts), functions.state_size, functions.control_size, closures)
    if key not in _compiled:
        while len(_compiled) >= _MOST:
            _compiled.pop(next(iter(_compiled)), None)
        try:
            _compiled[key] = _compile(label, functions, tensors, outputs, closures)
        except Exception as error:  # whatever it is: PyTorch will do, or tell better
            _tell(label, str(error) if isinstance(error, UntraceableError) else f"{type(error).__name__}: {error}")
            _compiled[key] = None
    return _compiled[key]


def _compile(label: str, functions: Functions, tensors: Sequence[Tensor], outputs: Function, closures: bool) -> Code:
    model = write_model(functions, tensors, only=("constants", "advance"))
    if not closures and len(model.values) > len(tensors):
        raise UntraceableError("the dynamics or the reward use a tensor that is none of their parameters or buffers")
    generator = torch.Generator().manual_seed(0)
    sizes = (functions.state_size, functions.control_size)
    compare(model, outputs, *(torch.randn(3, size, generator=generator, dtype=torch.float64) for size in sizes))
    addresses = build.functions(model, f"{label} for stepping")
    build.stepper()
    room = np.array([model.constants_size, model.work_size], np.int64)
    return Code(addresses, room, model.values[len(tensors) :], functions)


class Stepper(ABC):
    """Steps natively, and with PyTorch once that gives something else.

    Args:
        label: a name for people.
        native: whether there is machine code.

    Attributes:
        native: whether it is machine code; else it calls the torch functions.
    """

    def __init__(self, label: str, native: bool) -> None:
        self.native, self._label, self._audit = native, label, Audit()

    def _step(self, *given: Any) -> Any:
        if not self.native:
            return self._plainly(*given)
        began = time.perf_counter()
        found = self._natively(*given)
        if not self._audit.due(time.perf_counter() - began):
            return found
        right = self._audit.look(lambda: self._plainly(*given) if self._is_as_compiled() else found)
        pairs = zip(self._compared(found), self._compared(right), strict=True)
        same = all(agree(torch.from_numpy(one), torch.from_numpy(other)) for one, other in pairs)
        if same or self._is_rounding(found, given):
            return found
        _tell(
            self._label,
            "it gives other results than code that was made from it; has a setting changed since, or does it write into a "
            "tensor in a way that isn't followed?",
        )
        self.native = False
        return right

    def _is_rounding(self, found: Any, given: Sequence[NDArray[np.float64]]) -> bool:
        def plainly(*given: Tensor) -> list[Tensor]:
            return [torch.from_numpy(part) for part in self._compared(self._plainly(*(one.numpy() for one in given)))]

        numbers = [torch.from_numpy(part) for part in self._compared(found)]
        return is_rounding(numbers, plainly, [torch.from_numpy(one) for one in given])

    @abstractmethod
    def _natively(self, *given: Any) -> Any:
        """What comes of a step by machine code."""

    @abstractmethod
    def _plainly(self, *given: Any) -> Any:
        """The same by PyTorch."""

    def _compared(self, result: Any) -> tuple[NDArray[np.float64], ...]:
        """The numbers of a result that must be the same."""
        return (result,)

    def _is_as_compiled(self) -> bool:
        """Whether PyTorch steps with the numbers that machine code has."""
        return True


def _tell(label: str, reason: str) -> None:
    _log.warning("stepping %s with PyTorch, which is slower than native code: %s", label, reason)
