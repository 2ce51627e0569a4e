"""Checkpoints of learners: their settings, from which they are made again, and their parameters."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dilqr_rl.agents.checkpoints import CheckpointError, read_checkpoint, refuse_unsound, write_checkpoint
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.size_limit import SizeLimit
from dilqr_rl.agents.tensor_files import load_exactly
from dilqr_rl.options import ILQROptions
from dilqr_rl.tasks import ControlTask, find_task, known_ids

if TYPE_CHECKING:
    from dilqr_rl.agents.learners.base import Learner

__all__ = ["LEARNER_FORMAT", "State", "learner_name", "load_learner", "rebuild", "save_learner"]

LEARNER_FORMAT = "dilqr_rl learner"

AnyLearner = TypeVar("AnyLearner", bound="Learner")


def save_learner(learner: Learner, path: str | Path, *, overwrite: bool) -> None:
    """Write a learner; see `Learner.save`."""
    refuse_unsound(path, learner)
    config = {
        "learner": learner.name,
        "env_id": learner.task.name,
        "env_kwargs": dict(learner.task.env_kwargs),
        "task": _numbers(learner.task),
        "settings": learner.settings,
    }
    write_checkpoint(path, LEARNER_FORMAT, config, learner.state_dict(), overwrite=overwrite)


def load_learner(learner_class: type[AnyLearner], path: str | Path, task: ControlTask | None) -> AnyLearner:
    """Read a learner; see `Learner.load`."""
    config, tensors = read_checkpoint(path, LEARNER_FORMAT)
    if config.get("learner") != learner_class.name:
        raise CheckpointError(
            f"{path}: expected a checkpoint of the learner {learner_class.name!r}, got one of {config.get('learner')!r}. Use "
            "dilqr_rl.agents.load_learner, which finds the class."
        )
    if task is not None and task.name != config.get("env_id"):
        raise CheckpointError(
            f"{path}: expected a checkpoint for {task.name}, as task= says, got one for {config.get('env_id')}."
        )
    try:
        chosen = task or _find_task(config)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # an environment may take arguments that were tampered with in any way
        raise CheckpointError(f"{path}: its environment can't be made: {error!r}.") from error
    try:
        if _numbers(chosen) != config["task"]:
            raise CheckpointError(
                f"it was made with {config['task']}, the task has {_numbers(chosen)}; pass the same as task=."
            )
        with SizeLimit(tensors):
            learner = _make_again(learner_class, chosen, config["settings"])
        load_exactly(learner, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # and so may a learner
        raise CheckpointError(f"{path}: not a whole checkpoint of this version: {error!r}.") from error
    refuse_unsound(path, learner)
    return learner.eval()


def learner_name(path: str | Path) -> str:
    """Which learner a checkpoint is of.

    Raises:
        CheckpointError: it isn't one of a learner.
    """
    return str(read_checkpoint(path, LEARNER_FORMAT)[0].get("learner"))


def _numbers(task: ControlTask) -> dict[str, Any]:
    """What a learner's tensors don't hold of its task, and would act otherwise with."""
    names = ("state_size", "control_size", "u_min", "u_max", "control_per_action")
    return {name: float(getattr(task, name)) for name in names}


def _find_task(config: dict[str, Any]) -> ControlTask:
    if config["env_id"] not in known_ids():
        raise CheckpointError(
            f"its environment {config['env_id']!r} is not among the known ones, {known_ids()}; pass its task as task=, or call "
            "dilqr_rl.register_task first."
        )
    with closing(make_env(config["env_id"], {**config["env_kwargs"]})) as env:
        return find_task(env)


class State(NamedTuple):
    """What a copy of a learner takes over beside its settings."""

    tensors: dict[str, Tensor]
    trained: set[str]
    training: bool
    device: torch.device


def rebuild(learner_class: type[AnyLearner], task: ControlTask, settings: Mapping[str, Any], state: State) -> AnyLearner:
    """A copy of a learner."""
    learner = _make_again(learner_class, task, settings).to(state.device)
    learner.load_state_dict(state.tensors)
    for name, parameter in learner.named_parameters():
        parameter.requires_grad_(name in state.trained)
    return learner.train(state.training)


def _make_again(learner_class: type[AnyLearner], task: ControlTask, settings: Mapping[str, Any]) -> AnyLearner:
    arguments = dict(settings)
    if "solver" in arguments:
        wrong = {field.name for field in fields(ILQROptions)} ^ set(arguments["solver"])
        if wrong:
            raise ValueError(f"its solver's settings lack, or shouldn't have, {sorted(wrong)}")
        arguments["solver"] = ILQROptions(**arguments["solver"])
    learner = learner_class(task, **arguments)
    missing = learner.settings.keys() - settings.keys()
    if missing:  # they would silently take their defaults
        raise ValueError(f"its settings lack {sorted(missing)}")
    return learner
