"""Which of the parameters that a fit came by are handed back: by what is held out, where that can tell, else by the training.

Two settings of the parameters are compared on the same held-out windows, so their losses are paired. Of the differences d of S
windows the mean counts, and its standard error, clustered by episode since neighbouring windows resemble each other (Cameron &
Miller 2015, eq. 11, for a mean),

    SE^2 = E / (E-1) sum over episodes e of (sum over windows of e of (d - mean d))^2 / S^2.

A setting is worse than another if mean d > SE sqrt(ln E), by its E episodes and likewise by windows, each taken as an episode
of its own, and if mean d is above rounding; or if more windows have no loss, NaN or infinity. There, by Schwarz's criterion
(1978), a mean other than zero explains the differences better than zero does. It asks for 2.3 standard errors of 200 windows,
and for 0.8 of two episodes, which must all but agree; of one window the loss counts as it is.

Of all settings that aren't worse than that of the lowest validation loss, that of the lowest training loss is handed back: as
by the rule of one standard error (Breiman et al. 1984, section 3.4.3), with this threshold and paired differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Choice"]

_ROUNDING = 1e-6  # of the losses: what planners' tolerances and recorded float32 leave of a difference


class _Look:
    """The losses of one setting of the parameters: held out (S,), window by window, and of the training when asked for."""

    def __init__(self, held_out: Tensor, training: Callable[[], float]) -> None:
        self.held_out, self._training = held_out, training

    @property
    def validation_loss(self) -> float:
        return _finite(float(self.held_out.mean()))

    @cached_property
    def training_loss(self) -> float:
        return _finite(self._training())

    @property
    def rank(self) -> tuple[float, float]:
        return self.training_loss, self.validation_loss


@dataclass(frozen=True)
class _Difference:
    """Of one setting's held-out losses less another's: in how many more windows it has none, and the rest of it."""

    broken: int
    mean: float
    largest: float
    chance: float  # up to where the mean tells nothing
    rounding: float

    @property
    def is_change(self) -> bool:
        return self.broken != 0 or self.largest > self.rounding

    @property
    def is_worse(self) -> bool:
        if self.broken:
            return self.broken > 0
        return self.mean > max(self.chance, self.rounding)

    @property
    def is_lower(self) -> bool:
        return (self.broken, self.mean) < (0, 0.0)


class Choice:
    """What a fit hands back if it ends now.

    Args:
        episodes: of what is held out, how many windows each has, in their order.
    """

    def __init__(self, episodes: Sequence[int]) -> None:
        self._episode = torch.arange(len(episodes)).repeat_interleave(torch.as_tensor(episodes))
        self._kept: _Look | None = None
        self._lowest: _Look | None = None
        self._told = self._learnt = False  # whether any look moved the held-out losses, and the training loss

    def look(self, held_out: Tensor, training: Callable[[], float]) -> bool:
        """Whether these parameters are to be handed back rather than those before.

        Args:
            held_out: their losses of the held-out windows (S,).
            training: asked for their training loss, unless what is held out rules them out.
        """
        found = _Look(held_out.detach().double().cpu(), training)
        if self._kept is None or self._lowest is None:
            self._kept = self._lowest = found
            return True
        change = self._difference(found, self._lowest)
        self._told = self._told or change.is_change
        if change.is_worse:
            return False
        self._learnt = self._learnt or _is_apart(found.training_loss, self._kept.training_loss)
        if change.is_lower:
            self._lowest = found
        if not self._difference(self._kept, self._lowest).is_worse and found.rank >= self._kept.rank:
            return False
        self._kept = found
        return True

    @property
    def validation_loss(self) -> float:
        """Of what is handed back; infinite before the first look."""
        return math.inf if self._kept is None else self._kept.validation_loss

    @property
    def training_loss(self) -> float:
        """Of what is handed back; infinite before the first look."""
        return math.inf if self._kept is None else self._kept.training_loss

    @property
    def note(self) -> str:
        """A sentence where no parameters that were tried moved the validation loss; else empty."""
        if self._told or not self._learnt:
            return ""
        return (
            f"the validation loss was {self.validation_loss:.3g} for all parameters that were tried, so it tells none from "
            "another, and those of the lowest training loss are handed back; hold out episodes whose actions depend on what "
            "is learnt"
        )

    def state(self) -> dict[str, Tensor]:
        """What a resumed fit needs to choose as if it had not been cut off."""
        flags = {"flags": torch.tensor([self._told, self._learnt])}
        if self._kept is None or self._lowest is None:
            return flags
        training = torch.tensor([self._kept.training_loss, self._lowest.training_loss], dtype=torch.float64)
        return {**flags, "kept": self._kept.held_out, "lowest": self._lowest.held_out, "training": training}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned."""
        self._told, self._learnt = state["flags"].tolist()
        if "kept" in state:
            kept, lowest = state["training"].tolist()
            self._kept, self._lowest = _Look(state["kept"], lambda: kept), _Look(state["lowest"], lambda: lowest)

    def _difference(self, one: _Look, other: _Look) -> _Difference:
        finite, other_finite = one.held_out.isfinite(), other.held_out.isfinite()
        broken, both = int(other_finite.sum() - finite.sum()), finite & other_finite
        d = (one.held_out - other.held_out)[both]
        sizes = (one.validation_loss, other.validation_loss, other.training_loss)
        rounding = _ROUNDING * max((size for size in sizes if math.isfinite(size)), default=0.0)
        if len(d) == 0:
            return _Difference(broken, 0.0, 0.0, 0.0, rounding)
        rest, alone = d - d.mean(), torch.arange(len(d))
        chance = max(_chance(rest, groups) for groups in (alone, self._episode[both]))
        return _Difference(broken, float(d.mean()), float(d.abs().max()), chance, rounding)


def _is_apart(one: float, other: float) -> bool:
    """Whether two training losses differ by more than rounding."""
    return one != other and not abs(one - other) <= _ROUNDING * max(abs(one), abs(other))


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def _chance(rest: Tensor, groups: Tensor) -> float:
    """SE sqrt(ln E), from differences without their mean (S,), and of which episode each is; 0 of one episode."""
    sums = torch.zeros(int(groups.max()) + 1, dtype=rest.dtype).index_add(0, groups, rest)
    count = len(groups.unique())
    if count == 1:
        return 0.0
    return math.sqrt(math.log(count) * count / (count - 1) * float(sums.square().sum())) / len(rest)
