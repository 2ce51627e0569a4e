"""Whether a wrapper gives actions another meaning than a model's: by what it makes of them, or else by its space.

Gymnasium's `ActionWrapper` and, of batches, `VectorActionWrapper` say that they change actions: copies of them are given some.
What other classes do to actions in their own `step` isn't seen, nor what a `VecEnvWrapper` does in `step_async`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorActionWrapper
from gymnasium.wrappers import ClipAction, StickyAction
from gymnasium.wrappers.vector import ClipAction as ClipActions
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from dilqr_rl.agents.discrete import nearest
from dilqr_rl.agents.layers import Copies, found_in, global_random_numbers_kept, wrappers
from dilqr_rl.agents.spaces import actions_beyond, has_all_actions
from dilqr_rl.tasks import ControlTask, model_environment

__all__ = ["ActionLayer", "action_layers", "changed_actions", "refuse_actions_elsewhere"]

_TIMES = 8  # that each action is tried, in between the others: what differs is noise, or memory
_TIMES_EACH = 32  # the same of a discrete one
_UNIT = 0.02  # of half the range: by how much a gain, a mix of two components or an offset may be off
_RESOLUTION = 0.05  # of half the range: what steps and a dead zone may leave of a straight line, root mean square
_SURE = 4.0  # standard errors of a gain that is measured with noise
_FAR = (1.0, 1000.0)  # where there is no bound, actions are tried up to here
_LIMITS = (ClipAction, ClipActions)
_UNTOLD = " It can't be tried on a copy: call env.reset() first, if it needs that, or give what can't be copied a __deepcopy__."
_ELSEWHERE = " What it makes of them can't be seen from here; in this process (DummyVecEnv) it is tried."
Change = Callable[[NDArray[Any]], NDArray[Any]]
Bounds = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class ActionLayer:
    """A wrapper that changes actions.

    Attributes:
        name: its class.
        takes: the space of one action as it takes it.
        gives: the same of what it makes of it.
        change: actions (N, m), or (N,) discrete ones -> what it makes of them; None where it can't be copied.
        limits: whether all that it does is to cut off what isn't in the space that it gives.
    """

    name: str
    takes: spaces.Space[Any]
    gives: spaces.Space[Any]
    change: Change | None
    limits: bool = False


def changed_actions(env: gym.Env[Any, Any], task: ControlTask, around: Sequence[ActionLayer] = ()) -> str:
    """Which wrappers give actions another meaning than a task's model, which bounds don't show, as an error says it; else "".

    What reaches the environment is compared with the control that the task means by an action: over actions between the task's
    bounds a line is fitted to the mean of some tries each. Its gains, offsets and mixes of components must be right to 2 % of
    half the range, what is left to 5 %: an actuator's steps, dead zone or noise is a disturbance, another unit, sign or filter
    isn't. Of discrete actions each is tried. `StickyAction` is known to be a disturbance; a `ClipAction` must let all that the
    task plans through. Where the model isn't the environment's own, whose units nobody knows, the outermost wrapper that has
    other bounds must have those of the task, from end to end. What is `around` all this goes the same way.
    """
    base = model_environment(env)
    layers = [*action_layers(wrappers(env, base)), *around]
    if not layers or not _is_for(task, layers[-1].takes):  # which the check of spaces tells
        return ""
    for one in takewhile(lambda one: one.limits, reversed(layers)):  # limits in the task's own unit
        beyond = _cut_off(task, one.gives, one.name)
        if beyond:
            return beyond
    changing = [one for one in layers if not one.limits]
    if not changing:
        return ""
    space, own = changing[-1].takes, _own_of(base, task)
    means_it = None if own is None else _means_the_same(layers, task, own)
    more = _UNTOLD if own is not None and means_it is None else ""
    if means_it is None:
        resized = [one for one in changing if isinstance(space, spaces.Box) and one.takes != one.gives]
        means_it = has_all_actions(task, resized[-1].takes) if resized else own is None
    return "" if means_it else _told(" and ".join(one.name for one in changing), space, task, more)


def action_layers(chain: Sequence[Any]) -> list[ActionLayer]:
    """Those of wrappers that change actions, of single environments or of batches of Gymnasium's; from the inside, as given."""
    copies, found = Copies(), []
    for one in chain:
        single = isinstance(one, gym.ActionWrapper)
        if type(one) is StickyAction or not (single or isinstance(one, VectorActionWrapper)):
            continue
        change = copies.method(one, "action" if single else "actions")
        many = change and (_one_by_one(change) if single else _in_batches(change, one.num_envs))
        takes, gives = (box.action_space if single else box.single_action_space for box in (one, one.env))
        found.append(ActionLayer(type(one).__name__, takes, gives, many, type(one) in _LIMITS))
    return found


