"""Levenberg-Marquardt: for a handful of parameters, some ten steps in the place of thousands of small ones.

With residuals r, their exact Jacobian J and a damping weight w, a step s solves (Marquardt 1963)

    (J^T J + w diag(J^T J)) s = -J^T r.

It is taken if it lowers the mean square of r, and w falls; else w rises and a shorter step is tried. Planned controls that sit
on their bounds have rows of zeros in J: they say nothing about the parameters, and hold no step back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dilqr_rl.agents.learners.options import FitOptions
from dilqr_rl.agents.learners.segments import Segments

if TYPE_CHECKING:
    from dilqr_rl.agents.learners.base import Learner

__all__ = ["LevenbergMarquardt"]

_FLAT = 1e-10  # of the largest diagonal of J^T J: directions flatter than this are damped as if they had that much
_LEAST_WEIGHT = 1e-9  # of the damping, so that the system stays regular
_PATIENCE, _LEAST_DECREASE = 10, 0.1  # an attempt ends when that many steps together lower the loss by less than this share
_SOLVED = 1e-8  # mean square of the residuals, beside that of the controls, below which no other start is tried
_EXACT = 1e-24  # the same, below which it is all rounding
_STOPS = ("", "no step lowers the loss", "diverged", "reproduced")


class LevenbergMarquardt:
    """One step per epoch, over all segments at once; attempts from other starts follow one that ends too high."""

    def __init__(self, learner: Learner, segments: Segments, options: FitOptions) -> None:
        self.learner, self.segments, self.options, self.stopped = learner, segments, options, ""
        self._scale = float(segments.controls.square().mean())
        self._attempt, self._weight = 0, options.damping.start
        self._losses: list[float] = []
        self._start = self._position()

    def run_epoch(self, epoch: int) -> float:
        """One step; the training loss after it."""
        self.learner.set_attempt(self._attempt)
        if not self._losses and self._attempt > 0:
            self._begin_again()
        loss, moved = self._one_step()
        self._losses = [*self._losses, loss][-_PATIENCE:]
        if not moved or loss <= _EXACT * self._scale or self._crawls():
            self._end_attempt(loss)
        return loss

    def why(self, training_loss: float, validation_loss: float) -> str:
        """`stopped`; but "reproduced" of nothing else than parameters that reproduce, what is held out, too."""
        if self.stopped != "reproduced" or max(training_loss, validation_loss) <= _SOLVED * self._scale:
            return self.stopped
        if training_loss <= _SOLVED * self._scale:
            return "only the training demonstrations are reproduced"
        return "what reproduces the training demonstrations does worse on those held out"

    def state(self) -> dict[str, Tensor]:
        """Where it stands: the attempt, its damping weight and last losses, and where the fit began."""
        numbers = torch.tensor([_STOPS.index(self.stopped), self._attempt, self._weight, *self._losses], dtype=torch.float64)
        return {"numbers": numbers, "start": self._start}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` returned."""
        if state["start"].shape != self._start.shape:
            raise ValueError(f"start: expected the shape {tuple(self._start.shape)}, got {tuple(state['start'].shape)}")
        stopped, attempt, self._weight, *self._losses = state["numbers"].tolist()
        self.stopped, self._attempt, self._start = _STOPS[int(stopped)], int(attempt), state["start"]

    def _one_step(self) -> tuple[float, bool]:
        """The loss after the step, and whether any step lowered it."""
        residuals, jacobian = self.learner.sensitivities(self.segments)
        before = _mean_square(residuals)
        curvature, slope = jacobian.T @ jacobian, jacobian.T @ residuals
        position = self._position()
        for _ in range(self.options.damping.attempts if 0 < float(slope.abs().max()) < math.inf else 0):
            loss = self._loss_at(position + self._step(curvature, slope))
            if loss < before:
                self._weight = max(self._weight / self.options.damping.factor, _LEAST_WEIGHT)
                return loss, True
            self._weight *= self.options.damping.factor
        self._move_to(position)
        return before, False

    def _crawls(self) -> bool:
        return len(self._losses) == _PATIENCE and self._losses[-1] > (1 - _LEAST_DECREASE) * self._losses[0]

    def _end_attempt(self, loss: float) -> None:
        if loss <= _SOLVED * self._scale and self._is_reproduced():
            self.stopped = "reproduced"
            return
        if self._attempt == self.options.restarts:
            self.stopped = "no step lowers the loss" if math.isfinite(loss) else "diverged"
            return
        self._attempt, self._weight, self._losses = self._attempt + 1, self.options.damping.start, []

    def _is_reproduced(self) -> bool:
        """Whether by plans that begin as they do once the fit is over, not only from the demonstrated controls."""
        return self.learner.mean_over(self.segments) <= _SOLVED * self._scale

    def _begin_again(self) -> None:
        """Where the fit began, or wherever else the learner has its next attempt begin."""
        self._move_to(self._start)
        self.learner.restart(self._attempt, self.segments, self.options)

    def _loss_at(self, position: Tensor) -> float:
        """The learner is moved there; infinite where its parameters or residuals aren't finite."""
        self._move_to(position)
        return _mean_square(self.learner.residuals(self.segments)) if self.learner.is_sound() else math.inf

    def _step(self, curvature: Tensor, slope: Tensor) -> Tensor:
        """(P,), no longer than allowed."""
        diagonal = curvature.diagonal()
        scale = diagonal.clamp(min=max(_FLAT * float(diagonal.max()), torch.finfo(diagonal.dtype).tiny))
        step = -torch.linalg.solve(curvature + self._weight * torch.diag(scale), slope)
        return step * min(1.0, self.options.damping.longest_step / max(float(step.abs().max()), 1e-300))

    def _position(self) -> Tensor:
        return torch.cat([parameter.detach().reshape(-1) for parameter in self.learner.trained_parameters().values()]).double()

    @torch.no_grad()
    def _move_to(self, position: Tensor) -> None:
        start = 0
        for parameter in self.learner.trained_parameters().values():
            parameter.copy_(position[start : start + parameter.numel()].view_as(parameter))
            start += parameter.numel()


def _mean_square(residuals: Tensor) -> float:
    found = float(residuals.square().mean())
    return found if math.isfinite(found) else math.inf
