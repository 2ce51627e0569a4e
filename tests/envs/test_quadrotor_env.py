"""The quadrotor: its equations against a Lagrangian and closed forms, its environment, and the expert that catches it."""

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
from dilqr_rl.envs import QuadrotorDynamics, QuadrotorEnv

ID = QuadrotorEnv.env_id
PHYSICS = {"mass": 0.8, "inertia": 0.04, "arm": 0.25, "gravity": 9.1, "max_thrust": 7.0, "drag": 0.3}


def make(**arguments: Any) -> Any:
    return gym.make(ID, **arguments)


def random_batch(size: int) -> tuple[Tensor, Tensor]:
    """States (size, 7) and throttles (size, 2)."""
    generator = np.random.default_rng(0)
    x = 2.0 * generator.standard_normal((size, 7))
    x[:, 4], x[:, 5] = np.cos(x[:, 4]), np.sin(x[:, 4])
    return torch.from_numpy(x), torch.from_numpy(generator.uniform(-1.0, 1.0, (size, 2)))


def roll(dynamics: QuadrotorDynamics, start: list[float], throttles: list[float], steps: int) -> Tensor:
    x, u = torch.tensor(start, dtype=torch.float64), torch.tensor(throttles, dtype=torch.float64)
    with torch.no_grad():
        for _ in range(steps):
            x = dynamics(x, u)
    return x


def lagrangian_accelerations(p: dict[str, float], x: Tensor, u: Tensor) -> np.ndarray:
    """(x'', y'', θ'') (N, 3), derived from the energies and from the power of the rotors' forces and of the drag."""
    t, m, inertia, arm, g, thrust, drag, left, right = sympy.symbols("t m I a g F d l r")
    q = [sympy.Function(name)(t) for name in ("x", "y", "theta")]
    place, angle = sympy.Matrix(q[:2]), q[2]
    along, across = sympy.Matrix([sympy.sin(angle), sympy.cos(angle)]), sympy.Matrix([sympy.cos(angle), -sympy.sin(angle)])
    rates = [each.diff(t) for each in q]
    kinetic = m * (rates[0] ** 2 + rates[1] ** 2) / 2 + inertia * rates[2] ** 2 / 2
    lagrangian = kinetic - m * g * q[1]
    pushes = [(place - arm * across, left), (place + arm * across, right)]
    forces = [(point, thrust * (1 + throttle) / 2 * along) for point, throttle in pushes]
    forces.append((place, -drag * place.diff(t)))
    accelerations = []
    for each, rate in zip(q, rates, strict=True):
        drive = sum((point.diff(each).T * force)[0] for point, force in forces)
        equation = lagrangian.diff(rate).diff(t) - lagrangian.diff(each) - drive
        accelerations.append(sympy.solve(equation, rate.diff(t))[0])
    values = [p[name] for name in ("mass", "inertia", "arm", "gravity", "max_thrust", "drag")]
    numbers = dict(zip((m, inertia, arm, g, thrust, drag), values, strict=True))
    function = sympy.lambdify((*rates, *q, left, right), [each.subs(numbers) for each in accelerations])
    place_x, speed_x, place_y, speed_y, cos, sin, rate = x.numpy().T
    return np.stack(
        np.broadcast_arrays(*function(speed_x, speed_y, rate, place_x, place_y, np.arctan2(sin, cos), *u.numpy().T)), 1
    )


def test_it_follows_from_lagranges_equations() -> None:
    dynamics = QuadrotorDynamics(**PHYSICS).requires_grad_(False)
    x, u = random_batch(50)

    def after(time: Tensor) -> Tensor:
        dynamics.time_step = time  # type: ignore[assignment]
        return dynamics(x, u)

    start, change = jvp(after, (torch.zeros((), dtype=torch.float64),), (torch.ones((), dtype=torch.float64),))
    acceleration = torch.from_numpy(lagrangian_accelerations(PHYSICS, x, u))
    expected = torch.stack(
        (x[:, 1], acceleration[:, 0], x[:, 3], acceleration[:, 1], -x[:, 5] * x[:, 6], x[:, 4] * x[:, 6], acceleration[:, 2]), 1
    )
    torch.testing.assert_close(start, x, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(change, expected, rtol=1e-9, atol=1e-9)


def test_a_step_is_of_second_order() -> None:
    x, u = random_batch(50)
    ends = []
    for halvings in (0, 1, 8):
        dynamics, end = QuadrotorDynamics(**PHYSICS, time_step=0.02 / 2**halvings).requires_grad_(False), x
        for _ in range(2**halvings):
            end = dynamics(end, u)
        ends.append(end)
    errors = [(end - ends[-1]).norm() for end in ends[:2]]
    assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.05)  # 4 as the time step vanishes