def _is_for(task: ControlTask, space: spaces.Space[Any]) -> bool:
    """Whether a task's actions are of a space's kind."""
    controls = task.discrete_controls
    if isinstance(space, spaces.Discrete):
        return controls is not None and len(controls) == space.n
    return controls is None and isinstance(space, spaces.Box) and space.shape == (task.control_size,)


def _cut_off(task: ControlTask, within: Any, name: str) -> str:
    """What limits cut off of a task's actions, as an error says it."""
    beyond = actions_beyond(task, within)
    return beyond and f"env: expected the limits of {name}, which cuts off what is beyond, to hold {beyond}"


def refuse_actions_elsewhere(envs: VecEnv, base: gym.Env[Any, Any], task: ControlTask) -> None:
    """The same for environments in other processes, of which there are the space, and which have wrappers of a class.

    Where one changes the bounds, they must be the task's from end to end; where one makes actions discrete, they are what the
    task says; what else is within goes unseen. Of Gymnasium's own processes (`AsyncVectorEnv`) no wrappers are to be seen.

    Args:
        envs: the environments.
        base: one that has no wrappers.
        task: whose controls they are.

    Raises:
        ValueError: a wrapper gives actions another meaning, or may do so.
    """
    space, by = envs.action_space, "an ActionWrapper in another process"
    if not any(envs.env_is_wrapped(gym.ActionWrapper)):
        return
    if isinstance(space, spaces.Box) and not space.is_bounded() and any(envs.env_is_wrapped(ClipAction)):
        in_its_unit = replace(task, control_per_action=(_own_of(base, task) or task).control_per_action)
        told = _cut_off(in_its_unit, base.action_space, "a ClipAction in another process")
    elif space == base.action_space:
        told = "" if any(envs.env_is_wrapped(StickyAction)) else _told(by, space, task, _ELSEWHERE)
    else:
        fine = isinstance(space, spaces.Discrete) or has_all_actions(task, space)
        told = "" if fine else _told(by, space, task, _ELSEWHERE)
    if told:
        raise ValueError(told)


def _told(by: str, to: spaces.Space[Any], task: ControlTask, more: str) -> str:
    advice = "set the task's u_min, u_max and control_per_action to these from end to end, or rescale them to the model's."
    if isinstance(to, spaces.Discrete):
        advice = "or set the task's discrete_controls to what each action stands for with it."
    return (
        f"env: expected actions as {task.name}'s model has them, got them changed by {by}, to {to}.{more} Leave that wrapper "
        f"out, {advice}"
    )


def _one_by_one(change: Callable[[Any], Any]) -> Change:
    return lambda actions: np.stack([np.array(change(action)) for action in actions])


