"""Numbers are numbers, Python's or NumPy's, at every public door; what is none, or beyond all floats, is refused in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from policy_data import ENV, planning
from torch import nn

from dilqr_rl import ControlProblem, ControlTask, ILQROptions, QuadraticCost, find_task
from dilqr_rl.agents import (
    LEARNERS,
    CostAndPhysicsLearner,
    CostMap,
    Damping,
    FitOptions,
    Learner,
    MPCPolicy,
    MPCSACPolicy,
    PlanningLearner,
    ResidualDynamics,
    SB3VecEnv,
    TerminalFit,
    roll_out,
)
from dilqr_rl.agents.environments import make_env
from dilqr_rl.envs import PendulumDynamics

Door = Callable[[Any], Any]
with gym.make(ENV) as ENVIRONMENT:
    TASK: ControlTask = find_task(ENVIRONMENT)
SMALL: dict[str, dict[str, Any]] = {"nn": {"width": 4}, "mlp": {"hidden": [4]}}


def problem(**changes: Any) -> ControlProblem:
    sizes = {"horizon": 3, "state_size": 1, "control_size": 1, **changes}
    return ControlProblem(lambda x, u: x + u, lambda x, u: (x * x + u * u).sum(-1), **sizes)


def learner(name: str, **changes: Any) -> Learner:
    return LEARNERS[name](TASK, **{"horizon": 3, **SMALL.get(name, {}), **changes})


def policy(kind: Any = MPCPolicy, **changes: Any) -> Any:
    return kind.for_env(ENVIRONMENT, **{**planning(net_arch=None), **changes})


def settings_of(kind: Any, good: dict[str, Any]) -> dict[str, tuple[Door, Any]]:
    """A door for each number of a dataclass of settings."""
    numbers = {field.name: good.get(field.name, field.default) for field in fields(kind)}
    return {
        f"{kind.__name__}.{name}": (lambda value, name=name: kind(**{name: value}), number)
        for name, number in numbers.items()
        if type(number) in (int, float)
    }


def doors_of_learners() -> dict[str, tuple[Door, Any]]:
    found: dict[str, tuple[Door, Any]] = {}
    for name, kind in LEARNERS.items():
        goods: dict[str, Any] = {"horizon": 3}
        if issubclass(kind, PlanningLearner):
            goods["starts"] = 2
        if name in ("nn", "mlp", "residual", "lqr"):
            goods["seed"] = 5
        for argument, good in goods.items():
            found[f"{name}.{argument}"] = (lambda v, name=name, argument=argument: learner(name, **{argument: v}), good)
    found["nn.width"] = lambda v: learner("nn", width=v), 4
    found["mlp.hidden"] = lambda v: learner("mlp", hidden=[v]), 4
    found["residual.hidden"] = lambda v: learner("residual", hidden=[v]), 4
    found["residual.physics"] = lambda v: learner("residual", physics={"mass": v}), 2.0
    found["dx.physics"] = lambda v: learner("dx", physics={"mass": v}), 2.0
    found["cost.weights"] = lambda v: learner("cost", weights=[v] * 4), 0.5
    found["cost.goal"] = lambda v: learner("cost", goal=[v] * 4), 0.5
    found["cost_dx.alternate"] = lambda v: CostAndPhysicsLearner(TASK, horizon=3, alternate=v), 2
    found["ResidualDynamics.control_scale"] = lambda v: ResidualDynamics(nn.Identity(), nn.Identity(), v), 2.0
    return found


DOORS: dict[str, tuple[Door, Any]] = {
    **settings_of(ILQROptions, {"max_seconds": 0.5}),
    **settings_of(FitOptions, {"patience": 3}),
    **settings_of(Damping, {}),
    **settings_of(TerminalFit, {}),
    **doors_of_learners(),
    "ControlProblem.horizon": (lambda v: problem(horizon=v), 3),
    "ControlProblem.state_size": (lambda v: problem(state_size=v), 1),
    "ControlProblem.control_size": (lambda v: problem(control_size=v), 1),
    "ControlProblem.u_max": (lambda v: problem(u_max=v), 2.0),
    "ControlTask.horizon": (lambda v: replace(TASK, horizon=v), 3),
    "ControlTask.starts": (lambda v: replace(TASK, starts=v), 2),
    "ControlTask.u_max": (lambda v: replace(TASK, u_max=v), 2.0),
    "ControlTask.control_per_action": (lambda v: replace(TASK, control_per_action=v), 2.0),
    "QuadraticCost.weights": (lambda v: QuadraticCost([v, v], [0.0, 0.0]), 1.0),
    "QuadraticCost.goal": (lambda v: QuadraticCost([1.0, 1.0], [v, v]), 1.0),
    "MPCPolicy.horizon": (lambda v: policy(horizon=v), 4),
    "MPCPolicy.starts": (lambda v: policy(starts=v), 2),
    "MPCPolicy.model_rate": (lambda v: policy(model_rate=v), 1.0),
    "MPCPolicy.physics": (lambda v: policy(physics={"mass": v}), 2.0),
    "MPCPolicy.net_arch": (lambda v: policy(net_arch=[v]), 4),
    "MPCPolicy.terminal_value": (lambda v: policy(terminal_value=(v,)), 4),
    "CostMap.hidden": (lambda v: CostMap(hidden=(v,)), 4),
    "MPCSACPolicy.squash_margin": (lambda v: policy(MPCSACPolicy, squash_margin=v), 0.1),
    "MPCSACPolicy.log_std_init": (lambda v: policy(MPCSACPolicy, log_std_init=v), -1.0),
    "MPCSACPolicy.net_arch": (lambda v: policy(MPCSACPolicy, net_arch={"pi": [v]}), 4),
    "PendulumDynamics.mass": (lambda v: PendulumDynamics(mass=v), 2.0),
    "PendulumDynamics.time_step": (lambda v: PendulumDynamics(time_step=v), 0.05),
    "Pendulum-v0.physics": (lambda v: make_env("dilqr_rl/Pendulum-v0", {"physics": {"mass": v}}).close(), 2.0),
    "SB3VecEnv.num_envs": (lambda v: SB3VecEnv.make(ENV, v), 2),
    "roll_out.episodes": (lambda v: roll_out(learner("mlp"), ENV, episodes=v), 1),
    "roll_out.seed": (lambda v: roll_out(learner("mlp"), ENV, episodes=1, seed=v), 1),
}


def as_good(number: float) -> list[Any]:
    """The same number as others have it."""
    found: list[Any] = [np.array(number), torch.tensor(number, dtype=torch.float64 if isinstance(number, float) else None)]
    if isinstance(number, int):
        return [np.int64(number), *found]
    return [np.float64(number), np.float32(number), Fraction(number), *found]


NONE_AT_ALL: list[Any] = [True, np.True_, 1 + 1j, np.complex128(1 + 1j), torch.tensor(1 + 1j), 10**400, -(10**5000), "one"]
NONE_AT_ALL += [float("nan"), None, object(), [[1]], np.array([1.0, None], dtype=object), np.ones((1, 1, 1))]
MAY_BE_NONE = {"FitOptions.patience", "ILQROptions.max_seconds", "MPCPolicy.horizon", "ControlProblem.u_max"}
MAY_BE_NONE |= {"cost.starts", "cost_dx.starts"} | {f"{name}.horizon" for name in LEARNERS}


@pytest.mark.parametrize("name", DOORS)
def test_a_number_is_one_whoever_made_it(name: str) -> None:
    door, good = DOORS[name]
    for number in (good, *as_good(good)):
        door(number)


@pytest.mark.parametrize("name", DOORS)
def test_what_is_no_number_is_refused_in_words(name: str) -> None:
    door, _ = DOORS[name]
    for wrong in NONE_AT_ALL:
        if wrong is None and name in MAY_BE_NONE:
            continue
        with pytest.raises(ValueError, match="expected") as caught:
            door(wrong)
        told = str(caught.value)
        assert any(part in told for part in (name.rpartition(".")[2], "hidden", "physics", "mass")), told
        assert len(told) < 600, told  # rather than the digits of the huge ones


def test_settings_hold_numbers_that_a_file_can_hold(tmp_path: Path) -> None:
    options = ILQROptions(max_iterations=np.int64(30), max_seconds=np.float32(0.5), tolerance=np.float64(1e-5))
    assert (options.max_iterations, options.max_seconds, options.tolerance) == (30, 0.5, 1e-5)
    json.dumps((asdict(options), asdict(FitOptions(epochs=np.int64(3), learning_rate=np.float32(0.5)))))
    physics = {"mass": np.float32(2.0), "length": Fraction(1, 2)}
    for name, given in {
        "dx": {"starts": np.int64(2), "horizon": np.int64(3), "physics": physics, "solver": options},
        "mlp": {"hidden": (np.int64(4),), "seed": np.int64(1)},
    }.items():
        learner(name, **given).save(tmp_path / f"{name}.safetensors")
        assert LEARNERS[name].load(tmp_path / f"{name}.safetensors").horizon == 3
    kept = policy(horizon=np.int64(4), starts=np.int64(2), physics=physics, options=options, terminal_value=(np.int64(3),))
    kept.save(tmp_path / "policy.safetensors")
    assert MPCPolicy.load(tmp_path / "policy.safetensors").settings == kept.settings
