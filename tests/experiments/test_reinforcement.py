"""R1 and R2: what is evaluated is the environment asked for, and what is told of the curves can be counted by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dilqr_rl import find_task
from dilqr_rl.agents import MPCPolicy, TerminalFit, fit_terminal_value
from dilqr_rl.experiments import Record, r1, r2
from dilqr_rl.experiments.reinforcement import SYSTEMS, evaluate, first_step_above, told, true_task, wrong_task


class Still:
    """Does nothing."""

    def predict(self, observation: Any, state: Any, start: Any, deterministic: bool) -> tuple[Any, None]:
        assert deterministic
        return np.zeros((len(observation), 1), np.float32), None


@pytest.mark.parametrize("physics", [None, {"mass": 1.0, "length": 1.3}])
def test_an_evaluation_is_the_mean_of_seeded_episodes(physics: dict[str, float] | None) -> None:
    returns = []
    for seed in range(3):
        env = gym.make("Pendulum-v1")
        for name, value in (physics or {}).items():
            setattr(env.unwrapped, {"mass": "m", "length": "l"}[name], value)
        env.reset(seed=10_000 + seed)
        returns.append(sum(float(env.step(np.zeros(1, np.float32))[1]) for _ in range(200)))
    found = evaluate(Still(), SYSTEMS["pendulum"], 3, physics)
    assert found.mean_return == pytest.approx(np.mean(returns), rel=1e-6)
    assert found.upright == 0.0


def test_what_stays_upright_counts_as_upright() -> None:
    task = true_task(SYSTEMS["pendulum"])
    env = gym.make("Pendulum-v1")
    policy = MPCPolicy(env.observation_space, env.action_space, lambda _: 0.0, task=task, horizon=20)
    assert evaluate(policy, SYSTEMS["pendulum"], 3).upright == 1.0


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_planner_starts_wrong_by_a_factor_of_two(name: str) -> None:
    system = SYSTEMS[name]
    task = wrong_task(system)
    true = dict(true_task(system).dynamics.named_parameters())
    for key, value in system.physics.items():
        assert max(value / true[key].item(), true[key].item() / value) == pytest.approx(2.0)
    for key, value in system.own.items():
        assert true[key].item() == pytest.approx(value)
    assert not np.allclose(task.stage_cost.goal.tolist(), true_task(system).stage_cost.goal.tolist())  # type: ignore[union-attr, operator]
    assert find_task(gym.make("Pendulum-v1")).name == "Pendulum-v1"


def test_steps_to_a_threshold() -> None:
    curve = {"steps": [0, 10, 20], "return": [-9.0, -3.0, -4.0]}
    assert first_step_above(curve, "return", -4.0) == 10
    assert first_step_above(curve, "return", 0.0) == math.inf
    assert told([1.0, 2.0, math.inf]) == "2 (1 to not reached)"


def made_up(policy: str, system: str, steps: int, falls: tuple[float, float, float]) -> Record:
    """Good from `steps` on; worlds change the return by `falls`: as it is, told, with its own model."""
    curve = {"steps": [0, steps, 600_000], "return": [-700.0, -150.0, -140.0], "upright": [0.0, 0.9, 1.0]}
    worlds = {name: {world: -140.0 - fall * (world != "as trained") for world in r1._CHANGES} for name, fall in
              zip(("changed", "told", "own"), falls, strict=True)}  # fmt: skip
    return Record(f"{system}-{policy}", {"policy": policy, "system": system, "seed": 0}, {"curve": curve, **worlds}, 1.0)


def test_r1_counts_steps_and_falls() -> None:
    records = [
        made_up("MPCPolicy", "pendulum", 1_000, (5.0, -1.0, 2.0)),
        made_up("MlpPolicy", "pendulum", 20_000, (9.0, 0.0, 0.0)),
        made_up("MPCPolicy", "cartpole", 30_000, (9.0, 3.0, 2.0)),
        made_up("MlpPolicy", "cartpole", 90_000, (5.0, 0.0, 0.0)),
    ]
    claims = r1.claims(r1.rows(records))
    assert [claim.verdict for claim in claims] == [
        "reached", "reached", "not reached", "reached", "partly", "not reached", "not reached"
    ]  # fmt: skip
    assert "MPCPolicy 1000 (1000 to 1000); MlpPolicy 20000 (20000 to 20000): 20 times fewer" in claims[0].ours
    assert "planner 5.0 (from -140.0), network 9.0 (from -140.0)" in claims[3].ours
    assert "learnt numbers changed alike -1.0; the environment's own model, nothing learnt 2.0" in claims[4].ours
    assert len(r1.rows(records)) == 4 * (3 + 3 * len(r1._CHANGES))


def test_r1_needs_a_planner_that_gets_there() -> None:
    """Of two that never do, neither is ten times as fast; a network that does refutes that it wouldn't, however short its run."""
    never = [made_up(policy, "pendulum", 1_000, (0.0, 0.0, 0.0)) for policy in ("MPCPolicy", "MlpPolicy")]
    for record in never:
        record.result["curve"]["return"] = [-700.0] * 3
    short = made_up("MlpPolicy", "cartpole", 90_000, (0.0, 0.0, 0.0))
    short.result["curve"]["steps"][-1] = 100_000
    late = made_up("MlpPolicy, default", "cartpole", 90_000, (0.0, 0.0, 0.0))
    late.result["curve"] = {name: values[:1] for name, values in late.result["curve"].items()}
    verdicts = [claim.verdict for claim in r1.claims(r1.rows([*never, short, late])) if "steps" in claim.claim]
    assert verdicts == ["not reached", "not reached", "new"]


