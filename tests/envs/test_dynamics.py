"""The dynamics modules, against a derivation that shares nothing with them, and as citizens of torch."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jacfwd, jacrev, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from dilqr_rl.envs import CartPoleDynamics, PendulumDynamics

SYSTEMS: list[Any] = [PendulumDynamics, CartPoleDynamics]
PHYSICS: dict[Any, dict[str, float]] = {
    PendulumDynamics: {"mass": 0.7, "length": 1.3, "gravity": 9.1, "damping": 0.2, "wind": 1.5},
    CartPoleDynamics: {"cart_mass": 1.4, "pole_mass": 0.3, "length": 0.7, "gravity": 9.1},
}


def random_batch(system: Any, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """States (size, n) on the unit circle and controls (size, m)."""
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 * torch.randn(size, system.state_size, generator=generator, dtype=torch.float64)
    for index in system.cosines:
        angle = x[:, index].clone()
        x[:, index], x[:, index + 1] = angle.cos(), angle.sin()
    return x, 3.0 * torch.randn(size, system.control_size, generator=generator, dtype=torch.float64)


def rod(hinge: Tensor, angle: Tensor, length: float) -> list[Tensor]:
    """Two points that carry half a uniform rod's mass each: Gauss-Legendre quadrature, exact for its inertia."""
    places = [0.5 * length * (1.0 - 1.0 / math.sqrt(3.0)), 0.5 * length * (1.0 + 1.0 / math.sqrt(3.0))]
    return [torch.stack((hinge + place * angle.sin(), place * angle.cos())) for place in places]


def accelerations(
    points: list[Callable[[Tensor], Tensor]],
    masses: list[float],
    forces: list[Tensor],
    gravity: float,
    q: Tensor,
    dq: Tensor,
    drive: Tensor,
) -> Tensor:
    """q'' of point masses moved by coordinates q: sum J^T (m (J q'' + J' q') - m g - force) = drive (d'Alembert)."""
    inertia, load = torch.zeros(len(q), len(q), dtype=q.dtype), drive.clone()
    down = torch.tensor([0.0, -gravity], dtype=q.dtype)
    for point, mass, force in zip(points, masses, forces, strict=True):
        jacobian = jacfwd(point)(q)
        drift = torch.func.jvp(lambda p, point=point: torch.func.jvp(point, (p,), (dq,))[1], (q,), (dq,))[1]
        inertia += mass * jacobian.T @ jacobian
        load += jacobian.T @ (mass * (down - drift) + force)
    return torch.linalg.solve(inertia, load)


def pendulum_acceleration(p: dict[str, float], angle: Tensor, rate: Tensor, torque: Tensor) -> Tensor:
    q, dq = angle.reshape(1), rate.reshape(1)
    none = torch.zeros(2, dtype=q.dtype)
    push = torch.tensor([p["wind"], 0.0], dtype=q.dtype)
    zero = torch.zeros((), dtype=q.dtype)
    points: list[Any] = [lambda q, i=i: rod(zero, q[0], p["length"])[i] for i in (0, 1)]
    points.append(lambda q: p["length"] * torch.stack((q[0].sin(), q[0].cos())))
    masses = [0.5 * p["mass"], 0.5 * p["mass"], 0.0]
    return accelerations(points, masses, [none, none, push], p["gravity"], q, dq, torque.reshape(1) - p["damping"] * dq)


def cartpole_acceleration(p: dict[str, float], q: Tensor, dq: Tensor, force: Tensor) -> Tensor:
    none = torch.zeros(2, dtype=q.dtype)
    points: list[Any] = [lambda q: torch.stack((q[0], 0.0 * q[0]))]
    points += [lambda q, i=i: rod(q[0], q[1], 2.0 * p["length"])[i] for i in (0, 1)]
    masses = [p["cart_mass"], 0.5 * p["pole_mass"], 0.5 * p["pole_mass"]]
    return accelerations(points, masses, [none] * 3, p["gravity"], q, dq, torch.stack((force, 0.0 * force)))


def test_pendulum_follows_from_newtons_law_with_damping_and_a_wind_on_the_tip() -> None:
    p = PHYSICS[PendulumDynamics]
    dynamics = PendulumDynamics(**p, time_step=0.02).requires_grad_(False)
    for x, u in zip(*random_batch(PendulumDynamics, 20), strict=True):
        angle = torch.atan2(x[1], x[0])
        rate = x[2] + 0.02 * pendulum_acceleration(p, angle, x[2], u[0])[0]
        moved = angle + 0.02 * rate
        expected = torch.stack((moved.cos(), moved.sin(), rate))
        torch.testing.assert_close(dynamics(x, u), expected, rtol=1e-12, atol=1e-12)


