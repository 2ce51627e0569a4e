"""A planner as a function of tensors, for torch.func, forward mode and vmap.

Usually a solution is found first and tied to autograd afterwards (fixed_point.py). Transforms hide the numbers of their
tensors, so here the solve, its pullback and its derivative along directions stand inside autograd Functions, which see plain
tensors. All three have one rule for vmap: what is mapped over makes more problems of the batch, with values of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from dilqr_rl.fixed_point import SECOND_DERIVATIVES, LossGradient, Pullback, refuse_nan
from dilqr_rl.guess import Guess
from dilqr_rl.instance import PER_PROBLEM, SHARED, Instance, named_tensors
from dilqr_rl.modules import call_with
from dilqr_rl.solution import History, Solution
from dilqr_rl.tangent import push_forward

__all__ = ["Call", "is_transformed", "transformed"]

_PARTS = [field.name for field in fields(Solution) if field.name != "history"]
_COLUMNS = [field.name for field in fields(History)]
_Result = TypeVar("_Result")
_DIFFERENTIABLE = 3  # of the parts: states, controls, cost
_CONSTANTS = (
    "Solution: expected a function of states, controls and cost, got one of gains, residual or history, which have no "
    "derivatives. Put .detach() behind what it may take for constant."
)


def is_transformed(tensors: Iterable[Any]) -> bool:
    """Whether a transform of torch.func is at work, or one of these, as far as they are tensors, carries a tangent."""
    if torch._C._are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0 and any(
        isinstance(part, Tensor) and forward_ad.unpack_dual(part).tangent is not None for part in tensors
    )


@dataclass(frozen=True)
class Call:
    """One call of a planner, but for the tensors that transforms are about.

    Attributes:
        instance: the problems; its values of floating-point numbers are handed over beside it.
        solve: finds solutions, without gradients.
        pullback: of solutions.
        exact: whether derivatives are the fixed point's, or DiffMPC's.
    """

    instance: Instance
    solve: Callable[[Instance, Tensor, Guess | None], Solution]
    pullback: Callable[[Instance, Solution], Pullback]
    exact: bool

    def places(self) -> list[int]:
        """Of the values that are handed over."""
        return [place for place, value in enumerate(self.instance.values) if value.is_floating_point()]

    def full(self, given: Sequence[Any], others: Sequence[Any]) -> tuple[Any, ...]:
        """One for each of the instance's values: those given for the values that are handed over, and of all others theirs."""
        by_place = dict(zip(self.places(), given, strict=True))
        return tuple(by_place.get(place, other) for place, other in enumerate(others))

    def bound(self, values: Sequence[Tensor]) -> Instance:
        """The instance with these values."""
        return self.instance.with_values(self.full(values, self.instance.values))

    def leads(self) -> list[int]:
        """How many batch dimensions the values have that are handed over."""
        return [self.instance.leads[place] for place in self.places()]

    def with_leads(self, leads: Sequence[int]) -> Call:
        """The same for values with other batch dimensions."""
        return replace(self, instance=replace(self.instance, leads=self.full(leads, self.instance.leads)))


def transformed(call: Call, x0: Tensor, guess: Guess | None) -> Solution:
    """The solution from x0 (B, n) in float64, differentiable in x0 and in the values as the transforms at work ask for it."""
    values = [call.instance.values[place] for place in call.places()]
    return _solution(_Solve.apply(call, x0, *values, *([] if guess is None else guess.parts())))


def _solution(parts: Sequence[Tensor]) -> Solution:
    own, columns = parts[: len(_PARTS)], parts[len(_PARTS) :]
    return Solution(**dict(zip(_PARTS, own, strict=True)), history=History(*columns) if columns else None)


class _Solve(torch.autograd.Function):
    """(call, x0, values, the guess's parts) -> the parts of a solution, and of its history, if it has one."""

    @staticmethod
    def forward(call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        (x0, *values), parts = _split(call, tensors)
        instance, guess = call.bound(values), Guess(*parts) if parts else None
        found = _with_plain_tensors(instance, lambda: call.solve(instance, x0, guess))
        columns = () if found.history is None else (getattr(found.history, name) for name in _COLUMNS)
        return (*(getattr(found, name) for name in _PARTS), *columns)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        call, *tensors = inputs
        own, guess = _split(call, tensors)
        ctx.call, ctx.guess = call, [None] * len(guess)
        ctx.save_for_backward(*own, *output[: len(_PARTS)])
        ctx.save_for_forward(*own, *output[: len(_PARTS)])
        # A transform would take the other numbers for constants in silence; where there is none, their requires_grad tells.
        noticed = [part.is_floating_point() and is_functorch_wrapped_tensor(part) for part in output[_DIFFERENTIABLE:]]
        pairs = list(zip(output[_DIFFERENTIABLE:], noticed, strict=True))
        ctx.more = [torch.full_like(part, torch.nan) if seen else None for part, seen in pairs]
        ctx.mark_non_differentiable(*(part for part, seen in pairs if not seen))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if not all(part is None or _is_zero(part) for part in gradients[_DIFFERENTIABLE:]):
            raise NotImplementedError(_CONSTANTS)
        needed = ctx.needs_input_grad[1 : len(ctx.needs_input_grad) - len(ctx.guess)]
        parts = zip(gradients, ctx.saved_tensors[-len(_PARTS) :], strict=False)
        loss = [torch.zeros_like(part) if gradient is None else gradient for gradient, part in parts][:_DIFFERENTIABLE]
        found = iter(_PullBack.apply(ctx.call, needed, *ctx.saved_tensors, *loss))
        return None, *(next(found) if need else None for need in needed), *ctx.guess

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        own, _ = _split(ctx.call, ctx.saved_tensors)
        pairs = zip(tangents[1 : 1 + len(own)], own, strict=True)
        along = (torch.zeros_like(of) if tangent is None else tangent for tangent, of in pairs)
        return *_PushForward.apply(ctx.call, *ctx.saved_tensors, *along), *ctx.more

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], call: Call, *tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        mapped = _Mapped(info, dims[1:], call, tensors)
        found = _Solve.apply(mapped.call, *mapped.own, *mapped.others)
        return tuple(map(mapped.parted, found)), (0,) * len(found)


