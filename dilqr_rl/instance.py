"""A problem with values for all its tensors: what the solver and the adjoint evaluate, batch first and in float64.

A value is shared by all problems of the batch, or there is one per problem, (B, ...), or one per problem and step, (B, T,
...). The functions see neither: `torch.func.vmap` hands each problem (and step) its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import vmap

from dilqr_rl.mistakes import check_result, explained
from dilqr_rl.modules import call_with, tensors_of
from dilqr_rl.problem import ControlProblem, check_bounds
from dilqr_rl.simulator import Simulator

SHARED, PER_PROBLEM, PER_STEP = 0, 1, 2
Slots = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Instance:
    """A `ControlProblem`, B times, with values in the place of its parameters and buffers.

    Attributes:
        problem: the problem.
        values: the tensors, each once, with `leads` batch dimensions in front.
        leads: SHARED, PER_PROBLEM or PER_STEP for each value.
        slots: for "dynamics", "stage_cost", "terminal_cost" and the problem itself (""), which value stands at which name.
    """

    problem: ControlProblem
    values: tuple[Tensor, ...]
    leads: tuple[int, ...]
    slots: Mapping[str, Slots]

    @property
    def simulator(self) -> Simulator | None:
        """The dynamics, if they aren't torch's."""
        dynamics = self.problem.dynamics
        return dynamics if isinstance(dynamics, Simulator) else None

    def dynamics(self, x: Tensor, u: Tensor) -> Tensor:
        """f at all steps: x (B, T, n), u (B, T, m) -> (B, T, n)."""
        return self._call("dynamics", (x, u), x.shape[-1:])

    def step(self, x: Tensor, u: Tensor, t: int) -> Tensor:
        """f at step t: x (B, n), u (B, m) -> (B, n)."""
        return self._call("dynamics", (x, u), x.shape[-1:], t)

    def stage_cost(self, x: Tensor, u: Tensor) -> Tensor:
        """l at all steps: x (B, T, n), u (B, T, m) -> (B, T)."""
        return self._call("stage_cost", (x, u), ())

    def terminal_cost(self, x: Tensor) -> Tensor:
        """l_T: x (B, n) -> (B,); zero where the problem has none."""
        if self.problem.terminal_cost is None:
            return x.new_zeros(x.shape[:-1])
        return self._call("terminal_cost", (x,), ())

    def total_cost(self, x: Tensor, u: Tensor) -> Tensor:
        """Cost of states x (B, T+1, n) and controls u (B, T, m), as (B,)."""
        return self.stage_cost(x[:, :-1], u).sum(-1) + self.terminal_cost(x[:, -1])

    def bounds(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """u_min and u_max, (B, T, m) each."""
        shape = (batch_size, self.problem.horizon, self.problem.control_size)
        bounds = {}
        for name, index in self.slots[""]:
            value, lead = self.values[index], self.leads[index]
            value = value.unsqueeze(-1) if value.ndim == lead else value  # a scalar bound
            bounds[name] = (value.unsqueeze(1) if lead == PER_PROBLEM else value).expand(shape)
        return bounds["u_min"], bounds["u_max"]

    def select(self, index: Tensor) -> Instance:
        """The instance of some problems of the batch, in the order of `index` (K,)."""
        if all(lead == SHARED for lead in self.leads):
            return self
        values = (v if lead == SHARED else v[index] for v, lead in zip(self.values, self.leads, strict=True))
        return replace(self, values=tuple(values))

    def at_first_step(self) -> Instance:
        """The instance of a horizon of one: values per step are those of the first."""
        pairs = zip(self.values, self.leads, strict=True)
        return replace(self, values=tuple(v[:, :1] if lead == PER_STEP else v for v, lead in pairs))

    def positive_places(self) -> set[int]:
        """The places of the values that must be above zero, as the modules that hold them say."""
        modules = {role: getattr(self.problem, role) for role in self.slots if role}
        return {
            place
            for role, pairs in self.slots.items()
            for name, place in pairs
            if role and name.rpartition(".")[2] in getattr(modules[role].get_submodule(name.rpartition(".")[0]), "positive", ())
        }

    def with_values(self, values: tuple[Tensor, ...]) -> Instance:
        """The same instance with other tensors of the same shapes."""
        return replace(self, values=values)

    def _call(self, role: str, arguments: tuple[Tensor, ...], event: tuple[int, ...], t: int | None = None) -> Tensor:
        """Evaluate one function over (B, ...) arguments; its result must have the arguments' batch shape and then `event`."""
        module = getattr(self.problem, role)
        own: dict[str, Tensor] = {}
        varying: dict[int, dict[str, Tensor]] = {PER_PROBLEM: {}, PER_STEP: {}}
        for name, index in self.slots[role]:
            value, lead = self.values[index], self.leads[index]
            if lead == SHARED:
                own[name] = value
            elif lead == PER_STEP and t is not None:
                varying[PER_PROBLEM][name] = value[:, t]
            else:
                varying[lead][name] = value

        def evaluate(shared: dict[str, Tensor], *points: Tensor) -> Tensor:
            call = partial(call_with, module, shared)
            try:
                result = call(*points)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                # a simulator's errors are clear, or the caller's own
                found = None if isinstance(module, Simulator) else explained(role, module, call, points, error)
                if found is None:
                    raise
                raise found from error
            check_result(role, call, points, result, event)
            return cast(Tensor, result)

        if varying[PER_STEP]:
            steps = varying[PER_STEP]

            def over_steps(values: dict[str, Tensor], step_values: dict[str, Tensor], *points: Tensor) -> Tensor:
                return vmap(lambda s, *p: evaluate({**own, **values, **s}, *p))(step_values, *points)

            return vmap(over_steps)(varying[PER_PROBLEM], steps, *arguments)
        if varying[PER_PROBLEM]:
            return vmap(lambda values, *p: evaluate({**own, **values}, *p))(varying[PER_PROBLEM], *arguments)
        return evaluate(own, *arguments)