def test_cartpole_follows_from_newtons_law() -> None:
    p = PHYSICS[CartPoleDynamics]
    dynamics = CartPoleDynamics(**p, time_step=0.02).requires_grad_(False)
    for x, u in zip(*random_batch(CartPoleDynamics, 20), strict=True):
        q, dq = torch.stack((x[0], torch.atan2(x[3], x[2]))), torch.stack((x[1], x[4]))
        rates, (position, angle) = dq + 0.02 * cartpole_acceleration(p, q, dq, u[0]), q + 0.02 * dq
        expected = torch.stack((position, rates[0], angle.cos(), angle.sin(), rates[1]))
        torch.testing.assert_close(dynamics(x, u), expected, rtol=1e-12, atol=1e-12)


def test_cartpole_keeps_its_energy_as_the_time_step_vanishes() -> None:
    def energy(x: Tensor) -> Tensor:  # of cart and uniform pole; inertia about the pole's centre m (2l)²/12
        _, speed, cos, sin, rate = x.unbind(-1)
        across, up = speed + 0.5 * rate * cos, -0.5 * rate * sin
        return 0.5 * speed**2 + 0.05 * (across**2 + up**2) + 0.5 * 0.1 / 12 * rate**2 + 0.1 * 9.8 * 0.5 * cos

    x0, _ = random_batch(CartPoleDynamics, 20)
    drift = {}
    for time_step in (2e-3, 1e-3):
        dynamics, x = CartPoleDynamics(time_step=time_step).requires_grad_(False), x0
        for _ in range(round(0.4 / time_step)):
            x = dynamics(x, torch.zeros(20, 1))
        drift[time_step] = (energy(x) - energy(x0)).abs().max()
    assert drift[1e-3] < 0.01
    assert drift[2e-3] / drift[1e-3] == pytest.approx(2.0, rel=0.1)  # Euler: first order


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_batch_shape_equals_a_loop_in_the_type_of_the_state(system: Any, dtype: torch.dtype) -> None:
    dynamics = system(**PHYSICS[system]).requires_grad_(False)
    x, u = (each.to(dtype) for each in random_batch(system, 6))
    single = torch.stack([dynamics(*each) for each in zip(x, u, strict=True)])
    batch = dynamics(x, u)
    grid = dynamics(x.reshape(2, 3, -1), u.reshape(2, 3, -1))
    assert single.dtype == batch.dtype == grid.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6  # one float32 state is computed in float64, a batch of them is not
    torch.testing.assert_close(batch, single, rtol=tolerance, atol=tolerance)
    assert torch.equal(grid.reshape(6, -1), batch)


@pytest.mark.parametrize("system", SYSTEMS)
def test_next_state_lies_on_the_circle(system: Any) -> None:
    x, u = random_batch(system, 50)
    following = system(**PHYSICS[system])(x, u)
    for index in system.cosines:
        radius = torch.hypot(following[:, index], following[:, index + 1])
        torch.testing.assert_close(radius, torch.ones_like(radius), rtol=1e-15, atol=1e-15)


@pytest.mark.parametrize("system", SYSTEMS)
def test_gradients_of_state_control_and_physics_agree_with_differences(system: Any) -> None:
    dynamics = system(**PHYSICS[system])
    names = [name for name, _ in dynamics.named_parameters()]

    def step(x: Tensor, u: Tensor, *physics: Tensor) -> Any:
        return functional_call(dynamics, dict(zip(names, physics, strict=True)), (x, u))

    x, u = random_batch(system, 3)
    physics = [parameter.detach().clone().requires_grad_() for parameter in dynamics.parameters()]
    assert torch.autograd.gradcheck(step, (x.requires_grad_(), u.requires_grad_(), *physics), check_forward_ad=True)