def _in_batches(change: Callable[[Any], Any], size: int) -> Change:
    def full(actions: NDArray[Any]) -> NDArray[Any]:  # which goes on from the front
        return np.resize(actions, (-(-len(actions) // size), size, *actions.shape[1:]))

    return lambda actions: np.concatenate([np.array(change(part)) for part in full(actions)])[: len(actions)]


def _own_of(base: gym.Env[Any, Any], task: ControlTask) -> ControlTask | None:
    """An environment's own task where another's controls are in its units, since they go into the same equations."""
    own = found_in(base)
    one, other = task.dynamics, own and own.dynamics
    return own if one is other or (isinstance(other, nn.Module) and type(one) is type(other)) else None


def _means_the_same(layers: Sequence[ActionLayer], task: ControlTask, own: ControlTask) -> bool | None:
    """Whether what wrappers make of a task's actions are its controls; None if it can't be told."""
    if any(one.change is None for one in layers):
        return None
    try:
        with global_random_numbers_kept():
            if task.discrete_controls is not None:
                return _is_same_of_each(layers, task, own)
            return all(_is_same_within(bounds, layers, task, own) for bounds in _ranges(task))
    except Exception:  # whatever a wrapper of anybody's raises where it isn't within an episode
        return None


def _ranges(task: ControlTask) -> list[Bounds]:
    """Bounds of controls (m,) to try some between."""
    low, high = (_array(bound).expand(task.control_size).numpy() for bound in (task.u_min, task.u_max))
    fars = _FAR if np.isinf([low, high]).any() else _FAR[:1]
    lowest, highest = np.minimum(high, 0.0), np.maximum(low, 0.0)  # to go on from where there is no bound
    return [(np.where(np.isinf(low), lowest - far, low), np.where(np.isinf(high), highest + far, high)) for far in fars]


def _array(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64).detach().cpu()


def _is_same_within(bounds: Bounds, layers: Sequence[ActionLayer], task: ControlTask, own: ControlTask) -> bool:
    """For controls between bounds (m,), all in units of half this range around its middle."""
    (low, high), drawn, size = bounds, np.random.default_rng(0), task.control_size
    count = 32 + 4 * size
    unit, base_unit = (_array(one.control_per_action).numpy() for one in (task, own))
    actions = ((low + drawn.random((count, size)) * (high - low)) / unit).astype(np.float32)
    reached = _reached(actions, layers, _TIMES)
    if reached is None or reached.shape[2:] != (size,) or not np.isfinite(reached).all():
        return False
    middle, half = (low + high) / 2, np.where(high > low, (high - low) / 2, 1.0)
    wanted, got = (actions * unit - middle) / half, (reached * base_unit - middle) / half
    return _is_line_of_one(wanted, got)


def _reached(actions: NDArray[Any], layers: Sequence[ActionLayer], times: int) -> NDArray[Any] | None:
    """What becomes of some tries of each action (K, ...), as (K, times, ...); None where a limit would cut off their mean."""
    count = len(actions)
    order = np.random.default_rng(0).permutation(np.repeat(np.arange(count), times))
    back = np.argsort(order, kind="stable")
    reached = actions[order]
    for one in reversed(layers):
        if one.limits:
            tries = reached[back].reshape(count, times, -1)
            if not _is_between(tries, one.gives):
                return None
        elif one.change is not None:
            reached = one.change(reached.copy())
    return reached[back].reshape(count, times, *reached.shape[1:]) if len(reached) == len(order) else None


def _is_between(tries: NDArray[Any], box: Any) -> bool:
    """Whether the means of tries (K, N, m) are in a Box, but for noise and a little of their range."""
    mean, error = tries.mean(1), np.sqrt(tries.var(1, ddof=1).mean(0) / tries.shape[1])
    slack = _UNIT * np.ptp(mean, axis=0) / 2 + _SURE * error
    return bool(((mean >= box.low - slack) & (mean <= box.high + slack)).all())


def _is_same_of_each(layers: Sequence[ActionLayer], task: ControlTask, own: ControlTask) -> bool:
    """For discrete actions, of which each must reach the environment as its control, or the nearest that there is."""
    takes: Any = layers[-1].takes
    gives: Any = layers[0].gives
    wanted = _controls(task)  # (A, m)
    reached = _reached(takes.start + np.arange(takes.n), layers, _TIMES_EACH)
    if reached is None:
        return False
    if isinstance(gives, spaces.Discrete):
        has = wanted if own.discrete_controls is None else _controls(own)
        chosen = reached - gives.start
        if (chosen < 0).any() or (chosen >= len(has)).any():
            return False
        wanted, got = has[nearest(wanted, has)], has[chosen]
    else:
        got = reached.reshape(takes.n, _TIMES_EACH, -1) * _array(own.control_per_action).numpy()
    span = np.ptp(wanted, axis=0)
    half = np.where(span > 0.0, span / 2, 1.0)
    wrong = np.abs(got.mean(1) - wanted) / half
    unsure = _SURE * got.std(1, ddof=1) / half / np.sqrt(_TIMES_EACH)
    return bool(((wrong <= _UNIT + unsure) & (unsure < 0.5)).all())


def _controls(task: ControlTask) -> NDArray[np.float64]:
    return np.asarray(task.discrete_controls, dtype=np.float64)


def _is_line_of_one(wanted: NDArray[Any], got: NDArray[Any]) -> bool:
    """Whether tries (K, N, m) are what was wanted (K, m), but for noise, whose mean is 0, and an actuator's resolution."""
    mean, error = got.mean(1), np.sqrt(got.var(1, ddof=1).mean(0) / _TIMES)  # (m,), of a mean
    inputs = np.hstack([np.ones((len(wanted), 1)), wanted])
    inverse = np.linalg.pinv(inputs)
    found, moves = inverse @ mean, np.ptp(wanted, axis=0) > 0.0  # a control whose bounds meet has no gain
    expected = np.vstack([np.zeros(len(moves)), np.diag(moves.astype(float))])
    unsure = _SURE * np.linalg.norm(inverse, axis=1)[:, None] * error
    left = np.sqrt(np.square(mean - inputs @ found).mean(0))
    right = (np.abs(found - expected) <= _UNIT + unsure) & (unsure < 0.5)  # more noise hides whatever it is
    return bool(right.all() and (left <= _RESOLUTION + 2.0 * error).all())
