"""Which parts of a control problem are learnt, and how: positive where they must be, in steps relative to where they start."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dilqr_rl.checks import number
from dilqr_rl.problem import ControlProblem

__all__ = [
    "LEARNABLE",
    "by_default",
    "copy_values",
    "freeze",
    "frozen_in",
    "learnt_physics",
    "make_learnable",
    "own_parameters",
    "parameter_values",
    "set_physics",
    "thaw",
]

LEARNABLE = {"physics": "dynamics.", "weights": "stage_cost.weights", "goal": "stage_cost.goal", "terminal": "terminal_cost."}


_HINTS = {
    "terminal": " Give the plans a learnt end with terminal_value=(32, 32), or the task a terminal_cost.",
    "physics": " For control alone, where nothing of the model is learnt, say learn=(); else make its numbers nn.Parameters.",
}
_FROZEN = "frozen_parameters"  # an attribute of a module: names of parameters that are buffers now


class Positive(nn.Module):
    """value = exp(raw): above zero whatever an optimiser does, and a step of raw is a relative step of the value."""

    def forward(self, raw: Tensor) -> Tensor:
        """The value of a raw tensor of any shape."""
        return raw.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        """The raw tensor of a value above zero."""
        return value.log()


class Scaled(nn.Module):
    """value = scale * raw, so that a step of raw is relative to the size of the value it started from."""

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.scale: Tensor
        self.register_buffer("scale", torch.where(scale == 0, 1.0, scale.abs()))

    def forward(self, raw: Tensor) -> Tensor:
        """The value of a raw tensor."""
        return self.scale * raw

    def right_inverse(self, value: Tensor) -> Tensor:
        """The raw tensor of a value."""
        return value / self.scale


class Share(nn.Module):
    """value = sigmoid(raw): between 0 and 1."""

    def forward(self, raw: Tensor) -> Tensor:
        """The value of a raw tensor of any shape."""
        return raw.sigmoid()

    def right_inverse(self, value: Tensor) -> Tensor:
        """The raw tensor of a value between 0 and 1."""
        return value.logit()


def set_physics(dynamics: nn.Module, physics: Mapping[str, float]) -> None:
    """Overwrite parameters of a dynamics module by name.

    Raises:
        ValueError: an unknown name, or a value that must be positive and isn't.
    """
    if not isinstance(physics, Mapping):
        raise ValueError(f'physics: expected a dict such as {{"mass": 2.0}}, got {physics!r}.')
    named = dict(dynamics.named_parameters())
    for name, value in physics.items():
        if name not in named:
            raise ValueError(f"physics: {name!r} is no parameter of this model; it has {sorted(named)}.")
        owner, _, leaf = name.rpartition(".")
        positive = leaf in getattr(dynamics.get_submodule(owner), "positive", ())
        expected = f"{'a number above 0' if positive else 'a finite number'} for {name!r}"
        fits = _is_positive if positive else math.isfinite
        with torch.no_grad():
            named[name].fill_(number("physics", value, expected, fits))


def _is_positive(value: float) -> bool:
    return 0 < value < math.inf


def make_learnable(problem: ControlProblem, learn: Sequence[str], *, bounded_weights: bool = False) -> None:
    """Freeze a problem but for what is to be learnt.

    Args:
        problem: changed in place.
        learn: keys of `LEARNABLE`, or parameters by their qualified name, such as "dynamics.mass". "physics" leaves out
            numbers that are zero, such as a friction that the model doesn't have; name them to learn them.
        bounded_weights: keep the cost's weights below 1, too.

    Raises:
        ValueError: a name that the problem doesn't have, or a cost weight of zero among those to be learnt (it could never
            move).
    """
    if isinstance(learn, str):
        raise ValueError(f"learn: expected a sequence of names, got the string {learn!r}. Write ({learn!r},).")
    named = dict(problem.named_parameters())
    chosen: set[str] = set()
    for name in learn:
        prefix = LEARNABLE.get(name, name)
        found = {own for own in named if (own.startswith(prefix) if prefix.endswith(".") else own == prefix)}
        if not found:
            raise ValueError(f"learn: the problem has nothing called {name!r}; it has {_groups(named)}.{_HINTS.get(name, '')}")
        chosen |= {own for own in found if not (name == "physics" and named[own].ndim == 0 and named[own] == 0)}
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
        if name in chosen:
            _reparametrise(problem, name, parameter, bounded_weights)


def by_default(problem: ControlProblem) -> tuple[str, ...]:
    """What is learnt unless a person says otherwise: the physics, of a model that has any."""
    return ("physics",) if any(name.startswith(LEARNABLE["physics"]) for name, _ in problem.named_parameters()) else ()


def freeze(module: nn.Module) -> None:
    """Make buffers of the parameters that don't require a gradient, for algorithms that differentiate by every parameter."""
    made: dict[int, Tensor] = {}  # one buffer for a parameter that stands in two places
    for owner in list(module.modules()):
        for leaf, parameter in [(name, one) for name, one in owner._parameters.items() if one is not None]:
            if not parameter.requires_grad:
                _put(owner, leaf, made.setdefault(id(parameter), parameter.detach()))
                vars(owner).setdefault(_FROZEN, []).append(leaf)