def test_r1_draws_both_systems(tmp_path: Path) -> None:
    (path,) = r1.draw([made_up("MPCPolicy", "pendulum", 1_000, (0.0, 0.0, 0.0))], tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_r1_trains_and_changes_the_world(smoke: Callable[[str], dict[str, Record]]) -> None:
    records = smoke("r1")
    assert list(records) == [
        "pendulum-mpcpolicy-seed0", "pendulum-mlppolicy-seed0", "cartpole-mpcpolicy-seed0", "cartpole-mlppolicy-seed0",
        "cartpole-mlppolicy-default-seed0",
    ]  # fmt: skip
    found = records["pendulum-mpcpolicy-seed0"].result
    assert found["curve"]["steps"] == [0, 256]
    assert set(found["changed"]) == set(found["told"]) == set(found["own"]) == set(r1._CHANGES)
    assert found["changed"]["as trained"] == found["told"]["as trained"]
    assert found["learnt"]["dynamics.mass"] != 0.5


def test_r2_compares_with_the_long_horizon(tmp_path: Path) -> None:
    curve = {"steps": [0, 8192], "return": [-1000.0, -150.0]}
    rewarded = [Record(f"reward-{i}", {"what": "reward", "seed": i}, {"curve": curve, "return": -180.0}, 1.0) for i in (0, 1)]
    taught = [Record(f"plans-{i}", {"what": "plans", "seed": i}, {"return": -150.0 - 2 * i}, 1.0) for i in (0, 1)]
    plain = Record("plain", {"what": "plain", "seed": 0}, {"5": -1100.0, "20": -150.0}, 1.0)
    records = [*rewarded, *taught, plain]
    assert [claim.verdict for claim in r2.claims(r2.rows(records))] == ["reached", "not reached"]
    assert "mean -151.0, 0.7 % below;" in r2.claims(r2.rows(records))[0].ours
    assert r2.claims(r2.rows(records[:-1])) == []
    assert len(r2.rows(records)) == 4 + 4 + 2
    assert r2.draw(records, tmp_path)[0].exists()
    assert len(r2.trials("paper")) == 11


@pytest.mark.slow
def test_r2_learns_from_plans_and_from_reward(smoke: Callable[[str], dict[str, Record]]) -> None:
    trials = {trial.settings["what"]: trial.settings for trial in r2.trials("smoke")}
    found = {record.settings["what"]: record.result for record in smoke("r2").values()}
    states, seed = trials["plans"]["fit"][0], trials["plans"]["seed"]
    untaught = r2._policy(horizon=5, learn=("terminal",), terminal_value=(32, 32))
    nothing = fit_terminal_value(untaught, r2._everywhere(states, seed), 15, TerminalFit(steps=1, learning_rate=1e-12))
    assert found["plans"]["loss"] < 0.8 * nothing  # 50 steps come to 0.65 of the loss of a value of zero
    assert found["reward"]["curve"]["steps"] == [0, 4096]
    assert found["reward"]["curve"]["return"][0] != found["reward"]["curve"]["return"][1]
    assert found["plain"]["20"] > found["plain"]["5"] + 500  # a horizon of 5 doesn't swing up, one of 20 does
