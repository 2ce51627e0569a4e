"""Which directions of the learnt parameters the demonstrations determine: why "mass 1.3" may be as good as "mass 1".

The Jacobian J of what a fit compares (planned controls, or predicted states) tells how much each change of the parameters
shows in the demonstrations. Changes are relative, dp/p, for numbers that aren't zero by nature (masses, weights), else absolute
(a goal). With J = U S V^T, a direction of V whose singular value is (nearly) zero shows nowhere: along it the data determine
nothing, and a fit ends wherever it began. The others have the standard error sigma / s, with sigma the error that the fit
leaves (the sensitivity criterion of local identifiability; Bellman and Astrom 1970).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dilqr_rl.agents.demonstrations import Demonstrations
from dilqr_rl.agents.learnable import Positive, Scaled, Share
from dilqr_rl.agents.learners.planning import PlanningLearner
from dilqr_rl.agents.learners.segments import cut

__all__ = ["Combination", "Identifiability", "identifiability"]

Floats = NDArray[np.float64]

_SHOWS_NOWHERE = 1e-6  # singular value beside the largest: what is below shows in no digit that a fit could use
_ROUNDING = 1e-7  # error of the numbers compared, beside their size, where a fit leaves none
_ALONE = 0.05  # share of an undetermined direction from which on a parameter isn't determined alone
_MOST_EXPONENT, _MOST_FACTORS = 2, 3
_SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Combination:
    """A product of powers of parameters that the data determine, although not each of them.

    Attributes:
        label: such as "mass · length²".
        exponents: by the parameters' names.
    """

    label: str
    exponents: Mapping[str, int]

    def value(self, values: Mapping[str, float]) -> float:
        """Its value for parameters by name."""
        return math.prod(values[name] ** power for name, power in self.exponents.items())


@dataclass(frozen=True)
class Identifiability:
    """What demonstrations say about P learnt numbers.

    Attributes:
        names: of each number, such as "dynamics.mass" or "stage_cost.weights[2]".
        relative: (P,) bool, whether changes of it are relative to its size.
        singular_values: (P,), largest first: how much a change of 1 in its direction shows, root mean square, in the unit of
            what is compared.
        directions: (P, P), a unit vector of changes in each row.
        errors: (P,), standard error along each direction; infinite where it shows nowhere. They take what the fit leaves for
            noise.
        unexplained: root mean square of what the fit leaves, beside that of what it compares.
    """

    names: tuple[str, ...]
    relative: NDArray[np.bool_]
    singular_values: Floats
    directions: Floats
    errors: Floats
    unexplained: float = 0.0

    @property
    def undetermined(self) -> Floats:
        """(K, P), the directions along which the data say nothing."""
        return self.directions[np.isinf(self.errors)]

    def determined_alone(self) -> dict[str, bool]:
        """Whether the data say something about each number by itself."""
        share = np.linalg.norm(self.undetermined, axis=0) if len(self.undetermined) else np.zeros(len(self.names))
        return dict(zip(self.names, (share < _ALONE).tolist(), strict=True))

    def standard_errors(self) -> dict[str, float]:
        """Of each number that the data say something about alone, relative where its changes are."""
        known = np.isfinite(self.errors)
        variances = ((self.directions[known] * self.errors[known, None]) ** 2).sum(0)
        alone = self.determined_alone()
        return {name: math.sqrt(v) for name, v in zip(self.names, variances.tolist(), strict=True) if alone[name]}

    def combinations(self) -> list[Combination]:
        """Products of small powers that are determined although their factors aren't: as many independent ones as are found."""
        hidden = self.undetermined[:, self.relative]
        names = [name for name, relative in zip(self.names, self.relative, strict=True) if relative]
        loose = [i for i in range(len(names)) if len(hidden) and np.linalg.norm(hidden[:, i]) >= _ALONE]
        found: list[NDArray[np.int64]] = []
        for exponents in _small_exponents(len(names), loose):
            aligned = np.abs(hidden @ exponents).max() < 1e-2 * np.linalg.norm(exponents)
            if aligned and np.linalg.matrix_rank(np.array([*found, exponents])) > len(found):
                found.append(exponents)
        return [_combination(names, exponents) for exponents in found]


