"""`MPCPolicy` as a controller and as a Stable-Baselines3 policy."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import gymnasium as gym
import numpy as np
import pytest
import torch
from controller_data import IDS, each_id, make, near_upright, starts
from gymnasium.envs.classic_control import PendulumEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import ActorCriticPolicy

from dilqr_rl import ControlTask, ILQROptions, QuadraticCost, Solution, find_task
from dilqr_rl.agents import MPCPolicy
from dilqr_rl.agents.environments import make_env
from dilqr_rl.envs import PendulumDynamics

PENDULUM_PARAMETERS = (
    *(f"dynamics.{name}" for name in ("mass", "length", "gravity", "damping", "wind")),
    "stage_cost.weights",
    "stage_cost.goal",
)


def learnt(policy: MPCPolicy) -> set[str]:
    named = {
        name.replace("parametrizations.", "").removesuffix(".original"): p for name, p in policy.problem.named_parameters()
    }
    return {name for name, parameter in named.items() if parameter.requires_grad}


def raw(policy: ActorCriticPolicy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.state_dict().items()}


def assert_same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], rtol=0.0, atol=0.0)


# A controller in one line.


@each_id
def test_for_env_gives_a_policy_of_sb3_that_acts(env_id: str) -> None:
    policy = make(env_id)
    (observation,) = starts(env_id, 1)
    action, _ = policy.predict(observation)
    assert isinstance(policy, ActorCriticPolicy)
    assert policy.problem.horizon == 5
    assert make(env_id, horizon=None).problem.horizon == policy.task.horizon
    assert policy.task.name == env_id
    assert policy.action_space.contains(action)


@pytest.mark.slow
@each_id
def test_for_env_in_a_fresh_process(env_id: str, tmp_path: Path) -> None:
    made = f'gym.make("{env_id}")' if env_id == "Pendulum-v1" else f'gym.make("dilqr_rl.envs:{env_id}")'
    program = f"""
