"""Two poles on a cart: their equations against a Lagrangian, their energy, their environment, and the expert that swings up."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sympy
import torch
from torch import Tensor
from torch.func import jvp

from dilqr_rl import MPCPolicy, compile_dynamics, find_task
from dilqr_rl.envs import DoubleCartPoleDynamics, DoubleCartPoleEnv

ID = DoubleCartPoleEnv.env_id
PHYSICS = {"cart_mass": 1.4, "mass_1": 0.3, "mass_2": 0.2, "length_1": 0.8, "length_2": 1.1, "gravity": 9.1}
UPRIGHT = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
HANGING = [0.0, 0.0, -1.0, 0.0, 0.0, -1.0, 0.0, 0.0]


def make(**arguments: Any) -> Any:
    return gym.make(ID, **arguments)


def random_batch(size: int) -> tuple[Tensor, Tensor]:
    """States (size, 8) and forces (size, 1)."""
    generator = np.random.default_rng(0)
    x = 2.0 * generator.standard_normal((size, 8))
    for place in (2, 5):
        x[:, place], x[:, place + 1] = np.cos(x[:, place]), np.sin(x[:, place])
    return torch.from_numpy(x), torch.from_numpy(10.0 * generator.standard_normal((size, 1)))


def energies() -> tuple[Any, Any, list[Any], list[Any], list[Any]]:
    """Kinetic and potential energy in SymPy, physics in their order, coordinates (x, θ1, θ2) and their rates.

    A uniform rod has the inertia of its mass at its centre, and m l²/12 about it.
    """
    physics = list(sympy.symbols("M m1 m2 l1 l2 g"))
    cart, mass_1, mass_2, length_1, length_2, gravity = physics
    q, dq = list(sympy.symbols("x a b")), list(sympy.symbols("dx da db"))

    def along(angle: Any, length: Any) -> Any:
        return sympy.Matrix([length * sympy.sin(angle), length * sympy.cos(angle)])

    hinge = sympy.Matrix([q[0], 0])
    centres = [hinge + along(q[1], length_1 / 2), hinge + along(q[1], length_1) + along(q[2], length_2 / 2)]
    kinetic, potential = cart * dq[0] ** 2 / 2, sympy.Integer(0)
    for centre, mass, length, rate in zip(centres, (mass_1, mass_2), (length_1, length_2), dq[1:], strict=True):
        speed = centre.jacobian(q) * sympy.Matrix(dq)
        kinetic += mass * (speed.T * speed)[0] / 2 + mass * length**2 / 12 * rate**2 / 2
        potential += mass * gravity * centre[1]
    return kinetic, potential, physics, q, dq


def coordinates(x: np.ndarray) -> list[np.ndarray]:
    """(x, θ1, θ2, x', θ1', θ2'), each (N,), of states (N, 8)."""
    return [x[:, 0], np.arctan2(x[:, 3], x[:, 2]), np.arctan2(x[:, 6], x[:, 5]), x[:, 1], x[:, 4], x[:, 7]]


def energy(p: dict[str, float], x: np.ndarray) -> np.ndarray:
    """(N,) of states (N, 8)."""
    kinetic, potential, physics, q, dq = energies()
    values: np.ndarray = sympy.lambdify((*physics, *q, *dq), kinetic + potential)(*p.values(), *coordinates(x))
    return values


def lagrangian_accelerations(p: dict[str, float], x: np.ndarray, u: np.ndarray) -> np.ndarray:
    """(x'', θ1'', θ2'') (N, 3), from M(q) q'' + (dM/dt) q' - dT/dq + dV/dq = (u, 0, 0), solved by NumPy."""
    kinetic, potential, physics, q, dq = energies()
    speeds = sympy.Matrix(dq)
    inertia = sympy.hessian(kinetic, dq)
    momentum = sympy.Matrix([kinetic.diff(rate) for rate in dq])
    load = sympy.Matrix([(kinetic - potential).diff(each) for each in q]) - momentum.jacobian(q) * speeds
    functions = [sympy.lambdify((*physics, *q, *dq), each) for each in (inertia, load)]
    rows = []
    for *numbers, force in zip(*coordinates(x), u[:, 0], strict=True):
        matrix, drive = (function(*p.values(), *numbers) for function in functions)
        rows.append(np.linalg.solve(matrix, drive[:, 0] + np.array([force, 0.0, 0.0])))
    return np.array(rows)


def test_it_follows_from_lagranges_equations() -> None:
    dynamics = DoubleCartPoleDynamics(**PHYSICS).requires_grad_(False)
    x, u = random_batch(50)

    def after(time: Tensor) -> Tensor:
        dynamics.time_step = time  # type: ignore[assignment]
        return dynamics(x, u)

    start, change = jvp(after, (torch.zeros((), dtype=torch.float64),), (torch.ones((), dtype=torch.float64),))
    acceleration = torch.from_numpy(lagrangian_accelerations(PHYSICS, x.numpy(), u.numpy()))
    _, speed, cos_1, sin_1, rate_1, cos_2, sin_2, rate_2 = x.T
    poles = (-sin_1 * rate_1, cos_1 * rate_1, acceleration[:, 1], -sin_2 * rate_2, cos_2 * rate_2, acceleration[:, 2])
    torch.testing.assert_close(start, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(change, torch.stack((speed, acceleration[:, 0], *poles), 1), rtol=1e-9, atol=1e-9)


def test_a_step_is_of_fourth_order() -> None:
    x, u = random_batch(50)
    ends = []
    for halvings in (0, 1, 5):
        dynamics, end = DoubleCartPoleDynamics(**PHYSICS, time_step=0.005 / 2**halvings).requires_grad_(False), x
        for _ in range(2**halvings):
            end = dynamics(end, u)
        ends.append(end)
    errors = [(end - ends[-1]).norm() for end in ends[:2]]
    assert errors[0] / errors[1] == pytest.approx(16.0, rel=0.1)  # 16 as the time step vanishes


def test_poles_that_tumble_freely_keep_their_energy() -> None:
    envs = gym.make_vec(ID, num_envs=200, vectorization_mode="vector_entry_point")
    _, info = envs.reset(seed=0)
    start = info["state"]
    physics = DoubleCartPoleDynamics().physics
    least = energy(physics, np.array([HANGING]))
    losses = {}
    for time_step in (0.04, 0.02):
        step, x = compile_dynamics(DoubleCartPoleDynamics(time_step=time_step)), start
        for _ in range(round(5.0 / time_step)):
            x = step(x, np.zeros((200, 1)))
        losses[time_step] = np.abs(energy(physics, x) - energy(physics, start)) / (energy(physics, start) - least)
    assert np.median(losses[0.04]) < 0.03  # the docstring says 2 %
    assert np.median(losses[0.02]) < 0.003
    assert np.quantile(losses[0.04], 0.95) < 0.25


def test_a_swing_below_the_cart_keeps_its_energy() -> None:
    step, physics = compile_dynamics(DoubleCartPoleDynamics()), DoubleCartPoleDynamics().physics
    angle = math.pi - 0.6
    start = np.array([[0.0, 0.0, math.cos(angle), math.sin(angle), 0.0, math.cos(angle), math.sin(angle), 0.0]])
    least, x = energy(physics, np.array([HANGING])), start
    for _ in range(200):
        x = step(x, np.zeros((1, 1)))
    assert (energy(physics, x) - least) / (energy(physics, start) - least) == pytest.approx(1.0, abs=0.01)


def test_the_sum_of_all_moves_as_the_force_says() -> None:
    p = PHYSICS
    step = compile_dynamics(DoubleCartPoleDynamics(**p, time_step=1e-3))
    x = np.array([0.3, -0.2, math.cos(0.5), math.sin(0.5), 1.0, math.cos(-2.0), math.sin(-2.0), -1.5])

    def momentum(x: np.ndarray) -> float:  # horizontal; gravity doesn't change it
        first, second = p["length_1"] * x[2] * x[4], p["length_2"] * x[5] * x[7]
        poles = p["mass_1"] * (x[1] + 0.5 * first) + p["mass_2"] * (x[1] + first + 0.5 * second)
        return float(p["cart_mass"] * x[1] + poles)

    before = momentum(x)
    for _ in range(1000):
        x = step(x, np.array([1.5]))
    assert momentum(x) - before == pytest.approx(1.5, abs=1e-7)  # 1.5 N for 1 s


@pytest.mark.parametrize("start", [UPRIGHT, HANGING])
def test_it_rests_where_it_is_in_balance(start: list[float]) -> None:
    dynamics = DoubleCartPoleDynamics(**PHYSICS).requires_grad_(False)
    x = dynamics(torch.tensor(start, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    np.testing.assert_allclose(x, start, atol=1e-15)


def test_a_weightless_upper_pole_leaves_the_lower_one_alone() -> None:
    """The lower pole and the cart then are a cart-pole, whose accelerations are known (Florian 2007)."""
    dynamics = DoubleCartPoleDynamics(1.0, 0.1, 1e-12, 1.0, 0.7, 9.8).requires_grad_(False)
    places, rates, force = torch.tensor([[0.1, 0.7, -1.9], [0.2, 1.3, -0.4], [3.0, 0.0, 0.0]], dtype=torch.float64)
    found = dynamics.accelerations(places, rates, force[:1])
    push = (3.0 + 0.05 * 1.3**2 * math.sin(0.7)) / 1.1
    turn = (9.8 * math.sin(0.7) - push * math.cos(0.7)) / (0.5 * (4.0 / 3.0 - 0.1 * math.cos(0.7) ** 2 / 1.1))
    expected = [push - 0.05 * turn * math.cos(0.7) / 1.1, turn]
    np.testing.assert_allclose(found[:2], expected, rtol=1e-9)


def test_the_compiled_step_is_native_and_the_same() -> None:
    dynamics = DoubleCartPoleDynamics(**PHYSICS).requires_grad_(False)
    step = compile_dynamics(dynamics)
    x, u = random_batch(100)
    assert step.native
    # Rates of this size amplify rounding.
    np.testing.assert_allclose(step(x.numpy(), u.numpy()), dynamics(x, u), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"physics": {"cart_mass": 0.0}}, r"cart_mass: expected a finite number above 0, got 0\.0"),
        ({"physics": {"mass_1": -0.1}}, r"mass_1: expected a finite number above 0, got -0\.1"),
        ({"physics": {"mass_2": 0.0}}, r"mass_2: expected a finite number above 0, got 0\.0"),
        ({"physics": {"length_1": 0.0}}, r"length_1: expected a finite number above 0, got 0\.0"),
        ({"physics": {"length_2": math.inf}}, r"length_2: expected a finite number above 0, got inf"),
        ({"physics": {"gravity": math.nan}}, r"gravity: expected a finite number, got nan"),
        ({"physics": {"length": 1.0}}, r"physics: expected names among .*'gravity'\], got \['length'\]"),
        ({"max_force": 0.0}, r"max_force: expected a finite number above 0, got 0\.0"),
        ({"track_limit": 0.9}, r"track_limit: expected a finite number of at least 1, got 0\.9"),
        ({"max_speed": 0.9}, r"max_speed: expected a finite number of at least 1, got 0\.9"),
        ({"max_rate": 1.9}, r"max_rate: expected a finite number of at least 2, got 1\.9"),
        ({"preset": "juggle"}, r"preset: expected one of \['swing-up', 'balance'\], got 'juggle'"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make(**arguments)


def test_reward_is_exp_of_minus_the_cost_that_plans_minimise() -> None:
    env = make()
    task: Any = find_task(env)
    np.testing.assert_array_equal(task.stage_cost.weights.detach(), [0.1, 0.1, 1.0, 1.0, 0.01, 1.0, 1.0, 0.01, 0.001])
    np.testing.assert_array_equal(task.stage_cost.goal.detach(), [*UPRIGHT, 0.0])
    _, info = env.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1.0, 1.0, (20, 1)):
        state = torch.from_numpy(info["state"])
        _, reward, _, _, info = env.step(action)
        with torch.no_grad():
            cost = task.stage_cost(state, torch.from_numpy(20.0 * action))
        assert reward == pytest.approx(math.exp(-cost.item()), rel=1e-12)


@pytest.mark.parametrize(
    ("preset", "highest"),
    [
        (None, (1.0, math.pi, math.pi, 1.0, 2.0, 2.0)),
        ("swing-up", (1.0, math.pi, math.pi, 1.0, 2.0, 2.0)),
        ("balance", (0.5, 0.3, 0.3, 0.5, 0.5, 0.5)),
    ],
)
def test_starts_cover_the_ranges_of_the_preset(preset: str | None, highest: tuple[float, ...]) -> None:
    env = make(preset=preset)
    starts = np.array([env.reset(seed=seed if seed == 0 else None)[1]["state"] for seed in range(500)])
    for values, high in zip(coordinates(starts), highest, strict=True):
        assert np.abs(values).max() <= high
        assert values.max() > 0.95 * high
        assert values.min() < -0.95 * high


@pytest.mark.parametrize(
    ("limits", "places"), [({"track_limit": 1.1}, (0,)), ({"max_speed": 1.1}, (1,)), ({"max_rate": 2.1}, (4, 7))]
)
def test_it_ends_where_the_observation_space_ends(limits: dict[str, float], places: tuple[int, ...]) -> None:
    (bound,) = limits.values()
    env = make(**limits)
    _, info = env.reset(seed=0)
    terminated = False
    while not terminated:
        assert np.abs(info["state"][[*places]]).max() <= bound
        observation, reward, terminated, truncated, info = env.step(np.ones(1))
        assert not truncated
    assert np.abs(info["state"][[*places]]).max() > bound
    assert np.abs(observation[[*places]]).max() == np.float32(bound)
    assert env.observation_space.contains(observation)
    assert reward > 0.0


def test_the_picture_shows_both_poles_where_they_lean() -> None:
    env = make(render_mode="rgb_array")
    frames = []
    for angle_1, angle_2 in ((0.0, 0.0), (0.0, 0.5 * math.pi), (0.0, -0.5 * math.pi)):
        poles = [math.cos(angle_1), math.sin(angle_1), 0.0, math.cos(angle_2), math.sin(angle_2), 0.0]
        env.reset(options={"state": [0.0, 0.0, *poles]})
        frames.append(env.render().astype(int))
    right, left = (np.nonzero(np.abs(frame - frames[0]).sum(-1) > 100)[1].mean() for frame in frames[1:])
    assert left < 250 < right


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["swing-up", "balance"])
def test_the_expert_balances_both_poles_from_any_start(preset: str) -> None:
    policy, count = MPCPolicy.for_env(make(preset=preset)), 10
    envs = gym.make_vec(ID, num_envs=count, vectorization_mode="vector_entry_point", preset=preset, max_episode_steps=400)
    observation, info = envs.reset(seed=0)
    assert preset == "balance" or ((info["state"][:, 2] < 0.0) & (info["state"][:, 5] < 0.0)).any()  # some start hanging
    state, at_bound = None, np.zeros(count, bool)
    for _ in range(320):  # the cart takes its time: 0.17 m are left after 200 steps, 0.06 after 250, 0.02 after 300
        action, state = policy.predict(observation, state)
        observation, _, terminated, _, info = envs.step(action)
        at_bound |= (np.abs(action) == 1.0).any(-1)
        assert not terminated.any()
    np.testing.assert_allclose(info["state"], np.tile(UPRIGHT, (count, 1)), atol=0.02)
    assert at_bound.any()  # bounds matter
