"""Checkpoints: safetensors with the settings as JSON inside; reading one never executes what it holds."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from gymnasium.spaces import Space
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import get_device

from dilqr_rl.agents.cost_map import CostMap
from dilqr_rl.agents.environments import make_env
from dilqr_rl.agents.learnable import copy_values, parameter_values
from dilqr_rl.agents.size_limit import SizeLimit
from dilqr_rl.agents.soundness import told, unsound_values
from dilqr_rl.agents.space_files import space_from_json, space_to_json
from dilqr_rl.agents.spaces import state_box
from dilqr_rl.agents.tensor_files import TensorFileError, load_exactly, parse_json, read_tensors, write_tensors
from dilqr_rl.checks import plain
from dilqr_rl.instance import bind
from dilqr_rl.options import ILQROptions
from dilqr_rl.problem import ControlProblem
from dilqr_rl.tasks import ControlTask, find_task, known_ids

if TYPE_CHECKING:
    from dilqr_rl.agents.planning_policy import PlanningPolicy

__all__ = [
    "CheckpointError",
    "checkpoint_format",
    "load_policy",
    "read_checkpoint",
    "refuse_unsound",
    "save_policy",
    "write_checkpoint",
]

_VERSION = "1"
_UNITS = ("state_size", "control_size", "u_min", "u_max", "control_per_action", "discrete_controls")
# Of a policy's classes, those that a checkpoint keeps by name; A2C brings the first with it.
_OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    kind.__name__: kind for kind in (RMSpropTFLike, torch.optim.RMSprop, torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
}

Policy = TypeVar("Policy", bound="PlanningPolicy")


class CheckpointError(ValueError):
    """A file is no checkpoint of this library's, is damaged, or comes from another version."""


def save_policy(policy: PlanningPolicy, path: str | Path, *, overwrite: bool) -> None:
    """Write a policy; see `PlanningPolicy.save`."""
    refuse_unsound(path, policy)
    spaces = _spaces(policy)
    if policy.task.name in known_ids():
        _check_rebuilt(policy)
    arguments = _network(policy)
    defaults = _network(_bare(type(policy), policy.task, policy.observation_space, policy.action_space))
    network = {name: value for name, value in arguments.items() if _is_plain(value)}
    if arguments["optimizer_class"] in set(_OPTIMISERS.values()) - {defaults["optimizer_class"]}:
        network["optimizer_class"] = arguments["optimizer_class"].__name__
    changed = [name for name, value in arguments.items() if name not in network and value != defaults[name]]
    if changed:
        raise ValueError(
            f"policy: {changed} can't be kept in a checkpoint, which holds numbers and names only. Use the default, or save "
            "the whole model with Stable-Baselines3's own model.save, which pickles it."
        )
    config = {
        "env_id": policy.task.name,
        "env_kwargs": dict(policy.task.env_kwargs),
        "settings": {name: _plain(value) for name, value in policy.settings.items()} | {"horizon": policy.problem.horizon},
        "network": network,
        "spaces": spaces,
        "units": _units(policy.task),
    }
    write_checkpoint(path, policy.checkpoint_format, config, policy.state_dict(), overwrite=overwrite)


def _spaces(policy: PlanningPolicy) -> list[Any]:
    """A policy's spaces; none where they have no words, and its environment can be made again."""
    try:
        return [space_to_json(space) for space in (policy.observation_space, policy.action_space)]
    except ValueError:
        if policy.task.name not in known_ids() or not _has_own_spaces(policy):
            raise
        return []


def _has_own_spaces(policy: PlanningPolicy) -> bool:
    with closing(make_env(policy.task.name, policy.task.env_kwargs)) as env:
        return (env.observation_space, env.action_space) == (policy.observation_space, policy.action_space)


def _network(policy: PlanningPolicy) -> dict[str, Any]:
    """Those arguments that aren't the task's."""
    others = {"observation_space", "action_space", "lr_schedule", "task", *policy.settings}
    return {name: plain(value) for name, value in policy.constructor_arguments().items() if name not in others}


def _bare(policy_class: type[Policy], task: ControlTask, observations: Space[Any], actions: Space[Any]) -> Policy:
    return policy_class(observations, actions, lambda _: 0.0, task=task)


def _plain(setting: Any) -> Any:
    return asdict(setting) if isinstance(setting, ILQROptions | CostMap) else setting