def test_without_thrust_and_drag_it_falls_freely_while_it_turns() -> None:
    dynamics = QuadrotorDynamics(drag=0.0)
    end = roll(dynamics, [1.0, 2.0, 3.0, -1.0, math.cos(0.4), math.sin(0.4), 1.5], [-1.0, -1.0], 40)
    expected = [1.0 + 2.0 * 2.0, 2.0, 3.0 - 2.0 - 4.9 * 4.0, -1.0 - 9.8 * 2.0, math.cos(3.4), math.sin(3.4), 1.5]
    np.testing.assert_allclose(end, expected, rtol=1e-13, atol=1e-12)


def test_with_the_defaults_zero_throttles_hover() -> None:
    start = [1.0, 0.0, -2.0, 0.0, 1.0, 0.0, 0.0]
    np.testing.assert_allclose(roll(QuadrotorDynamics(), start, [0.0, 0.0], 200), start, rtol=0.0, atol=1e-12)


def test_opposite_throttles_turn_it_clockwise_as_a_constant_torque_does() -> None:
    steps, share = 30, 0.01
    end = roll(QuadrotorDynamics(), [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -0.2], [share, -share], steps)
    acceleration, time = 0.3 * 9.8 * share / 0.05, 0.05 * steps
    angle = -0.2 * time + 0.5 * acceleration * time**2
    np.testing.assert_allclose(end[4:], [math.cos(angle), math.sin(angle), -0.2 + acceleration * time], rtol=1e-12)


def test_drag_slows_it_exponentially() -> None:
    end = roll(QuadrotorDynamics(drag=0.5, gravity=0.0), [0.0, 3.0, 0.0, -2.0, 1.0, 0.0, 0.0], [-1.0, -1.0], 40)
    share = math.exp(-0.5 * 2.0)
    expected = [3.0 * (1.0 - share) / 0.5, 3.0 * share, -2.0 * (1.0 - share) / 0.5, -2.0 * share]
    np.testing.assert_allclose(end[:4], expected, rtol=1e-4)  # the midpoint rule errs by (drag h)²/12 of the exponent


@pytest.mark.parametrize("drag", [1.0, 1e2, 1e6])
def test_no_drag_is_too_strong(drag: float) -> None:
    end = roll(QuadrotorDynamics(drag=drag, gravity=0.0), [0.0, 3.0, 0.0, -2.0, 1.0, 0.0, 0.0], [-1.0, -1.0], 1000)
    assert abs(end[1]) <= 3.0
    assert abs(end[3]) <= 2.0