def bind(
    problem: ControlProblem,
    x0: Tensor,
    params: Mapping[str, Tensor] | None,
    named: Mapping[str, Tensor] | None = None,
) -> Instance:
    """Put `params`, and else the problem's own tensors, into an `Instance` on x0's device.

    Args:
        problem: the problem.
        x0: (B, n), for its batch size and device.
        params: replacements by qualified name, each with its tensor's own shape, or with (B,) or (B, T) in front.
        named: the problem's own tensors by name, where they are known already.

    Raises:
        ValueError: an unknown name, or another shape. The numbers are for `check_values` to look at.
    """
    if params is not None and not isinstance(params, Mapping):
        raise ValueError(f"params: expected a mapping from names to tensors, got {type(params).__name__}.")
    named = named_tensors(problem) if named is None else named
    replaced = _checked_params(problem, named, x0.shape[0], params or {})
    positions: dict[int, int] = {}
    values: list[Tensor] = []
    leads: list[int] = []
    slots: dict[str, list[tuple[str, int]]] = {"dynamics": [], "stage_cost": [], "terminal_cost": [], "": []}
    for name, tensor in named.items():
        if id(tensor) not in positions:
            positions[id(tensor)] = len(values)
            value = replaced.get(id(tensor), tensor)
            leads.append(value.ndim - tensor.ndim)
            values.append(_moved(value, x0.device))
        role, _, rest = name.partition(".")
        slots[role if rest else ""].append((rest or name, positions[id(tensor)]))
    return Instance(problem, tuple(values), tuple(leads), {role: tuple(pairs) for role, pairs in slots.items()})


def _moved(value: Tensor, device: torch.device) -> Tensor:
    """On the device, and in float64 if it is floating-point. Values that are there already don't wait for torch to find out."""
    value = usable(value) if value.is_floating_point() else value
    if value.dtype == torch.float64 and value.device == device:
        return value
    return value.to(device, torch.float64) if value.is_floating_point() else value.to(device)


def named_values(instance: Instance) -> dict[str, Tensor]:
    """An instance's values as `params`, each under one of its names."""
    places = {place: f"{role}.{name}" if role else name for role, pairs in instance.slots.items() for name, place in pairs}
    return {name: instance.values[place] for place, name in places.items()}


