"""What a controller carries from one decision to the next: its plan."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dilqr_rl.agents.discrete import nearest
from dilqr_rl.guess import Guess
from dilqr_rl.problem import ControlProblem
from dilqr_rl.solution import Solution

__all__ = ["PlanState", "State", "last_plans", "like", "middle_control"]

State = tuple[NDArray[Any], ...]
_VERSION = 1


class PlanState(NamedTuple):
    """The state of `predict`, for B environments; an array's first axis is theirs, so that rows can be picked from all alike.

    Attributes:
        version: (B,), of this layout.
        controls: (B, T, m), the plan, moved on by one step, in the model's unit.
        states: (B, T+1, n), of the plan.
        gains: (B, T, m, n), of the plan.
        previous: (B, m), the control that was just applied.
        owed: (B, m), with discrete actions, the sum of what was planned and not applied.
        estimate: (B, 0), room for what an estimator knows.
    """

    version: NDArray[np.int64]
    controls: NDArray[np.float64]
    states: NDArray[np.float64]
    gains: NDArray[np.float64]
    previous: NDArray[np.float64]
    owed: NDArray[np.float64]
    estimate: NDArray[np.float64]

    @classmethod
    def begin(cls, controls: Tensor, state_size: int) -> PlanState:
        """Before the first plan: controls (B, T, m) that nobody has planned, and nothing around them."""
        B, T, m = controls.shape
        states, gains = np.zeros((B, T + 1, state_size)), np.zeros((B, T, m, state_size))
        return cls(np.full(B, _VERSION), _array(controls), states, gains, np.zeros((B, m)), np.zeros((B, m)), np.zeros((B, 0)))

    @classmethod
    def read(cls, state: State, batch_size: int, problem: ControlProblem) -> PlanState:
        """What `predict` was given.

        Raises:
            ValueError: it isn't what the last call returned, for as many environments and this problem.
        """
        T, n, m = problem.horizon, problem.state_size, problem.control_size
        B = batch_size
        shapes = [(B,), (B, T, m), (B, T + 1, n), (B, T, m, n), (B, m), (B, m), (B, 0)]
        try:
            parts = [np.asarray(part) for part in state]
        except (TypeError, ValueError):  # no sequence, or not one of arrays
            parts = []
        came = [part.shape for part in parts]
        if came != shapes or not all(part.dtype.kind in "iuf" for part in parts):
            types = sorted({str(part.dtype) for part in parts})
            raise ValueError(
                f"state: expected what the last predict returned, {len(shapes)} arrays of shapes {shapes}, got {came} of "
                f"{types}. At an episode's start give None."
            )
        if not (parts[0] == _VERSION).all():
            raise ValueError(
                f"state: expected version {_VERSION} of its layout, got {sorted(set(parts[0].tolist()))}. Another release of "
                "dilqr_rl has made it; begin with None."
            )
        return cls(*parts)

    def guess(self, device: torch.device) -> Guess:
        """Where the next plan starts: feedback around the last one."""
        parts = (torch.as_tensor(part, dtype=torch.float64, device=device) for part in (self.controls, self.states, self.gains))
        return Guess(*parts)

    def choose(self, planned: NDArray[np.float64], controls: NDArray[np.float64]) -> tuple[NDArray[np.int64], PlanState]:
        """Of the actions' controls (A, m), those nearest to what is planned (B, m) and still owed; and what is owed then.

        So the applied controls follow the planned ones in the mean, as in sigma-delta modulation.
        """
        wanted = planned + self.owed
        actions = nearest(wanted, controls)
        applied, span = controls[actions], np.ptp(controls, axis=0)
        return actions, self._replace(previous=applied, owed=np.clip(wanted - applied, -span, span))

    def after(self, solution: Solution, usable: NDArray[np.bool_]) -> PlanState:
        """The plans of a solution (B, ...) moved on by one step; where it isn't usable (B,), these instead."""
        new = self._replace(controls=_array(solution.controls), states=_array(solution.states), gains=_array(solution.gains))
        kept = PlanState(*(np.where(like(usable, one), one, other) for one, other in zip(new, self, strict=True)))
        ahead, waiting = _ahead(kept.controls), ~usable
        ahead[waiting, -1] = kept.controls[waiting, -1]  # which may have to be carried out, unlike what a plan begins from
        return kept._replace(controls=ahead, states=_later(kept.states), gains=_ahead(kept.gains), previous=kept.controls[:, 0])


def last_plans(
    state: State | None, episode_start: NDArray[Any] | None, batch_size: int, problem: ControlProblem
) -> tuple[PlanState, NDArray[np.bool_]]:
    """The plans in `predict`'s state, the middle of the bounds where an episode begins, and where (B,) one does.

    Raises:
        ValueError: either is of another batch, or the state of another problem.
    """
    fresh = np.full(batch_size, state is None) if episode_start is None else np.asarray(episode_start, dtype=bool)
    if fresh.shape != (batch_size,):
        raise ValueError(f"episode_start: expected the shape {(batch_size,)}, got {fresh.shape}.")
    begun = PlanState.begin(middle_control(problem).expand(batch_size, problem.horizon, -1), problem.state_size)
    if state is None:
        return begun, np.ones(batch_size, dtype=bool)
    last = PlanState.read(state, batch_size, problem)
    return PlanState(*(np.where(like(fresh, new), new, old) for new, old in zip(begun, last, strict=True))), fresh


def middle_control(problem: ControlProblem) -> Tensor:
    """The middle (m,) of the controls' bounds; next to zero where one is missing."""
    lower, upper = (bound.detach() for bound in (problem.u_min, problem.u_max))
    both = torch.broadcast_to(lower.isfinite() & upper.isfinite(), (problem.control_size,))
    return torch.where(both, 0.5 * (lower + upper), torch.clamp(torch.zeros_like(lower), lower, upper))


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.detach().cpu().numpy(), dtype=np.float64)


def _ahead(plan: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the first step, and a zero at the end."""
    return np.concatenate((plan[:, 1:], np.zeros_like(plan[:, :1])), axis=1)


def _later(states: NDArray[np.float64]) -> NDArray[np.float64]:
    """Without the first state, and the last one twice."""
    return np.concatenate((states[:, 1:], states[:, -1:]), axis=1)


def like(flags: NDArray[np.bool_], other: NDArray[Any]) -> NDArray[np.bool_]:
    """Flags (B,) with as many axes as an array (B, ...)."""
    return flags.reshape(-1, *[1] * (other.ndim - 1))