import sys, torch, gymnasium as gym
from dilqr_rl import MPCPolicy
torch.set_num_threads(1)
assert "dilqr_rl.envs" not in sys.modules
env = {made}
print(MPCPolicy.for_env(env, horizon=3).predict(env.reset(seed=0)[0])[0].shape)
"""
    arguments = [sys.executable, "-W", "error::UserWarning", "-c", program]
    run = subprocess.run(arguments, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert run.stdout == "(1,)\n", run.stderr


def test_an_environment_without_a_model_is_refused_by_name() -> None:
    env = gym.make("FrozenLake-v1")
    with pytest.raises(ValueError, match=r"no model is known for 'FrozenLake-v1'; known ids: .*Pendulum-v1"):
        MPCPolicy.for_env(env)


def test_for_env_takes_a_task_for_an_environment_without_a_model() -> None:
    task = make("Pendulum-v1").task
    unregistered = PendulumEnv()
    with pytest.raises(ValueError, match="no model is known for 'PendulumEnv'"):
        MPCPolicy.for_env(unregistered)
    policy = MPCPolicy.for_env(unregistered, task=task)
    assert policy.task is task
    assert policy.settings["warm_start"]


@each_id
def test_plan_gives_the_whole_solution(env_id: str) -> None:
    policy, seen = make(env_id), starts(env_id, 3)
    plan = policy.plan(seen)
    n, m = policy.task.state_size, policy.task.control_size
    assert isinstance(plan, Solution)
    assert plan.states.shape == (3, 6, n)
    assert plan.controls.shape == (3, 5, m)
    assert plan.converged.all()
    single = policy.plan(seen[1])
    assert single.states.shape == (6, n)
    torch.testing.assert_close(single.controls, plan.controls[1], rtol=0.0, atol=1e-6)


@each_id
def test_a_plan_is_differentiable_in_the_learnt_physics(env_id: str) -> None:
    policy = make(env_id, options=ILQROptions(tolerance=1e-10))
    seen = torch.as_tensor(starts(env_id, 3) if "CartPole" in env_id else near_upright(3), dtype=torch.float64)
    weights = torch.linspace(1.0, 2.0, 15, dtype=torch.float64).view(3, 5, 1)

    def value() -> torch.Tensor:
        return (weights * policy.plan(seen).controls).sum()

    value().backward()
    parameters = [p for p in policy.problem.parameters() if p.requires_grad]
    assert len(parameters) >= 3
    for parameter in parameters:
        step, values = 1e-5, []
        for sign in (1, -2, 1):  # forth, back, and home
            with torch.no_grad():
                parameter.add_(sign * step)
            values.append(value().item())
        numeric = (values[0] - values[1]) / (2 * step)
        # Differences of solutions that are exact to 1e-10 divided by a step of 1e-5.
        assert parameter.grad is not None
        assert parameter.grad.item() == pytest.approx(numeric, rel=1e-5, abs=1e-4)
        assert parameter.grad.item() != 0.0


# What is learnt.


@given(names=st.sets(st.sampled_from(PENDULUM_PARAMETERS)))
@settings(max_examples=20)
def test_exactly_what_learn_names_requires_a_gradient(names: set[str]) -> None:
    assert learnt(make(learn=tuple(names))) == names


@pytest.mark.parametrize(
    ("learn", "expected"),
    [
        (("physics",), {"dynamics.mass", "dynamics.length", "dynamics.gravity"}),  # the others are zero
        (("weights",), {"stage_cost.weights"}),
        (("goal",), {"stage_cost.goal"}),
        (("goal", "dynamics.wind"), {"stage_cost.goal", "dynamics.wind"}),
        ((), set()),
    ],
)
def test_learn_has_names_for_groups(learn: tuple[str, ...], expected: set[str]) -> None:
    assert learnt(make(learn=learn)) == expected


@pytest.mark.parametrize("name", ["dynamics.colour", "mass", "terminal", "dynamics", "", "stage_cost"])
def test_a_name_that_the_problem_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"learn: the problem has nothing called '{name}'; it has .*physics.*dynamics\.mass"):
        make(learn=(name,))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_must_be_positive_stays_so_after_a_huge_step(sign: float) -> None:
    policy = make(learn=("physics", "weights"))
    optimiser = torch.optim.Adam(policy.problem.parameters(), lr=50.0)
    for parameter in policy.problem.parameters():
        parameter.grad = sign * torch.ones_like(parameter)
    optimiser.step()
    values = policy.parameter_values()
    for name in ("dynamics.mass", "dynamics.length", "stage_cost.weights"):
        assert (values[name] > 0).all()
        assert not torch.isclose(values[name], make().parameter_values()[name]).any()


def test_learning_does_not_change_what_a_parameter_is_worth() -> None:
    plain, every = make(learn=()), make(learn=PENDULUM_PARAMETERS)
    assert plain.parameter_values().keys() == every.parameter_values().keys() == set(PENDULUM_PARAMETERS)
    for name, value in plain.parameter_values().items():
        torch.testing.assert_close(every.parameter_values()[name], value, rtol=1e-15, atol=0.0)


def test_the_values_are_a_snapshot() -> None:
    policy = make(learn=("physics", "goal"))
    before = policy.parameter_values()
    with torch.no_grad():
        for parameter in policy.problem.parameters():
            parameter.add_(0.5)
    learnt = ("dynamics.mass", "dynamics.length", "dynamics.gravity", "stage_cost.goal")
    for name, value in policy.parameter_values().items():
        assert torch.equal(before[name], value) == (name not in learnt), name


def test_physics_replace_the_models() -> None:
    policy, seen = make(physics={"mass": 2.0, "gravity": -3.0}), near_upright(1)
    values = policy.parameter_values()
    assert values["dynamics.mass"].item() == pytest.approx(2.0, rel=1e-15)
    assert values["dynamics.gravity"].item() == pytest.approx(-3.0, rel=1e-15)
    assert values["dynamics.length"].item() == 1.0
    assert not np.allclose(policy.predict(seen)[0], make().predict(seen)[0])


def test_neither_the_environment_nor_another_policy_shares_the_parameters() -> None:
    env = make_env(IDS[0])
    task = find_task(env)
    first, second = (MPCPolicy(env.observation_space, env.action_space, lambda _: 0.0, task=task, horizon=5) for _ in range(2))
    with torch.no_grad():
        for parameter in first.problem.parameters():
            parameter.add_(1.0)
    assert second.parameter_values()["dynamics.mass"] == 1.0
    assert find_task(env).dynamics.mass == task.dynamics.mass == 1.0


@pytest.mark.parametrize(
    ("physics", "message"),
    [
        ({"colour": 1.0}, "physics: 'colour' is no parameter of this model; it has .*'mass'"),
        ({"mass": -1.0}, "physics: expected a number above 0 for 'mass', got -1.0"),
        ({"length": 0.0}, "physics: expected a number above 0 for 'length', got 0.0"),
        ({"gravity": float("nan")}, "physics: expected a finite number for 'gravity', got nan"),
        ({"mass": float("inf")}, "physics: expected a number above 0 for 'mass', got inf"),
    ],
)
def test_impossible_physics_are_refused(physics: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(physics=physics)


# A policy of SB3.


@each_id
def test_deepcopy_and_cloudpickle_act_alike(env_id: str) -> None:
    policy, seen = make(env_id, learn=("physics", "goal"), physics={"gravity": 9.0}), starts(env_id, 3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.01)
    for other in (copy.deepcopy(policy), cloudpickle.loads(cloudpickle.dumps(policy))):
        np.testing.assert_array_equal(other.predict(seen)[0], policy.predict(seen)[0])
        assert_same_tensors(raw(other), raw(policy))
        assert learnt(other) == learnt(policy)
        assert other.settings == policy.settings
        assert other.optimizer.state_dict() == policy.optimizer.state_dict()
        owned = {id(p) for group in other.optimizer.param_groups for p in group["params"]}
        assert owned == {id(p) for p in other.parameters()}
        assert not owned & {id(p) for p in policy.parameters()}


def test_every_argument_comes_back() -> None:
    given: dict[str, Any] = {
        "horizon": 4,
        "physics": {"mass": 2.0},
        "learn": ("goal", "dynamics.mass"),
        "options": ILQROptions(max_iterations=7, tolerance=1e-3),
        "gradient": "diffmpc",
        "warm_start": False,
        "net_arch": {"pi": [], "vf": [3]},
        "log_std_init": -1.0,
        "activation_fn": torch.nn.ReLU,
        "optimizer_kwargs": {"eps": 1e-3},
    }
    policy = make(**given)
    arguments = policy.constructor_arguments()
    assert {name: arguments[name] for name in given} == given
    rebuilt = MPCPolicy(**arguments)
    rebuilt.load_state_dict(policy.state_dict())
    again = rebuilt.constructor_arguments()
    assert again.keys() == arguments.keys()
    for name in arguments.keys() - {"lr_schedule"}:
        assert again[name] == arguments[name], name
    np.testing.assert_array_equal(rebuilt.predict(near_upright(2))[0], policy.predict(near_upright(2))[0])
    assert rebuilt.planner.options == given["options"]
    assert rebuilt.planner.gradient == "diffmpc"
    assert rebuilt.problem.horizon == 4


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_learning_at_rate_zero_changes_nothing(algorithm: type[PPO | A2C]) -> None:
    kwargs: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 1} if algorithm is PPO else {"n_steps": 8}
    model = algorithm(
        MPCPolicy,
        "Pendulum-v1",
        policy_kwargs={"task": "Pendulum-v1", "horizon": 5},
        learning_rate=0.0,
        device="cpu",
        seed=0,
        **kwargs,
    )
    assert isinstance(model.policy, MPCPolicy)
    before = raw(model.policy)
    model.learn(16 if algorithm is PPO else 8)
    assert_same_tensors(raw(model.policy), before)
    if algorithm is PPO:
        assert model.logger.name_to_value["train/approx_kl"] == 0.0
    owned = {id(p) for group in model.policy.optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in model.policy.problem.parameters()} <= owned


def test_ppo_moves_what_is_learnt_alone() -> None:
    env = make_env("dilqr_rl/CartPole-v0")  # its forces are seldom at their bounds, where nothing can be learnt from them
    kwargs = {"task": find_task(env), "horizon": 5, "learn": ("dynamics.cart_mass", "goal"), "physics": {"cart_mass": 1.2}}
    model = PPO(MPCPolicy, env, policy_kwargs=kwargs, n_steps=16, batch_size=16, n_epochs=1, device="cpu", seed=0)
    assert isinstance(model.policy, MPCPolicy)
    before = model.policy.parameter_values()
    model.learn(16)
    moved = {name for name, value in model.policy.parameter_values().items() if not torch.equal(value, before[name])}
    assert moved == {"dynamics.cart_mass", "stage_cost.goal"}


def test_a_missing_task_is_named() -> None:
    env = gym.make("Pendulum-v1")
    with pytest.raises(
        ValueError, match=r"task: expected a ControlTask or an environment's id, got None.*policy_kwargs.*for_env\(env\)"
    ):
        MPCPolicy(env.observation_space, env.action_space, lambda _: 3e-4)


@pytest.mark.parametrize(
    ("observation_space", "action_space", "message"),
    [
        (gym.spaces.Discrete(3), gym.spaces.Box(-2.0, 2.0, (1,)), "observation_space: expected a flat Box"),
        (gym.spaces.Box(-1.0, 1.0, (4, 3)), gym.spaces.Box(-2.0, 2.0, (1,)), "observation_space: expected a flat Box"),
        (gym.spaces.Box(-1.0, 1.0, (4,)), gym.spaces.Box(-2.0, 2.0, (1,)), r"observation_space: .*but its states have \(3,\)"),
        (gym.spaces.Box(-1.0, 1.0, (3,)), gym.spaces.Discrete(3), r"action_space: plans are made of real numbers"),
        (gym.spaces.Box(-1.0, 1.0, (3,)), gym.spaces.Box(-2.0, 2.0, (2,)), r"action_space: expected a Box of shape \(1,\)"),
    ],
)
def test_spaces_that_do_not_fit_the_model_are_refused(observation_space: Any, action_space: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MPCPolicy(observation_space, action_space, lambda _: 0.0, task="Pendulum-v1")


def test_state_dependent_noise_is_around_the_plan() -> None:
    policy, seen = make(use_sde=True, log_std_init=-4.0), np.repeat(near_upright(1), 50, axis=0)
    mean, _ = policy.predict(seen)
    policy.reset_noise(50)
    sampled, _ = policy.predict(seen, deterministic=False)
    assert len(np.unique(sampled)) == 50
    assert 0 < np.abs(sampled - mean).max() < 0.2


def test_squashing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"squash_output: expected False, got True\. Plans keep to the bounds"):
        make(use_sde=True, squash_output=True)


def test_layers_for_the_actor_are_refused() -> None:
    with pytest.raises(ValueError, match=r"net_arch: expected widths of the critic's layers, .*'pi': \[64\].*the actor plans"):
        make(net_arch={"pi": [64], "vf": [64]})


def test_a_plan_that_diverges_spoils_no_gradient_through_the_critic() -> None:
    class Diverging(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

        def forward(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
            return self.k * (x + u) * torch.where(x.abs() > 5, 1e30, 1.0) ** 12

    space = gym.spaces.Box(-10.0, 10.0, (1,))
    task = ControlTask(
        "Diverging", Diverging(), QuadraticCost([1.0, 1.0], [0.0, 0.0]), lambda seen: seen, horizon=3, state_size=1, control_size=1,
        u_min=-1.0, u_max=1.0,
    )  # fmt: skip
    actions = gym.spaces.Box(-1.0, 1.0, (1,))
    policy = MPCPolicy(space, actions, lambda _: 1e-3, task=task, learn=("dynamics.k",), plan_cost_feature=True)
    seen = torch.tensor([[0.3], [8.0]])
    assert not policy.plan(seen).cost[1].isfinite()
    values, log_prob, _ = policy.evaluate_actions(seen, torch.zeros(2, 1))
    (values.sum() + log_prob.sum()).backward()
    gradients = {name: parameter.grad for name, parameter in policy.named_parameters() if parameter.grad is not None}
    (of_k,) = [gradient for name, gradient in gradients.items() if "dynamics" in name]
    assert of_k != 0  # through the other problem's control and cost
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@pytest.mark.parametrize("change", [{"control_per_action": 1.0}, {"horizon": 7}])
def test_a_changed_task_is_kept_or_refused(change: dict[str, Any], tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1")
    task = replace(find_task(env), **change)
    policy = MPCPolicy(env.observation_space, env.action_space, lambda _: 0.0, task=task)
    policy.save(tmp_path / "policy.safetensors")
    loaded = MPCPolicy.load(tmp_path / "policy.safetensors")
    assert loaded.problem.horizon == policy.problem.horizon
    np.testing.assert_array_equal(loaded.predict(near_upright(2))[0], policy.predict(near_upright(2))[0])


def test_a_task_with_other_functions_is_not_written(tmp_path: Path) -> None:
    env = gym.make("Pendulum-v1")
    task = find_task(env)
    slower = replace(task, dynamics=PendulumDynamics(time_step=0.02))
    policy = MPCPolicy(env.observation_space, env.action_space, lambda _: 0.0, task=slower)
    with pytest.raises(ValueError, match="policy: expected the model of Pendulum-v1, got one with other settings or functions"):
        policy.save(tmp_path / "policy.safetensors")