class _Last(torch.autograd.Function):
    """A Function without derivatives of its own."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError(SECOND_DERIVATIVES)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Any:
        raise NotImplementedError(SECOND_DERIVATIVES)


class _PullBack(_Last):
    """(call, needed, x0, values, the solution's parts, a loss's gradient) -> the gradients that are needed."""

    @staticmethod
    def forward(call: Call, needed: tuple[bool, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        (_, *values), others = _split(call, tensors)
        instance, solution = call.bound(values), _solution(others[: len(_PARTS)])
        loss = LossGradient(*others[len(_PARTS) :])
        refuse_nan(solution.status, loss)
        wanted = call.full(needed[1:], [False] * len(instance.values))

        def pull_back() -> tuple[Tensor, list[Tensor | None]]:
            return call.pullback(instance, solution)(instance.values, wanted, loss)

        dx0, dvalues = _with_plain_tensors(instance, pull_back)
        return (*([dx0] if needed[0] else []), *(part for part in dvalues if part is not None))

    @staticmethod
    def vmap(
        info: Any, dims: tuple[Any, ...], call: Call, needed: tuple[bool, ...], *tensors: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        mapped = _Mapped(info, dims[2:], call, tensors, every=True)
        found = map(mapped.parted, _PullBack.apply(mapped.call, needed, *mapped.own, *mapped.others))
        leads = [lead for lead, need in zip((PER_PROBLEM, *call.leads()), needed, strict=True) if need]
        summed = tuple(part.sum(1) if lead == SHARED else part for lead, part in zip(leads, found, strict=True))
        return summed, (0,) * len(summed)


class _PushForward(_Last):
    """(call, x0, values, the solution's parts, changes of x0 and of the values) -> those of states, controls and cost."""

    @staticmethod
    def forward(call: Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        (_, *values), others = _split(call, tensors)
        instance, (dx0, *dvalues) = call.bound(values), others[len(_PARTS) :]
        solution, changes = _solution(others[: len(_PARTS)]), call.full(dvalues, [torch.zeros_like(v) for v in instance.values])
        return _with_plain_tensors(instance, lambda: push_forward(instance, solution, dx0, changes, exact=call.exact))

    @staticmethod
    def vmap(info: Any, dims: tuple[Any, ...], call: Call, *tensors: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        changes = 1 + len(call.places())
        mapped = _Mapped(info, dims[1:-changes], call, tensors[:-changes], every=True)
        along = _Mapped(info, dims[-changes:], call, tensors[-changes:], every=True)
        found = _PushForward.apply(mapped.call, *mapped.own, *mapped.others, *along.own)
        return tuple(map(mapped.parted, found)), (0,) * len(found)


def _split(call: Call, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """x0 and the values; and what follows them."""
    count = 1 + len(call.places())
    return tensors[:count], tensors[count:]


class _Mapped:
    """V times B problems as one batch of V B.

    Args:
        info: what vmap tells; V.
        dims: over which of each tensor's dimensions it maps, or None.
        call: about B problems.
        tensors: x0, the values, and others that have a batch dimension first.
        every: each problem gets values of its own, also where all have the same; else these stay shared.
    """

    def __init__(
        self, info: Any, dims: Sequence[int | None], call: Call, tensors: Sequence[Tensor], every: bool = False
    ) -> None:
        V = info.batch_size
        spread = [t.expand(V, *t.shape) if dim is None else t.movedim(dim, 0) for t, dim in zip(tensors, dims, strict=True)]
        (x0, *values), others = _split(call, spread)
        self._sizes, leads, own = (V, x0.shape[1]), [], []
        for value, lead, dim, given in zip(values, call.leads(), dims[1:], tensors[1:], strict=False):
            shared = lead == SHARED and dim is None and not every
            wide = value.unsqueeze(1).expand(V, x0.shape[1], *value.shape[1:]) if lead == SHARED else value
            own.append(given if shared else wide.flatten(0, 1))
            leads.append(SHARED if shared else max(lead, PER_PROBLEM))
        self.call = call.with_leads(leads)
        self.own, self.others = [x0.flatten(0, 1), *own], [part.flatten(0, 1) for part in others]

    def parted(self, tensor: Tensor) -> Tensor:
        """(V B, ...) as (V, B, ...)."""
        return tensor.unflatten(0, self._sizes)


def _with_plain_tensors(instance: Instance, task: Callable[[], _Result]) -> _Result:
    """The task's result, while the problem holds plain tensors where it held a transform's, as `functional_call` puts them."""
    hidden = [name for name, tensor in named_tensors(instance.problem).items() if is_functorch_wrapped_tensor(tensor)]
    if not hidden:
        return task()
    places = {f"{role}.{name}" if role else name: place for role, pairs in instance.slots.items() for name, place in pairs}
    tensors = {place: instance.values[place][(0,) * instance.leads[place]] for place in {places[name] for name in hidden}}
    plain = {name: tensors[places[name]] for name in hidden}  # one tensor for both names of a tied one
    around = nn.ModuleDict({"problem": instance.problem})
    around.forward = task
    return call_with(around, {f"problem.{name}": value for name, value in plain.items()})


def _is_zero(tensor: Tensor) -> bool:
    """Whether all of it is known to be 0; within a vmap nothing is."""
    try:
        return not tensor.any()
    except RuntimeError:
        return False