def _is_plain(value: Any) -> bool:
    """Whether it comes back from JSON as it was."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except TypeError:
        return False


def _check_rebuilt(policy: PlanningPolicy) -> None:
    """Refuse a policy that plans with something else than what is made of its id."""
    with closing(make_env(policy.task.name, policy.task.env_kwargs)) as env:
        box = state_box(env.observation_space)
        own_shape, shape = box.shape, state_box(policy.observation_space).shape
        if own_shape != shape:
            raise ValueError(
                f"policy: expected observations {own_shape}, as {policy.task.name} has them, got {shape}. A wrapper isn't kept "
                "in a checkpoint: save the whole model with Stable-Baselines3's own model.save, which pickles it."
            )
        own = find_task(env)
        known, came = own.problem(1), copy.deepcopy(policy.task).problem(1)
        named, planned = parameter_values(known).keys(), parameter_values(came).keys()
        if named != planned:
            raise ValueError(
                f"policy: expected the model of {policy.task.name}, with {sorted(named)}, got one with {sorted(planned)}. Save "
                "the learner instead, or the whole model with Stable-Baselines3's own model.save, which pickles it."
            )
        copy_values(came, known)
        box.seed(0)
        observations = torch.as_tensor(np.stack([box.sample() for _ in range(5)]), dtype=torch.float64)
        if not _act_alike(observations, (own, known), (policy.task, came)):
            raise ValueError(
                f"policy: expected the model of {policy.task.name}, got one with other settings or functions. "
                "A checkpoint doesn't hold these: save the whole model with Stable-Baselines3's own model.save, which pickles."
            )


@torch.no_grad()
def _act_alike(observations: torch.Tensor, *models: tuple[ControlTask, ControlProblem]) -> bool:
    """Whether two models have the same units, read the same states, and at some have the same next ones and costs."""
    found = []
    for task, problem in models:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(5, task.state_size, generator=generator, dtype=torch.float64)
        u = torch.randn(5, task.control_size, generator=generator, dtype=torch.float64)
        instance = bind(problem, x, None).at_first_step()
        seen = task.observation_to_state(observations.clone())
        results = (seen, instance.step(x, u, 0), instance.stage_cost(x[:, None], u[:, None]), instance.terminal_cost(x))
        found.append((_units(task), results))
    (units, results), (other_units, other_results) = found
    same = all(torch.allclose(a, b, equal_nan=True) for a, b in zip(results, other_results, strict=True))
    return units == other_units and same


def _units(task: ControlTask) -> dict[str, Any]:
    """What actions mean to a task, as JSON holds it."""
    return {name: None if (value := getattr(task, name)) is None else np.asarray(value).tolist() for name in _UNITS}


def load_policy(policy_class: type[Policy], path: str | Path, device: torch.device | str, task: ControlTask | None) -> Policy:
    """Read a policy; see `PlanningPolicy.load`."""
    config, tensors = read_checkpoint(path, policy_class.checkpoint_format)
    try:
        policy = _made_again(policy_class, config, tensors, task)
        load_exactly(policy, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except Exception as error:  # what a class makes of settings that were tampered with is nobody's to foresee
        raise CheckpointError(f"{path}: not a whole checkpoint of this version: {error!r}.") from error
    refuse_unsound(path, policy)
    return policy.to(get_device(device))


def _made_again(
    policy_class: type[Policy], config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], task: ControlTask | None
) -> Policy:
    """A policy of these settings, with other numbers, and no more of them than these tensors have use for."""
    found, observations, actions = _told_task(config) if task is None else _given_task(config, task)
    with SizeLimit(tensors):
        bare = _bare(policy_class, found, observations, actions)
    settings = _named(config["settings"], bare.settings)
    network = dict(config["network"])
    optimiser = _optimiser(network.pop("optimizer_class", None))
    network = _named(network, (name for name, value in _network(bare).items() if _is_plain(value)))
    settings["options"] = ILQROptions(**_named(settings["options"], (field.name for field in fields(ILQROptions))))
    if settings["cost_map"] is not None:
        settings["cost_map"] = CostMap(**_named(settings["cost_map"], (field.name for field in fields(CostMap))))
    with SizeLimit(tensors):
        return policy_class(observations, actions, lambda _: 3e-4, task=found, **settings, **network, **optimiser)


def _told_task(config: Mapping[str, Any]) -> tuple[ControlTask, Space[Any], Space[Any]]:
    """The task of a checkpoint's environment, which is made for it, and the spaces that it tells, or else the environment's."""
    env_id, env_kwargs = config["env_id"], config["env_kwargs"]
    if env_id not in known_ids():
        raise CheckpointError(
            f"its environment {env_id!r} is not among the known ones, {known_ids()}; give its model as task=, or call "
            "dilqr_rl.register_task first."
        )
    with closing(make_env(env_id, {**env_kwargs})) as env:
        observations, actions = [space_from_json(one) for one in config["spaces"]] or (env.observation_space, env.action_space)
        return find_task(env), observations, actions


def _given_task(config: Mapping[str, Any], task: ControlTask) -> tuple[ControlTask, Space[Any], Space[Any]]:
    """A task that a person gives, and the spaces that the checkpoint tells."""
    if not isinstance(task, ControlTask):
        raise CheckpointError(f"task: expected a ControlTask, got {task!r}.")
    if task.name != config["env_id"]:
        raise CheckpointError(f"task: expected that of {config['env_id']!r}, got that of {task.name!r}.")
    if config["units"] != _units(task):
        raise CheckpointError(f"task: expected one with {config['units']}, got one with {_units(task)}.")
    observations, actions = (space_from_json(space) for space in config["spaces"])
    return task, observations, actions


def _optimiser(name: str | None) -> dict[str, Any]:
    """The argument that a policy takes its optimiser's class by; None: the default."""
    if name is None:
        return {}
    if name not in _OPTIMISERS:
        raise ValueError(f"optimizer_class: expected one of {[*_OPTIMISERS]}, got {name!r}")
    return {"optimizer_class": _OPTIMISERS[name]}