def identifiability(learner: PlanningLearner, data: Demonstrations) -> Identifiability:
    """What demonstrations say about the learnt parameters, at the values that the learner has now.

    Args:
        learner: one with a model: its parameters are few.
        data: the demonstrations that it was fitted to.

    Raises:
        ValueError: the learner has no parameters that mean something, as a network has none.
        DemonstrationsError: the demonstrations don't fit the learner.
    """
    if not isinstance(learner, PlanningLearner) or not learner.readable_parameters():
        raise ValueError(f"learner: expected one with a model, whose parameters mean something, got {learner.name!r}.")
    segments = cut(learner.task, data, learner.segment_length(data), learner.device)
    residuals, jacobian = learner.sensitivities(segments)
    names, slopes, relative = _changes(learner)
    scaled = (jacobian * slopes).detach().cpu().numpy() / math.sqrt(len(residuals))
    _, shown, directions = np.linalg.svd(scaled)
    found = np.zeros(len(directions))  # fewer residuals than parameters leave the rest at zero
    found[: len(shown)] = shown
    size = float(learner.demonstrated(segments).square().mean().sqrt())
    left = float(residuals.square().mean().sqrt())
    sigma = max(left, _ROUNDING * size) / math.sqrt(len(residuals))
    shows = found > _SHOWS_NOWHERE * max(float(found[0]), np.finfo(float).tiny)
    errors = np.where(shows, sigma / np.where(shows, found, 1.0), np.inf)
    return Identifiability(tuple(names), relative, found, directions, errors, left / size if size > 0 else 0.0)


def _changes(learner: PlanningLearner) -> tuple[list[str], Tensor, NDArray[np.bool_]]:
    """Each number's name, how much its raw form changes for a (relative) change of 1, and whether it is relative."""
    names: list[str] = []
    slopes, relative = [], []
    values = learner.readable_parameters()
    for (name, raw), value in zip(learner.learnt_parameters().items(), values.values(), strict=True):
        map_ = learner.problem.get_submodule(name.removesuffix(".original"))[0] if name.endswith(".original") else None  # type: ignore[index]
        plain = next(key for key in values if values[key] is value)
        names += [plain] if value.ndim == 0 else [f"{plain}[{i}]" for i in range(value.numel())]
        is_relative = isinstance(map_, (Positive, Share)) or (isinstance(map_, Scaled) and bool(value != 0))
        change = value if is_relative else torch.ones_like(value)
        slopes.append((change / _derivative(map_, raw)).reshape(-1).double())
        relative += [is_relative] * value.numel()
    return names, torch.cat(slopes), np.array(relative)


def _derivative(map_: torch.nn.Module | None, raw: Tensor) -> Tensor:
    """d value / d raw, elementwise."""
    if map_ is None:
        return torch.ones_like(raw).detach()
    leaf = raw.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(map_(leaf).sum(), leaf)
    return found


def _small_exponents(count: int, loose: list[int]) -> list[NDArray[np.int64]]:
    """Vectors (count,) of few small integers at the loose places, the simplest first, without multiples."""
    powers = [power for power in range(-_MOST_EXPONENT, _MOST_EXPONENT + 1) if power]
    found = []
    for size in range(2, min(_MOST_FACTORS, len(loose)) + 1):
        for places in itertools.combinations(loose, size):
            for chosen in itertools.product(powers, repeat=size):
                if chosen[-1] > 0 and math.gcd(*chosen) == 1:
                    vector = np.zeros(count, dtype=np.int64)
                    vector[list(places)] = chosen
                    found.append(vector)
    return sorted(found, key=lambda vector: (np.count_nonzero(vector), np.abs(vector).sum(), -vector.sum()))


def _combination(names: list[str], exponents: NDArray[np.int64]) -> Combination:
    powers = {name: int(power) for name, power in zip(names, exponents, strict=True) if power}
    above = [_power(name, power) for name, power in powers.items() if power > 0]
    below = [_power(name, -power) for name, power in powers.items() if power < 0]
    denominator = f" / {' / '.join(below)}" if below else ""
    return Combination(" · ".join(above) + denominator, powers)


def _power(name: str, power: int) -> str:
    short = name.rpartition(".")[2]
    return short if power == 1 else short + str(power).translate(_SUPERSCRIPTS)
