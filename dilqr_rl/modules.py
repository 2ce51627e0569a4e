"""A module's tensors by name, and its results with others in their place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.jit import ScriptModule
from torch.nn.parameter import is_lazy

from dilqr_rl.locks import ONE_AT_A_TIME

__all__ = ["call_with", "doubles_of", "everywhere", "tensors_of"]


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and then buffers, by name.

    A module that stands in two places has its tensors under the first of its names; a tensor that two modules hold is there
    under both.

    Raises:
        ValueError: a lazy module hasn't seen its input yet, so that its parameters have no shape; or one is TorchScript's.
    """
    modules = list(module.named_modules())
    scripted = next((prefix or type(one).__name__ for prefix, one in modules if isinstance(one, ScriptModule)), None)
    if scripted is not None:
        raise ValueError(
            f"{scripted}: expected a module of Python, got one of TorchScript (torch.jit), whose tensors can't be replaced. "
            "Give the module that it was made of, or torch.compile's."
        )
    with ONE_AT_A_TIME:  # not while another thread's call has others in their place
        found = {
            f"{prefix}.{name}" if prefix else name: tensor
            for kind in ("_parameters", "_buffers")
            for prefix, one in modules
            for name, tensor in list(vars(one)[kind].items())
            if tensor is not None
        }
    lazy = next((name for name, tensor in found.items() if is_lazy(tensor)), None)
    if lazy is not None:
        raise ValueError(
            f"{lazy}: expected a parameter with a shape, got one of a lazy module. Call the module once, with a state and a "
            "control, before it goes into a planner."
        )
    return found


def doubles_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of floating point, in float64 and without derivatives, by the names of `tensors_of`."""
    return {name: tensor.detach().double() for name, tensor in tensors_of(module).items() if tensor.is_floating_point()}


def everywhere(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, under all names that the module's own tensors have in `tensors_of`, for those that two modules hold."""
    own = tensors_of(module)
    return {name: value for given, value in tensors.items() for name, tensor in own.items() if tensor is own[given]}


def call_with(module: nn.Module, tensors: Mapping[str, Tensor], *arguments: Any) -> Any:
    """The module's result with other tensors, by the names of `tensors_of`; those that aren't named stay.

    It may write into its arguments, which are copies.

    Torch's own handling of tied weights is off: it takes the parameters out of a module with two names. One thread at a time,
    since the module holds the other tensors for as long as the call takes.
    """
    arguments = tuple(one.clone() if isinstance(one, Tensor) else one for one in arguments)
    if not tensors:
        return module(*arguments)
    with ONE_AT_A_TIME:
        return functional_call(module, dict(tensors), arguments, tie_weights=False)