def usable(tensor: Tensor) -> Tensor:
    """A copy of a tensor of inference mode, outside of which it can't be differentiated; any other as it is."""
    return tensor.clone() if isinstance(tensor, Tensor) and tensor.is_inference() else tensor


def own_tensors(problem: ControlProblem) -> list[Tensor]:
    """The problem's parameters and buffers, each once, in the order of an instance's values."""
    return list({id(tensor): tensor for tensor in named_tensors(problem).values()}.values())


def named_tensors(problem: ControlProblem) -> dict[str, Tensor]:
    """The problem's parameters and buffers by name, those of the dynamics and of each cost for itself."""
    own = {name: t for kind in ("_parameters", "_buffers") for name, t in vars(problem)[kind].items() if t is not None}
    roles = {f"{role}.{name}": t for role, module in problem.named_children() for name, t in tensors_of(module).items()}
    return {**own, **roles}


def _checked_params(
    problem: ControlProblem, named: Mapping[str, Tensor], batch_size: int, params: Mapping[str, Any]
) -> dict[int, Tensor]:
    """The replacements by the identity of what they replace, so that a tensor under two names is replaced under both."""
    replaced: dict[int, Tensor] = {}
    for name, value in params.items():
        if name not in named:
            raise ValueError(f"params[{name!r}]: the problem has no parameter or buffer of this name; it has {sorted(named)}.")
        own = named[name]
        if not isinstance(value, Tensor | float | int) or (isinstance(value, Tensor) and value.is_complex()):
            came = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"params[{name!r}]: expected a tensor of real numbers, got {came}.")
        value = torch.as_tensor(value, dtype=None if isinstance(value, Tensor) else own.dtype)
        if own.is_floating_point() and not value.is_floating_point():
            value = value.to(own.dtype)
        leads = ((), (batch_size,), (batch_size, problem.horizon))
        accepted = [lead + tuple(own.shape) for lead in leads]
        if tuple(value.shape) not in accepted:
            raise ValueError(
                f"params[{name!r}]: expected one of the shapes {', '.join(map(str, accepted))} (shared, per problem, per "
                f"problem and step), got {tuple(value.shape)}."
            )
        names = [other for other, tensor in named.items() if tensor is own]
        if any(other.startswith("terminal_cost.") for other in names) and value.ndim == own.ndim + PER_STEP:
            raise ValueError(f"params[{name!r}]: the terminal cost has no steps; give one value, or one per problem.")
        if id(own) in replaced:
            raise ValueError(f"params[{name!r}]: {names} are one and the same tensor; give it under one of these names.")
        replaced[id(own)] = value
    return replaced


def check_values(instance: Instance) -> None:
    """Refuse values that no solver can use.

    Raises:
        ValueError: NaN or infinity, a value that must be positive and isn't, or bounds reversed.
    """
    positive = instance.positive_places()
    for role, pairs in instance.slots.items():
        for name, index in pairs:
            full = f"{role}.{name}" if role else name
            value = instance.values[index]
            if role and not torch.isfinite(value).all():
                raise ValueError(f"{full}: expected finite numbers, got {_first(value, ~torch.isfinite(value))}.")
            if index in positive and role and not (value > 0).all():
                raise ValueError(
                    f"{full}: expected a number above 0, got {_first(value, ~(value > 0))}. To learn it, keep it positive: "
                    "learn its logarithm and pass the exponential through params, or use torch.nn.utils.parametrize."
                )
    check_bounds(*(_aligned(instance, name) for name in ("u_min", "u_max")))


def _aligned(instance: Instance, name: str) -> Tensor:
    """A bound as (B or 1, T or 1, m or 1), for comparison."""
    index = dict(instance.slots[""])[name]
    value, lead = instance.values[index], instance.leads[index]
    value = value.unsqueeze(-1) if value.ndim == lead else value
    return value.reshape((1,) * (3 - value.ndim) + value.shape) if lead != PER_PROBLEM else value.unsqueeze(1)


def _first(value: Tensor, wrong: Tensor) -> float:
    return float(value.detach()[wrong].reshape(-1)[0])
