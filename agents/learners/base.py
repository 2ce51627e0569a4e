"""What every learner is: constructed from a task, fitted to demonstrations, asked for plans and actions, saved and loaded."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dilqr_rl.agents.demonstrations import Demonstrations, DemonstrationsError
from dilqr_rl.agents.environments import as_task
from dilqr_rl.agents.learners.files import State, load_learner, rebuild, save_learner
from dilqr_rl.agents.learners.fitting import FitResult, Surroundings, fit
from dilqr_rl.agents.learners.options import FitOptions, OptimizerName
from dilqr_rl.agents.learners.progress import show_progress
from dilqr_rl.agents.learners.segments import Segments, cut
from dilqr_rl.agents.observations import state_in
from dilqr_rl.agents.wrappers import refuse_changes
from dilqr_rl.checks import MOST, plain, whole
from dilqr_rl.tasks import ControlTask, find_task

__all__ = ["Learner"]

_CHUNK = 1024  # segments evaluated at once


class Learner(nn.Module, ABC):
    """Learns from demonstrations to act as the demonstrator does.

    A new learner is a subclass with a `name`, a `controls` (its plan) and, unless it is the imitation loss, a `loss`; what its
    constructor takes goes on to this one, as `settings`, from which a checkpoint rebuilds it.

    Args:
        task: the environment's model, or the id of an environment whose model is known.
        horizon: T, steps that a plan looks ahead; the task's own if None.
        **settings: all other arguments of the subclass's constructor: numbers, strings, and lists and dictionaries of them.

    Raises:
        ValueError: no task, a horizon that isn't a positive integer, or an argument that no constructor of the subclass names.
    """

    name: ClassVar[str]
    defaults: ClassVar[FitOptions] = FitOptions()
    optimizers: ClassVar[tuple[OptimizerName, ...]] = ("adam", "rmsprop")

    def __init__(self, task: ControlTask | str, *, horizon: int | None = None, **settings: Any) -> None:
        super().__init__()
        self.task = as_task(task)
        if self.task.discrete_controls is not None:
            raise ValueError(
                f"task: a learner fits real-valued controls, and the actions of {self.task.name} are discrete. Train an "
                "MPCPolicy with PPO or A2C; or find its physics by SystemIdentification, from the controls that the actions "
                "stand for and the task without them: dataclasses.replace(task, discrete_controls=None)."
            )
        self.horizon = whole("horizon", self.task.horizon if horizon is None else horizon, most=MOST)
        _check_names(type(self), settings)
        self.settings: dict[str, Any] = plain({"horizon": self.horizon, **settings})

    @classmethod
    def for_env(cls, env: gym.Env[Any, Any], **settings: Any) -> Self:
        """A learner for an environment whose model is known.

        Raises:
            ValueError: the environment's model isn't known, a wrapper changes its observations or what its actions mean, or an
                argument is wrong.
        """
        refuse_changes(env)
        return cls(find_task(env), **settings)

    @abstractmethod
    def controls(self, states: Tensor) -> Tensor:
        """The plan from states (B, n): controls (B, T, m) in the model's unit and float64; differentiable."""

    def loss(self, segments: Segments) -> Tensor:
        """What the fit minimises, of each segment (S,): by default the mean squared error of the planned controls."""
        length = segments.controls.shape[1]
        return (self.controls(segments.states[:, 0])[:, :length] - segments.controls).square().mean((1, 2))

    def segment_length(self, data: Demonstrations) -> int:
        """How many actions the loss compares at a time: whole plans of such as were carried out as made, else first actions."""
        return self.compared_length(data)

    def compared_length(self, data: Demonstrations) -> int:
        """How many actions the imitation loss compares at a time.

        Raises:
            DemonstrationsError: the demonstrated plans are of another horizon.
        """
        if not data.open_loop:
            return 1
        lengths = {len(episode) for episode in data.episodes}
        if lengths != {self.horizon}:
            raise DemonstrationsError(
                f"demonstrations: expected plans of {self.horizon} actions, the learner's horizon, got {sorted(lengths)}. Make "
                "the learner with horizon= their length."
            )
        return self.horizon

    def check_options(self, options: FitOptions) -> None:
        """Raise a ValueError for settings of a fit that the learner has no use for."""
        if options.optimizer not in self.optimizers:
            raise ValueError(
                f"optimizer: expected one of {self.optimizers}, with which the learner {self.name!r} can be fitted, got "
                f"{options.optimizer!r}."
            )

    def scan(self, segments: Segments, options: FitOptions) -> bool:
        """Look around for a better start, before the first epoch; whether anything was tried."""
        return False

    def set_attempt(self, attempt: int) -> None:
        """Called before each step of "lm" with the number of its attempt, 0 at first."""

    def restart(self, attempt: int, segments: Segments, options: FitOptions) -> None:
        """Called where attempt 1, 2, ... of "lm" begins, at the parameters that the fit began with, to move them elsewhere."""

    def residuals(self, segments: Segments) -> Tensor:
        """The residuals of `sensitivities` alone."""
        raise NotImplementedError(f"The learner {self.name!r} has no residuals.")

    def sensitivities(self, segments: Segments) -> tuple[Tensor, Tensor]:
        """Residuals (R,), whose mean square is the loss over the segments, and their Jacobian (R, P).

        P counts the numbers of `trained_parameters`, one after the other. Learners that "lm" fits have it.
        """
        raise NotImplementedError(f"The learner {self.name!r} has no residuals.")

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that are learnt, as they are optimised, by name."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def is_sound(self) -> bool:
        """Whether the parameters are numbers to go on with, as they may not be after a step of a fit that was too long."""
        return all(bool(parameter.isfinite().all()) for parameter in self.trained_parameters().values())

    def before_epoch(self, epoch: int) -> None:
        """Called before each epoch of a fit; a learner that trains its parts by turns chooses here."""

    def readable_parameters(self) -> dict[str, Tensor]:
        """The learnt parameters that mean something to a person, by name; none by default."""
        return {}

    def fit(
        self,
        data: Demonstrations,
        validation: Demonstrations | None = None,
        options: FitOptions | None = None,
        *,
        folder: str | Path | None = None,
        resume: bool = False,
        progress_bar: bool | str = False,
        on_epoch: Callable[[FitResult], None] | None = None,
        measure: Callable[[Self], Mapping[str, float]] | None = None,
    ) -> FitResult:
        """Learn, in place, and end with the best parameters that were found.

        The best are those of the lowest training loss among all whose validation loss isn't worse than the lowest by more than
        chance; see `choice.py`. Where no parameters move the validation loss, the log and the result's `note` say so.

        Ctrl-C ends it early, and so do SIGTERM and SIGHUP where nothing else handles them. A loss that isn't finite, or a step
        to physics that are no numbers above 0, ends it, too; then the result's `stopped` is "diverged".

        Args:
            data: episodes to learn from.
            validation: other episodes, to tell which epochs did worse; a fifth of the episodes of `data` if None.
            options: settings; the learner's `defaults` if None.
            folder: keeps what it takes to resume, and the log (Stable-Baselines3's csv, and TensorBoard's where installed);
                made if it doesn't exist. None: nothing is written.
            resume: go on from what `folder` keeps, to bitwise the same result as without interruption; from the start if it
                keeps nothing yet.
            progress_bar: show a line with the epochs, the time left and the validation loss; a text is its title.
            on_epoch: called after every epoch with the result so far.
            measure: further figures for the history, taken at every look at the validation loss.

        Raises:
            DemonstrationsError: the demonstrations are of another environment or other sizes, too few to hold any out, or an
                episode is in both sets.
            ValueError: an optimizer that the learner has no use for; a folder that keeps another fit.
            FileExistsError: the folder keeps a fit already, and `resume` is false.
            BlockingIOError: another fit writes to the folder at this moment.
        """
        chosen, told = options or self.defaults, [] if on_epoch is None else [on_epoch]
        with show_progress(f"{self.name}, {chosen.optimizer}", chosen.epochs, shown=progress_bar) as show:

            def tell(result: FitResult) -> None:
                for listener in (show, *told):
                    listener(result)

            return fit(self, data, validation, chosen, Surroundings(folder, resume, tell, measure or (lambda _: {})))

    @torch.no_grad()
    def plan(self, observation: Tensor | NDArray[Any] | Mapping[str, Any]) -> Tensor:
        """The planned controls (B, T, m), in the model's unit, from observations (B, k); (T, m) from one, (k,).

        Raises:
            ValueError: the observations are of another shape, or hold NaN or infinity.
        """
        seen = state_in(observation)
        states = self.as_states(seen)
        was_training = self.training
        self.eval()
        try:
            planned = self.controls(states)
        finally:
            self.train(was_training)
        return planned if np.ndim(seen) > 1 else planned[0]

    def as_states(self, observation: Tensor | NDArray[Any] | Mapping[str, Any]) -> Tensor:
        """States (B, n) in float64 from observations (B, k), or (1, n) from one, (k,); of named ones the part "state" is read.

        Raises:
            ValueError: the observations are of another shape, or hold NaN or infinity.
        """
        seen = torch.as_tensor(state_in(observation), device=self.device).to(torch.float64)
        if not torch.isfinite(seen).all():
            raise ValueError(f"observation: expected finite numbers, got {seen[~torch.isfinite(seen)][0].item()}.")
        try:
            states = self.task.observation_to_state(seen if seen.ndim > 1 else seen.unsqueeze(0))
        except (RuntimeError, IndexError, ValueError):
            states = seen.new_empty(0)
        if seen.ndim > 2 or states.shape[1:] != (self.task.state_size,):
            raise ValueError(
                f"observation: expected one as {self.task.name} gives it, (k,), or a batch (B, k), of which "
                f"{self.task.state_size} numbers of state can be read, got the shape {tuple(seen.shape)}."
            )
        return states

    def predict(
        self,
        observation: NDArray[Any] | Mapping[str, Any],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = True,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Act: the plan's first control as an action, in Stable-Baselines3's manner.

        Args:
            observation: (k,), or (B, k) from a vector environment; of named ones the part "state" is read.
            state: what the last call returned; None at first. Only recurrent learners have one.
            episode_start: (B,) bool, where `state` belongs to an episode that has ended.
            deterministic: there is nothing random in a learner's action.

        Returns:
            The action (m,) or (B, m), and the state.
        """
        return self.as_actions(self.plan(observation)[..., 0, :]), None

    def as_actions(self, controls: Tensor) -> NDArray[np.float32]:
        """Controls (..., m) as actions within the bounds."""
        low, high = self.task.u_min, self.task.u_max
        scaled = controls.detach().clamp(low, high) / self.task.control_per_action
        return np.asarray(scaled.cpu().numpy(), dtype=np.float32)

    def imitation_loss(self, data: Demonstrations) -> float:
        """Mean squared error of the planned controls, in their unit squared.

        Of whole plans if `data` is open_loop, else of each observation's first control.

        Raises:
            DemonstrationsError: the demonstrations are of another environment, other sizes, or plans of another horizon.
        """
        segments = cut(self.task, data, self.compared_length(data), self.device)
        return self.mean_over(segments, lambda part: Learner.loss(self, part))

    def mean_over(self, segments: Segments, loss: Callable[[Segments], Tensor] | None = None) -> float:
        """The mean over segments of a loss (S,), the learner's own by default, without a gradient."""
        return float(self.losses_over(segments, loss).mean())

    @torch.no_grad()
    def losses_over(self, segments: Segments, loss: Callable[[Segments], Tensor] | None = None) -> Tensor:
        """The loss of each segment (S,) in float64, the learner's own by default, without a gradient."""
        was_training = self.training
        self.eval()
        try:
            found = torch.cat([(loss or self.loss)(part) for part in segments.parts(_CHUNK)])
        finally:
            self.train(was_training)
        return found.double()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write a checkpoint (safetensors, with the settings as JSON inside), whole or not at all; equal ones as equal bytes.

        Raises:
            FileExistsError: the file exists and `overwrite` is false.
            CheckpointError: parameters are NaN or infinite, or physics that must be above 0 aren't.
        """
        save_learner(self, path, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path, task: ControlTask | None = None) -> Self:
        """Read a checkpoint of `save`. It holds numbers and settings only: nothing in it is ever executed.

        Args:
            path: the file.
            task: the model, where it can't be found by its id, or isn't the one that is.

        Raises:
            CheckpointError: a ValueError; the file isn't such a checkpoint, is of another learner, task or version.
        """
        return load_learner(cls, path, task)

    def __reduce__(self) -> tuple[Any, ...]:
        """How to pickle and copy: torch refuses to pickle the parametrised modules inside as they are."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return rebuild, (type(self), self.task, self.settings, State(self.state_dict(), trained, self.training, self.device))


def _check_names(learner: type[Learner], settings: Mapping[str, Any]) -> None:
    """Raise a ValueError for a setting that isn't an argument of the class or of those above it; `**settings` takes any."""
    owners = [owner for owner in learner.__mro__ if issubclass(owner, Learner)]
    known = {name for owner in owners for name in inspect.signature(owner).parameters} - {"task", "settings"}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ValueError(f"{unknown[0]}: the learner {learner.name!r} has no such setting; it has {sorted(known)}.")
