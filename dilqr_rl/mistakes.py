"""What is likely wrong with a function of a problem that fails, or gives something else than it should: what to say of it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

__all__ = ["check_result", "explained"]

Points = tuple[Tensor, ...]  # x (..., n) and u (..., m), or x alone
Call = Callable[..., Any]  # the function, of points
_ARGUMENTS = {"dynamics": "x (..., n) and u (..., m)", "stage_cost": "x (..., n) and u (..., m)", "terminal_cost": "x (..., n)"}
_OF_SIZES = re.compile(r"size|shape|dimension|broadcast|out of (bounds|range)|mat1")
_BATCH = (
    "It would do for one state (n,), but states come as a batch (B, n), controls as (B, m): write x @ A.mT for A @ x, "
    "x[..., 0] for x[0], .sum(-1) for .sum(), (x * x).sum(-1) for x @ x, torch.stack(parts, -1), and torch.where(mask, a, b) "
    "for an if."
)
_ROWS = (
    "A layer that takes one axis of rows needs them flattened: z.reshape(-1, z.shape[-1]) before it, and "
    ".reshape(*x.shape[:-1], -1) after it."
)
_GRADIENT = (
    "It takes a gradient itself, and the solver mostly calls it under torch.no_grad(): write `with torch.enable_grad():` "
    "around it, and take it by z = x if x.requires_grad else x.clone().requires_grad_()."
)


def explained(role: str, module: nn.Module, call: Call, points: Points, error: Exception) -> ValueError | None:
    """What to tell of an error inside a function; None where it is best told as it is.

    Args:
        role: "dynamics", "stage_cost" or "terminal_cost".
        module: the function.
        call: the same with the values that it was called with.
        points: its arguments.
        error: what it raised.
    """
    text = str(error)
    if "call numpy()" in text or "numpy.ndarray" in text:
        reason = "expected PyTorch operations, along whose derivatives the solver moves, got NumPy's"
        return ValueError(f"{role}: {reason} ({text.rstrip('.')}). {_instead_of_numpy(role)}")
    if isinstance(error, TypeError) and not _takes(module, len(points)):
        return ValueError(_of_another_signature(role, module, error))
    if "when training" in text:
        return ValueError(f"{role}: normalises over its batch, whose problems must not depend on each other; call its .eval().")
    if "dtype" in text or "same type" in text:
        return ValueError(
            f"{role}: mixes float64, in which the solver computes, with another type ({error}). Hold its tensors "
            "as parameters or buffers of an nn.Module, which are converted, or create them with dtype=x.dtype."
        )
    event = points[0].shape[-1:] if role == "dynamics" else ()
    advice = _of_one_state(call, points, event)
    if not advice and isinstance(error, TypeError):
        return None
    if not advice and "not require grad" in text:
        advice = _GRADIENT
    elif not advice and re.search(r"\d-?D\b|running_mean", text):
        advice = _ROWS
    elif not advice and _OF_SIZES.search(text):
        advice = "Do its sizes fit the problem's state_size and control_size?"
    wanted = f"{role}: expected a function of {_ARGUMENTS[role]} with any leading dimensions"
    return ValueError(f"{wanted}, but {_shapes(points)} gave: {text.rstrip('.')}. {advice}".rstrip())


def check_result(role: str, call: Call, points: Points, result: Any, event: tuple[int, ...]) -> None:
    """Raise a ValueError unless a result is a tensor of the points' type and batch shape, and then `event`."""
    expected = (*points[0].shape[:-1], *event)
    if not isinstance(result, Tensor) or result.shape != expected:
        came = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
        advice = _instead_of_numpy(role) if came == "ndarray" else _of_one_state(call, points, event)
        raise ValueError(f"{role}: expected a result of shape {expected} for {_shapes(points)}, got {came}. {advice}".rstrip())
    if result.dtype != points[0].dtype:
        raise ValueError(
            f"{role}: expected a result of {points[0].dtype}, in which the solver computes, got {result.dtype}. Leave "
            "out conversions such as .float(), or convert back with .to(x.dtype)."
        )


def _of_one_state(call: Call, points: Points, event: tuple[int, ...]) -> str:
    """What to write instead where a function does for one state and control and not for several; else nothing."""
    rows = 1 + max(point.shape[-1] for point in points)  # no other size of theirs, as which it could be taken
    one = [point.reshape(-1, point.shape[-1])[0] for point in points]

    def does(*lead: int) -> bool:
        try:
            result = call(*(point.expand(*lead, -1) for point in one))
        except Exception:  # any, of anybody's function
            return False
        return isinstance(result, Tensor) and result.shape == (*lead, *event)

    return _BATCH if does() and not does(rows) else ""


def _instead_of_numpy(role: str) -> str:
    return "Write it with torch" + (", or wrap a step in NumPy as Simulator(step)." if role == "dynamics" else ".")


def _takes(module: nn.Module, count: int) -> bool:
    """Whether a module can be called with so many arguments."""
    function: Any = getattr(module, "function", None) if type(module).__name__ == "_Function" else module.forward
    try:
        inspect.signature(function).bind(*range(count))
    except ValueError:  # of a function of C without one
        return True
    except TypeError:
        return False
    return True


def _of_another_signature(role: str, module: nn.Module, error: TypeError) -> str:
    function: Any = getattr(module, "function", None) if type(module).__name__ == "_Function" else module
    name = getattr(function, "__qualname__", type(function).__name__)
    return (
        f"{role}: expected a function of {_ARGUMENTS[role]}, got {name}: {error}. Write one of these arguments around it; what "
        "else it needs, such as time, goes into the state or into the module."
    )


def _shapes(points: Points) -> str:
    return "arguments " + ", ".join(str(tuple(point.shape)) for point in points)