def thaw(module: nn.Module) -> bool:
    """Make parameters again of what `freeze` made buffers of; returns whether there was anything."""
    frozen = [owner for owner in module.modules() if vars(owner).get(_FROZEN)]
    for owner in frozen:
        for leaf in vars(owner).pop(_FROZEN):
            _put(owner, leaf, nn.Parameter(getattr(owner, leaf), requires_grad=False))
    return bool(frozen)


def frozen_in(owner: nn.Module) -> tuple[str, ...]:
    """The names of a module's own parameters that `freeze` has made buffers of."""
    return tuple(vars(owner).get(_FROZEN, ()))


def own_parameters(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters by name, those that are frozen included."""
    frozen = {
        f"{prefix}.{leaf}" if prefix else leaf: getattr(owner, leaf)
        for prefix, owner in module.named_modules()
        for leaf in frozen_in(owner)
    }
    return {**dict(module.named_parameters()), **frozen}


def _put(owner: nn.Module, leaf: str, tensor: Tensor) -> None:
    """A tensor in the place of a module's parameter or buffer, as what it is."""
    delattr(owner, leaf)
    if not isinstance(tensor, nn.Parameter):
        owner.register_buffer(leaf, tensor)
    setattr(owner, leaf, tensor)  # recurrent layers listen to this


def learnt_physics(problem: ControlProblem) -> dict[str, float]:
    """The dynamics' learnt scalars as they stand, by the name of their parameter, such as "mass"."""
    found = {}
    for name, raw in problem.named_parameters():
        if raw.requires_grad and raw.ndim == 0 and name.startswith("dynamics."):
            path = name.removesuffix(".original").replace("parametrizations.", "")
            owner, _, leaf = path.rpartition(".")
            found[path.removeprefix("dynamics.")] = float(getattr(problem.get_submodule(owner), leaf).detach())
    return found


def parameter_values(problem: ControlProblem) -> dict[str, Tensor]:
    """The values of the problem's parameters by name, as a person thinks of them: mass, not its logarithm."""
    values = {}
    for prefix, module in problem.named_modules():
        if ".parametrizations" in f".{prefix}":
            continue
        names = [*(name for name, _ in module.named_parameters(recurse=False)), *frozen_in(module)]
        if parametrize.is_parametrized(module):
            names += list(module.parametrizations)
        values.update({f"{prefix}.{name}" if prefix else name: getattr(module, name).detach().clone() for name in names})
    return values


@torch.no_grad()
def copy_values(source: ControlProblem, target: ControlProblem) -> None:
    """Give a problem the values of another's parameters, however either is parametrised.

    Raises:
        ValueError: their parameters have other names.
    """
    values, expected = parameter_values(source), parameter_values(target).keys()
    if values.keys() != expected:
        raise ValueError(f"source: expected a problem with the parameters {sorted(expected)}, got {sorted(values)}.")
    for name, value in values.items():
        owner_name, _, leaf = name.rpartition(".")
        owner = target.get_submodule(owner_name)
        if parametrize.is_parametrized(owner, leaf):
            setattr(owner, leaf, value)
        else:
            getattr(owner, leaf).copy_(value)


def _groups(names: Iterable[str]) -> list[str]:
    """The names, after those of LEARNABLE that stand for some of them."""
    names = list(names)
    return [group for group, prefix in LEARNABLE.items() if any(name.startswith(prefix) for name in names)] + names


def _reparametrise(problem: ControlProblem, name: str, parameter: Tensor, bounded_weights: bool) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = problem.get_submodule(owner_name)
    bounded = bounded_weights and name == LEARNABLE["weights"]
    if bounded and not (parameter < 1).all():
        raise ValueError(f"learn: {name} is kept below 1 while it is learnt, so it can't start at {parameter.max().item():g}.")
    if leaf in getattr(owner, "positive", ()) or name == LEARNABLE["weights"]:
        if not (parameter > 0).all():
            raise ValueError(
                f"learn: {name} is kept positive while it is learnt, so it can't start at {parameter.min().item():g}."
            )
        parametrize.register_parametrization(owner, leaf, Share() if bounded else Positive())
    elif owner is problem.dynamics and parameter.ndim == 0:
        parametrize.register_parametrization(owner, leaf, Scaled(parameter.detach()))