def _named(values: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """The values, which must have these names: what is missing would silently take its default."""
    wrong = set(values) ^ set(names)
    if wrong:
        raise ValueError(f"its settings lack, or shouldn't have, {sorted(wrong)}")
    return dict(values)


def write_checkpoint(
    path: str | Path, kind: str, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, overwrite: bool
) -> None:
    """Write settings and tensors, whole or not at all; equal ones give equal bytes.

    Raises:
        FileExistsError: the file exists and `overwrite` is false.
        CheckpointError: the tensors hold what no checkpoint may.
    """
    _refuse_nan(path, tensors)
    metadata = {"format": kind, "version": _VERSION, "config": json.dumps(config, default=float)}
    write_tensors(path, tensors, metadata, overwrite=overwrite)


def read_checkpoint(path: str | Path, *kinds: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Settings and tensors of a checkpoint of one of these kinds.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is something else, of another version, or damaged.
    """
    metadata, tensors = _read(Path(path))
    if metadata.get("format") not in kinds or metadata.get("version") != _VERSION:
        came = f"format {metadata.get('format')!r}, version {metadata.get('version')!r}"
        raise CheckpointError(
            f"{path}: expected format {' or '.join(map(repr, kinds))}, version {_VERSION!r}, got {came}. Read it with "
            "the class, and the version of dilqr_rl, that wrote it."
        )
    _refuse_nan(path, tensors)
    try:
        config = parse_json(metadata["config"])
    except (KeyError, TensorFileError) as error:
        raise CheckpointError(f"{path}: its settings can't be read: {error!r}.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: expected its settings to be an object, got {type(config).__name__}.")
    return config, tensors


def refuse_unsound(path: str | Path, module: torch.nn.Module) -> None:
    """Raise a CheckpointError, on writing as on reading, for numbers with which nothing can be planned."""
    _refuse_nan(path, module.state_dict())
    wrong = unsound_values(module)
    if wrong:
        raise CheckpointError(f"{path}: {told(wrong)}.")


def checkpoint_format(path: str | Path) -> str | None:
    """Which kind of checkpoint a file says it is.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no safetensors file.
    """
    return _read(Path(path))[0].get("format")


def _refuse_nan(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    broken = [name for name, tensor in tensors.items() if not _is_number(name, tensor)]
    if broken:
        raise CheckpointError(f"{path}: {broken} hold NaN or infinity.")


def _is_number(name: str, tensor: torch.Tensor) -> bool:
    """Whether all of it is; no bound is infinity."""
    return not tensor.isnan().any() if name.endswith(("u_min", "u_max")) else bool(tensor.isfinite().all())


def _read(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        return read_tensors(path)
    except TensorFileError as error:
        raise CheckpointError(
            f"{path}: expected a safetensors file as save writes it, got something else ({error}). Pickles are never read."
        ) from error
