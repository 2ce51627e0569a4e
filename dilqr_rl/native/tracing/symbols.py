"""Tensors without data, whose elements are expressions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dilqr_rl.native.codegen.graph import Matrix, Node

UNKNOWN = "unknown"  # the leaf that stands for what has no native form; generated code may not need it


class UntraceableError(Exception):
    """A function that can't be turned into native code; the message names the operation and where it stands."""


@dataclass(frozen=True)
class Dense:
    """In the place of numbers: an array (N, 1) that holds the elements of a tensor of some shape in order."""

    node: Node
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """A matrix of parameters that is not taken apart. Its rows and columns, in this order, may have sizes of 1 around them."""

    matrix: Matrix
    shape: tuple[int, ...]


class Symbol(Tensor):
    """A tensor whose content is an ndarray of nodes, a `Dense` or a `Weights`."""

    content: Any

    @staticmethod
    def __new__(cls, content: Any, dtype: torch.dtype = torch.float64) -> Symbol:
        """Wrap a content."""
        symbol: Symbol = Tensor._make_wrapper_subclass(cls, tuple(content.shape), dtype=dtype)
        symbol.content = content
        return symbol

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        """Its shape: there are no numbers to show."""
        return f"Symbol{tuple(self.shape)}"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Only `Trace` knows what to do."""
        raise UntraceableError(f"{func} of a traced tensor after its function has returned")


def with_symbols(module: nn.Module, symbol: Callable[[Tensor], Symbol]) -> nn.Module:
    """A copy of a module with symbols for its parameters and buffers of numbers; the module itself stays as it is.

    It may be in use by another thread. Everything but the tensors is shared with the copy.
    """
    copies: dict[int, nn.Module] = {}

    def copy(original: nn.Module) -> nn.Module:
        if id(original) not in copies:
            twin = copies[id(original)] = original.__new__(type(original))
            twin.__dict__ = original.__dict__.copy()
            for kind in ("_parameters", "_buffers"):
                held = original.__dict__[kind].items()
                twin.__dict__[kind] = {name: symbol(t) if t is not None and t.is_floating_point() else t for name, t in held}
            children = original.__dict__["_modules"].items()
            twin.__dict__["_modules"] = {name: child and copy(child) for name, child in children}
        return copies[id(original)]

    return copy(module)


def as_array(nodes: Any) -> Any:
    """Nodes as an ndarray of objects, a single one as a 0-d array."""
    if isinstance(nodes, np.ndarray):
        return nodes
    shape = () if isinstance(nodes, Node) else (len(nodes),)
    array: Any = np.empty(shape, dtype=object)
    array[...] = nodes
    return array