def test_the_compiled_step_is_native_and_the_same() -> None:
    dynamics = QuadrotorDynamics(**PHYSICS).requires_grad_(False)
    step = compile_dynamics(dynamics)
    x, u = random_batch(100)
    assert step.native
    np.testing.assert_allclose(step(x.numpy(), u.numpy()), dynamics(x, u), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("physics", "message"),
    [
        ({"mass": 0.0}, r"mass: expected a finite number above 0, got 0\.0"),
        ({"inertia": -1.0}, r"inertia: expected a finite number above 0, got -1\.0"),
        ({"arm": 0.0}, r"arm: expected a finite number above 0, got 0\.0"),
        ({"max_thrust": math.nan}, r"max_thrust: expected a finite number above 0, got nan"),
        ({"drag": -0.1}, r"drag: expected a finite number of at least 0, got -0\.1"),
        ({"wind": 1.0}, r"physics: expected names among .*'drag'\], got \['wind'\]"),
    ],
)
def test_impossible_physics_are_refused(physics: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make(physics=physics)


def test_reward_is_exp_of_minus_the_cost_that_plans_minimise() -> None:
    env = make()
    task: Any = find_task(env)
    np.testing.assert_array_equal(task.stage_cost.weights.detach(), [0.5, 0.1, 0.5, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01])
    np.testing.assert_array_equal(task.stage_cost.goal.detach(), [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
    _, info = env.reset(seed=0)
    for action in np.random.default_rng(0).uniform(-1.0, 1.0, (20, 2)):
        state = torch.from_numpy(info["state"])
        _, reward, _, _, info = env.step(action)
        with torch.no_grad():
            cost = task.stage_cost(state, torch.from_numpy(action))
        assert reward == pytest.approx(math.exp(-cost.item()), rel=1e-12)


@pytest.mark.parametrize(
    ("preset", "highest"),
    [
        (None, (2.0, 1.0, 2.0, 1.0, math.pi, 3.0)),
        ("tumbling", (2.0, 1.0, 2.0, 1.0, math.pi, 3.0)),
        ("level", (2.0, 0.5, 2.0, 0.5, 0.5, 0.5)),
    ],
)
def test_starts_cover_the_ranges_of_the_preset(preset: str | None, highest: tuple[float, ...]) -> None:
    env = make(preset=preset)
    starts = np.array([env.reset(seed=seed if seed == 0 else None)[1]["state"] for seed in range(500)])
    coordinates = np.stack((*starts[:, :4].T, np.arctan2(starts[:, 5], starts[:, 4]), starts[:, 6]))
    for values, high in zip(coordinates, highest, strict=True):
        assert np.abs(values).max() <= high
        assert values.max() > 0.95 * high
        assert values.min() < -0.95 * high


@pytest.mark.parametrize(
    ("limits", "throttles", "places"),
    [
        ({"place_limit": 2.1}, (-1.0, -1.0), (2,)),
        ({"max_speed": 1.1}, (1.0, 1.0), (1, 3)),
        ({"max_rate": 3.1}, (0.1, -0.1), (6,)),
    ],
)
def test_it_ends_where_the_observation_space_ends(
    limits: dict[str, float], throttles: tuple[float, float], places: tuple[int, ...]
) -> None:
    (bound,) = limits.values()
    env = make(**limits)
    _, info = env.reset(seed=0)
    terminated = False
    while not terminated:
        assert np.abs(info["state"][[*places]]).max() <= bound
        observation, reward, terminated, truncated, info = env.step(np.array(throttles))
        assert not truncated
    assert np.abs(info["state"][[*places]]).max() > bound
    assert np.abs(observation[[*places]]).max() == np.float32(bound)
    assert env.observation_space.contains(observation)
    assert reward > 0.0


@pytest.mark.parametrize(("name", "least"), [("place_limit", 2), ("max_speed", 1), ("max_rate", 3)])
def test_bounds_that_leave_no_room_for_a_start_are_refused(name: str, least: float) -> None:
    with pytest.raises(ValueError, match=rf"{name}: expected a finite number of at least {least:g}, got"):
        make(**{name: 0.99 * least})


def test_the_picture_shows_where_it_is() -> None:
    env = make(render_mode="rgb_array")
    frames = []
    for x, y in ((-2.0, 2.0), (2.0, -2.0)):
        env.reset(options={"state": [x, 0.0, y, 0.0, 1.0, 0.0, 0.0]})
        frames.append(env.render().astype(int))
    rows, columns = np.nonzero(np.abs(frames[0] - frames[1]).sum(-1) > 100)
    assert rows.size > 0
    above, below = columns[rows < 250], columns[rows >= 250]
    assert above.max() < 250 < below.min()  # y grows upwards, x to the right


@pytest.mark.slow
def test_the_expert_catches_it_from_any_start_and_holds_it_at_the_origin() -> None:
    policy, count = MPCPolicy.for_env(make()), 20
    envs = gym.make_vec(ID, num_envs=count, vectorization_mode="vector_entry_point")
    observation, info = envs.reset(seed=0)
    assert (info["state"][:, 4] < -0.5).sum() > 3  # some start upside down
    state, at_bound = None, np.zeros(count, bool)
    for _ in range(120):
        action, state = policy.predict(observation, state)
        observation, _, terminated, _, info = envs.step(action)
        at_bound |= (np.abs(action) == 1.0).any(-1)
        assert not terminated.any()
    np.testing.assert_allclose(info["state"], np.tile(QuadrotorEnv.cost_goal[:7], (count, 1)), atol=0.02)
    assert at_bound.mean() > 0.8  # bounds matter


@pytest.mark.slow
def test_the_expert_turns_it_over_from_rest_upside_down() -> None:
    env, (dx, tilt) = make(), (np.array([0.0, 0.5, -1.0]), np.array([0.0, 0.02, -0.04]))
    policy = MPCPolicy.for_env(env)
    for x in dx:
        for lean in tilt:
            observation, _ = env.reset(options={"state": [x, 0.0, 0.0, 0.0, -np.cos(lean), np.sin(lean), 0.0]})
            state = None
            for _ in range(120):
                action, state = policy.predict(observation, state)
                observation, _, terminated, _, info = env.step(action)
                assert not terminated
            np.testing.assert_allclose(info["state"], QuadrotorEnv.cost_goal[:7], atol=0.05)