@pytest.mark.parametrize("system", SYSTEMS)
def test_torch_func_transforms_compose(system: Any) -> None:
    dynamics = system(**PHYSICS[system]).requires_grad_(False)
    x, u = random_batch(system, 5)
    with torch.no_grad():
        forward = vmap(jacfwd(dynamics, argnums=(0, 1)))(x, u)
        reverse = vmap(jacrev(dynamics, argnums=(0, 1)))(x, u)
        second = vmap(jacfwd(jacrev(dynamics)))(x, u)
    for one, other in zip(forward, reverse, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second, second.mT, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("system", SYSTEMS)
def test_vmap_over_the_physics_equals_a_loop(system: Any) -> None:
    x, u = random_batch(system, 4)
    each = [{name: value * (1.0 + 0.1 * i) for name, value in PHYSICS[system].items()} for i in range(4)]
    stacked = {name: torch.tensor([one[name] for one in each], dtype=torch.float64) for name in PHYSICS[system]}
    dynamics = system().requires_grad_(False)
    batched = vmap(lambda p, x, u: functional_call(dynamics, p, (x, u)))(stacked, x, u)
    loop = torch.stack([system(**one)(a, b) for one, a, b in zip(each, x, u, strict=True)])
    torch.testing.assert_close(batched, loop.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_trace_holds_for_other_inputs(system: Any) -> None:
    dynamics = system(**PHYSICS[system]).requires_grad_(False)
    traced = make_fx(dynamics)(*random_batch(system, 2, seed=1))
    x, u = random_batch(system, 2, seed=2)
    torch.testing.assert_close(traced(x, u), dynamics(x, u), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("system", SYSTEMS)
def test_physics_are_float64_parameters_by_name(system: Any) -> None:
    dynamics = system.from_physics(PHYSICS[system])
    assert dynamics.physics == PHYSICS[system]
    assert system.physics_names() == tuple(PHYSICS[system]) == tuple(dict(dynamics.named_parameters()))
    assert set(system.positive) <= set(system.physics_names())
    assert system.from_physics().physics == system().physics == copy.deepcopy(system()).physics
    assert all(f"{name}=" in repr(dynamics) for name in PHYSICS[system])


def test_defaults_are_the_published_ones() -> None:
    assert PendulumDynamics().physics == {"mass": 1.0, "length": 1.0, "gravity": 10.0, "damping": 0.0, "wind": 0.0}
    assert CartPoleDynamics().physics == {"cart_mass": 1.0, "pole_mass": 0.1, "length": 0.5, "gravity": 9.8}


def test_speed_limit_acts_before_the_angle_moves() -> None:
    x = torch.tensor([1.0, 0.0, 7.99], dtype=torch.float64)
    with torch.no_grad():
        following = PendulumDynamics(max_speed=8.0)(x, torch.tensor([2.0], dtype=torch.float64))
    expected = torch.tensor([math.cos(0.4), math.sin(0.4), 8.0], dtype=torch.float64)
    torch.testing.assert_close(following, expected, rtol=1e-15, atol=1e-15)


pendulum: Any = PendulumDynamics
cartpole: Any = CartPoleDynamics


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: pendulum(mass=0.0), r"mass: expected a finite number above 0, got 0\.0\. Correct mass"),
        (lambda: pendulum(length=-1), r"length: expected a finite number above 0, got -1\."),
        (lambda: pendulum(gravity=math.nan), r"gravity: expected a finite number, got nan\."),
        (lambda: pendulum(wind=math.inf), r"wind: expected a finite number, got inf\."),
        (lambda: pendulum(damping=-0.1), r"damping: expected a finite number of at least 0, got -0\.1\."),
        (lambda: pendulum(damping=14.0), r"damping: expected at most .* = 13\.3333 N m s, got 14\.0\. Lower"),
        (lambda: pendulum(mass="heavy"), r"mass: expected a finite number above 0, got 'heavy'\."),
        (lambda: pendulum(mass=True), r"mass: expected a finite number above 0, got True\."),
        (lambda: pendulum(mass=None), r"mass: expected a finite number above 0, got None\."),
        (lambda: pendulum(time_step=0.0), r"time_step: expected a finite number above 0, got 0\.0\."),
        (lambda: pendulum(max_speed=-8.0), r"max_speed: expected a finite number above 0, got -8\.0\."),
        (lambda: cartpole(cart_mass=-1.0), r"cart_mass: expected a finite number above 0, got -1\.0\."),
        (lambda: cartpole(pole_mass=math.nan), r"pole_mass: expected a finite number above 0, got nan\."),
        (lambda: cartpole(length=0), r"length: expected a finite number above 0, got 0\."),
        (lambda: cartpole(gravity=[9.8]), r"gravity: expected a finite number, got \[9\.8\]\."),
        (lambda: cartpole(time_step=-0.05), r"time_step: expected a finite number above 0, got -0\.05\."),
        (lambda: pendulum.from_physics({"mas": 1.0}), r"physics: expected names among \['mass', .*\], got \['mas'\]"),
        (lambda: cartpole.from_physics({"time_step": 1.0}), r"physics: expected names among .*, got \['time_step'\]"),
        (lambda: cartpole.from_physics([1.0]), r"physics: expected a dict such as .*, got \[1\.0\]\."),
    ],
)
def test_impossible_physics_are_refused_by_name(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        build()
