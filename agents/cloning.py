"""Behaviour cloning: make a policy act as the demonstrations do, from their observations and actions alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from dilqr_rl.agents.demonstrations import Demonstrations, DemonstrationsError
from dilqr_rl.agents.policy import MPCPolicy
from dilqr_rl.agents.scan import scan_physics

__all__ = ["CloningOptions", "CloningResult", "clone", "imitation_loss"]

_CHUNK = 1024  # observations planned from at once when nothing is learnt


@dataclass(frozen=True)
class CloningOptions:
    """Settings of `clone`.

    Attributes:
        steps: optimiser steps.
        batch_size: observations in one step.
        learning_rate: of Adam, at the first step; it falls to a hundredth along a cosine. The model's physics are learnt
            relative to their size, so 0.05 means steps of 5 %.
        validate_every: steps between two looks at the validation loss.
        validation_size: observations it is taken over, at most.
        scan_rounds: rounds of the scan that precedes the first step where scalar physics are learnt; 0 for none. See `scan.py`.
        seed: of the batches and of the scan.

    Raises:
        ValueError: a value is out of its range.
    """

    steps: int = 300
    batch_size: int = 128
    learning_rate: float = 0.05
    validate_every: int = 20
    validation_size: int = 256
    scan_rounds: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "validate_every", "validation_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if self.scan_rounds < 0:
            raise ValueError(f"scan_rounds: expected 0 or more, got {self.scan_rounds}.")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate: expected a number above 0, got {self.learning_rate}.")


@dataclass
class CloningResult:
    """How the cloning went.

    Attributes:
        start_loss: validation loss before anything was learnt.
        train: (step, loss of its batch), each step.
        validation: (step, validation loss), each look; the one of step 0 comes after the scan.
        best_step: the step whose parameters the policy now has: those of the best validation loss.
        interrupted: whether it was stopped by Ctrl-C.
    """

    start_loss: float
    train: list[tuple[int, float]] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    interrupted: bool = False


def clone(
    policy: ActorCriticPolicy,
    train: Demonstrations,
    validation: Demonstrations,
    options: CloningOptions | None = None,
    on_step: Callable[[CloningResult], None] | None = None,
) -> CloningResult:
    """Train a policy, in place, to act as demonstrated: least mean squared error of its mean actions.

    The policy plans from each observation anew, so it can match a demonstrator exactly whose actions are a function of the
    observation alone. Where scalar physics are learnt, a scan (see scan.py) finds a good start first: far from the truth most
    controls sit on their bounds and pass no gradient. Ctrl-C ends either early and keeps the best parameters so far.

    Args:
        policy: an `MPCPolicy`, or any `ActorCriticPolicy` with continuous actions.
        train: episodes to learn from.
        validation: other episodes, to tell which step was best.
        options: settings.
        on_step: called after every step with the result so far.

    Raises:
        DemonstrationsError: the demonstrations' sizes are not the policy's.
        ValueError: the policy has nothing to learn.
    """
    if isinstance(policy, MPCPolicy) and not any(parameter.requires_grad for parameter in policy.problem.parameters()):
        raise ValueError('policy: nothing in its model is learnt. Make it with learn=("physics",), for example.')
    run = _Run(policy, _Samples(policy, train), _Samples(policy, validation), options or CloningOptions())
    try:
        run.scan()
        run.descend(on_step or (lambda _: None))
    except KeyboardInterrupt:
        run.result.interrupted = True
    finally:
        policy.load_state_dict(run.best)
        policy.set_training_mode(False)
    return run.result


class _Run:
    """One cloning under way: its result so far, and the best parameters."""

    def __init__(self, policy: ActorCriticPolicy, samples: _Samples, held_out: _Samples, options: CloningOptions) -> None:
        self.policy, self.samples, self.held_out, self.options = policy, samples, held_out, options
        self.rng = np.random.default_rng(options.seed)
        self.watched = self.rng.permutation(len(held_out))[: options.validation_size]
        self.result = CloningResult(start_loss=_loss_over(policy, held_out, self.watched))
        self.best = copy.deepcopy(policy.state_dict())

    def scan(self) -> None:
        if not isinstance(self.policy, MPCPolicy) or self.options.scan_rounds == 0:
            return
        batch = self.samples[self.rng.permutation(len(self.samples))[: self.options.batch_size]]
        try:
            scan_physics(self.policy, *batch, self.options.scan_rounds, self.options.seed)
        finally:
            self.best = copy.deepcopy(self.policy.state_dict())

    def descend(self, on_step: Callable[[CloningResult], None]) -> None:
        steps, rate = self.options.steps, self.options.learning_rate
        optimiser = torch.optim.Adam([p for p in self.policy.parameters() if p.requires_grad], lr=rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, eta_min=0.01 * rate)
        for step in range(steps):
            if step % self.options.validate_every == 0:
                self._validate(step)
            self.policy.set_training_mode(True)
            optimiser.zero_grad()
            batch = self.samples[self.rng.integers(len(self.samples), size=self.options.batch_size)]
            loss = _squared_errors(self.policy, *batch).mean()
            loss.backward()
            optimiser.step()
            schedule.step()
            self.result.train.append((step, loss.item()))
            on_step(self.result)
        self._validate(steps)

    def _validate(self, step: int) -> None:
        loss = _loss_over(self.policy, self.held_out, self.watched)
        if all(loss < earlier for _, earlier in self.result.validation):
            self.result.best_step, self.best = step, copy.deepcopy(self.policy.state_dict())
        self.result.validation.append((step, loss))


def imitation_loss(policy: ActorCriticPolicy, demonstrations: Demonstrations) -> float:
    """Mean squared error of the policy's mean actions over all demonstrated ones.

    Raises:
        DemonstrationsError: the demonstrations' sizes are not the policy's.
    """
    samples = _Samples(policy, demonstrations)
    return _loss_over(policy, samples, np.arange(len(samples)))


class _Samples:
    """Every observation of the demonstrations with the action taken."""

    def __init__(self, policy: ActorCriticPolicy, demonstrations: Demonstrations) -> None:
        first = demonstrations.episodes[0]
        expected = (policy.observation_space.shape, policy.action_space.shape)
        came = (first.observations.shape[1:], first.actions.shape[1:])
        if came != expected:
            raise DemonstrationsError(
                f"demonstrations: expected observations and actions of shapes {expected}, as the policy has, got {came} "
                f"from {demonstrations.env_id}."
            )
        if isinstance(policy, MPCPolicy) and policy.task.name != demonstrations.env_id:
            raise DemonstrationsError(
                f"demonstrations: expected {policy.task.name}, for which the policy plans, got {demonstrations.env_id}."
            )
        observations = np.concatenate([episode.observations[:-1] for episode in demonstrations.episodes])
        actions = np.concatenate([episode.actions for episode in demonstrations.episodes])
        self.observations = torch.as_tensor(observations, dtype=torch.float32, device=policy.device)
        self.actions = torch.as_tensor(actions, dtype=torch.float32, device=policy.device)

    def __len__(self) -> int:
        return len(self.actions)

    def __getitem__(self, index: NDArray[np.integer[Any]]) -> tuple[Tensor, Tensor]:
        chosen = torch.as_tensor(index, device=self.actions.device)
        return self.observations[chosen], self.actions[chosen]


def _squared_errors(policy: ActorCriticPolicy, observations: Tensor, actions: Tensor) -> Tensor:
    predicted = policy.get_distribution(observations).mode()
    return (predicted - actions).square().mean(-1)


@torch.no_grad()
def _loss_over(policy: ActorCriticPolicy, samples: _Samples, index: NDArray[np.integer[Any]]) -> float:
    policy.set_training_mode(False)
    parts = np.array_split(index, -(-len(index) // _CHUNK))
    return float(torch.cat([_squared_errors(policy, *samples[part]) for part in parts]).double().mean())
