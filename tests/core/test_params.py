"""Where a problem's numbers may come from: shared, per problem, per step; tied, parametrised, and from networks."""

from __future__ import annotations

import pytest
import torch
from problems import (
    CARTPOLE,
    CASES,
    FLOAT,
    GRADIENTS,
    LINEAR,
    PENDULUM,
    QUADROTOR,
    Case,
    Gradient,
    cartpole,
    gradient_of,
    network_starts,
    normal,
    pendulum,
    published_cartpole_starts,
    published_pendulum_starts,
    seeded_network,
    value_of,
)
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, Solution

TIGHT = ILQROptions(max_iterations=300, tolerance=1e-12)


def loss_of(solution: Solution) -> Tensor:
    return (
        solution.states.square().sum()
        + (solution.controls * normal(*solution.controls.shape, seed=1)).sum()
        + solution.cost.sum()
    )


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)  # two solutions within the tolerance 1e-12


@pytest.mark.parametrize("case", [PENDULUM, QUADROTOR, LINEAR], ids=str)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_shared_values_per_problem_and_per_step_agree(case: Case, gradient: Gradient) -> None:
    T, B = 6, 4
    problem, x0 = case.build(T), case.starts(B, 0)
    planner = ILQR(problem, TIGHT, gradient=gradient)
    names = [name for group in case.groups.values() for name in group]
    found: list[dict[str, Tensor]] = []
    for lead in ((), (B,), (B, T)):
        params = {}
        for name in names:
            own = value_of(problem, name)
            shape = lead[:1] if name.startswith("terminal_cost.") else lead
            params[name] = own.expand((*shape, *own.shape)).clone().requires_grad_()
        solution = planner(x0, params=params)
        derivatives = torch.autograd.grad(loss_of(solution), list(params.values()), allow_unused=True)
        summed = {"states": solution.states.detach()}
        for name, derivative in zip(names, derivatives, strict=True):
            assert derivative is not None, name
            assert derivative.shape == params[name].shape
            summed[name] = derivative.reshape(-1, *value_of(problem, name).shape).sum(0)
        found.append(summed)
    for name in found[0]:
        close(found[1][name], found[0][name])
        close(found[2][name], found[0][name])


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_different_values_per_problem_equal_a_loop(gradient: Gradient) -> None:
    B, T = 3, 6
    x0 = published_cartpole_starts(B)
    mass = torch.tensor([0.8, 1.0, 1.3], dtype=FLOAT, requires_grad=True)
    goal = (value_of(cartpole(), "stage_cost.goal") + 0.2 * normal(B, T, 6, seed=0)).requires_grad_()
    u_max = (5.0 + normal(B, T, 1, seed=1)).requires_grad_()
    planner = ILQR(cartpole(T), TIGHT, gradient=gradient)

    def params(i: slice) -> dict[str, Tensor]:
        return {"dynamics.cart_mass": mass[i], "stage_cost.goal": goal[i], "u_max": u_max[i]}

    batch = planner(x0, params=params(slice(None)))
    single = [planner(x0[i : i + 1], params=params(slice(i, i + 1))) for i in range(B)]
    close(batch.controls, torch.cat([one.controls for one in single]))
    together = torch.autograd.grad(batch.controls.square().sum(), (mass, goal, u_max))
    alone = torch.autograd.grad(torch.stack([one.controls.square().sum() for one in single]).sum(), (mass, goal, u_max))
    for one, other in zip(together, alone, strict=True):
        close(one, other)
        assert one.any()


def test_a_goal_per_step_acts_at_its_own_step() -> None:
    """Without dynamics to speak of, each control goes to its step's goal."""
    problem = ControlProblem(
        lambda x, u: x, QuadraticCost([1.0, 1.0], [0.0, 0.0]), horizon=4, state_size=1, control_size=1, u_max=2.5
    )
    goals = torch.tensor([[[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]]], dtype=FLOAT)
    solution = ILQR(problem)(torch.zeros(1, 1, dtype=FLOAT), params={"stage_cost.goal": goals})
    assert solution.controls.flatten().tolist() == pytest.approx([1.0, 2.0, 2.5, 2.5])


def test_an_unbatched_start_takes_values_per_step_for_a_batch_of_one() -> None:
    limits = torch.tensor([[0.5, 1.0, 1.5]], dtype=FLOAT).unsqueeze(-1)
    solution = ILQR(pendulum(3))(published_pendulum_starts(1)[0], params={"u_max": limits, "u_min": -limits})
    assert solution.controls.shape == (3, 1)
    assert (solution.controls.abs() <= limits[0]).all()


def test_values_follow_the_modules_that_produce_them() -> None:
    """A network writes the goal and the mass of each problem; its weights get the gradient that differences confirm."""
    network, context = seeded_network(4, 8, 5, seed=3), normal(6, 4, seed=5)
    planner, x0 = ILQR(pendulum(6), TIGHT), published_pendulum_starts(6)

    def loss() -> Tensor:
        written = network(context)
        params = {"stage_cost.goal": written[:, :4], "dynamics.mass": written[:, 4].exp()}
        return planner(x0, params=params).controls.square().sum()

    loss().backward()
    weights = list(network.parameters())
    direction = [normal(*weight.shape, seed=20 + place) for place, weight in enumerate(weights)]
    expected = sum(
        (weight.grad * part).sum().item() for weight, part in zip(weights, direction, strict=True) if weight.grad is not None
    )
    before, values, h = [weight.detach().clone() for weight in weights], [], 1e-6
    for step in (h, -h):
        for weight, start, part in zip(weights, before, direction, strict=True):
            weight.data.copy_(start + step * part)
        values.append(loss().item())
    assert expected == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)  # of the difference


class TiedCost(nn.Module):
    """Wants the network's prediction to be zero: the network is also the dynamics."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.model(x, u).square().sum(-1) + 0.1 * u.square().sum(-1)


class Residual(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return x + 0.2 * self.network(torch.cat((x, u), dim=-1))


class TiedTerminalCost(nn.Module):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return self.weight.square().sum() * x.square().sum(-1)


def tied_problem() -> ControlProblem:
    dynamics = Residual(seeded_network(5, 6, 3, seed=4))
    terminal = TiedTerminalCost(dynamics.network.get_parameter("0.bias"))
    return ControlProblem(
        dynamics, TiedCost(dynamics), terminal, horizon=5, state_size=3, control_size=2, u_min=-1.0, u_max=1.0
    )


@pytest.mark.parametrize("gradient", ["implicit", "unroll"])
def test_a_parameter_used_in_several_places_gets_the_sum_of_its_gradients(gradient: Gradient) -> None:
    tied, x0 = tied_problem(), network_starts(4)
    free = ControlProblem(
        Residual(seeded_network(5, 6, 3, seed=4)),
        TiedCost(Residual(seeded_network(5, 6, 3, seed=4))),
        TiedTerminalCost(nn.Parameter(value_of(tied, "dynamics.network.0.bias").clone())),
        horizon=5,
        state_size=3,
        control_size=2,
        u_min=-1.0,
        u_max=1.0,
    )
    for problem in (tied, free):
        loss_of(ILQR(problem, TIGHT, gradient=gradient)(x0)).backward()
    copies = dict(free.named_parameters())
    assert len(dict(tied.named_parameters())) == 4
    for name, parameter in tied.named_parameters():
        grads = [copies[name].grad, copies[name.replace("dynamics.", "stage_cost.model.")].grad]
        if name == "dynamics.network.0.bias":
            grads.append(copies["terminal_cost.weight"].grad)
        total = torch.stack([grad for grad in grads if grad is not None]).sum(0)
        assert parameter.grad is not None
        close(parameter.grad, total)


def test_a_tied_parameter_is_replaced_in_all_its_places_under_any_of_its_names() -> None:
    problem, x0 = tied_problem(), network_starts(4)
    replacement = 0.5 * normal(6, seed=0)
    by_name = [
        ILQR(problem, TIGHT)(x0, params={name: replacement}).controls.detach()
        for name in ("dynamics.network.0.bias", "stage_cost.model.network.0.bias", "terminal_cost.weight")
    ]
    with torch.no_grad():
        problem.get_parameter("dynamics.network.0.bias").copy_(replacement)
    expected = ILQR(problem, TIGHT)(x0).controls.detach()
    for controls in by_name:
        close(controls, expected)


class Positive(nn.Module):
    def forward(self, raw: Tensor) -> Tensor:
        return raw.exp()

    def right_inverse(self, value: Tensor) -> Tensor:
        return value.log()


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_parametrised_modules_keep_their_chain_rule(gradient: Gradient) -> None:
    x0, plain, learnt = published_pendulum_starts(5), pendulum(6), pendulum(6)
    parametrize.register_parametrization(learnt.dynamics, "mass", Positive())
    for problem in (plain, learnt):
        loss_of(ILQR(problem, TIGHT, gradient=gradient)(x0)).backward()
    raw = gradient_of(learnt, "dynamics.parametrizations.mass.original")
    close(raw, gradient_of(plain, "dynamics.mass") * value_of(plain, "dynamics.mass"))
    for name, _ in plain.named_parameters():
        if name != "dynamics.mass":
            close(gradient_of(learnt, name), gradient_of(plain, name))


def test_a_parametrised_value_is_replaced_by_its_raw_name() -> None:
    problem, x0 = pendulum(6), published_pendulum_starts(3)
    parametrize.register_parametrization(problem.dynamics, "mass", Positive())
    raw = torch.tensor([0.0, 0.1, -0.2], dtype=FLOAT)
    found = ILQR(problem, TIGHT)(x0, params={"dynamics.parametrizations.mass.original": raw})
    expected = ILQR(pendulum(6), TIGHT)(x0, params={"dynamics.mass": raw.exp()})
    close(found.controls.detach(), expected.controls.detach())


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_bounds_can_be_parameters_and_are_learnt(gradient: Gradient) -> None:
    cost = QuadraticCost([1.0, 1.0, 0.1, 0.001], [1.0, 0.0, 0.0, 0.0])
    limit = nn.Parameter(torch.tensor(2.0, dtype=FLOAT))  # a single number, for a control of any size
    problem = ControlProblem(pendulum().dynamics, cost, horizon=8, state_size=3, control_size=1, u_min=-3.0, u_max=limit)
    assert dict(problem.named_parameters())["u_max"] is limit
    solution = ILQR(problem, TIGHT, gradient=gradient)(published_pendulum_starts(10))
    solution.controls.sum().backward()
    assert limit.grad is not None
    assert (solution.controls == 2.0).any()
    h = 1e-6
    with torch.no_grad():
        values = []
        for value in (2.0 + h, 2.0 - h):
            limit.fill_(value)
            values.append(ILQR(problem, TIGHT)(published_pendulum_starts(10)).controls.sum().item())
    if gradient != "diffmpc":
        assert limit.grad.item() == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-6)


def test_buffers_can_be_replaced_and_pass_gradients() -> None:
    class Windy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("wind", torch.zeros(2, dtype=FLOAT))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            return x + 0.1 * u + self.get_buffer("wind")

    problem = ControlProblem(Windy(), QuadraticCost([1.0] * 4, [0.0] * 4), horizon=3, state_size=2, control_size=2)
    wind = normal(2, 3, 2, seed=0).requires_grad_()
    solution = ILQR(problem)(normal(2, 2, seed=1), params={"dynamics.wind": wind})
    (derivative,) = torch.autograd.grad(solution.states.sum(), wind)
    assert derivative.abs().min() > 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_frozen_parameters_get_no_gradient_and_cost_no_graph(case: Case) -> None:
    problem = case.build(4).requires_grad_(False)
    solution = ILQR(problem)(case.starts(2, 0))
    assert not solution.states.requires_grad
    assert not solution.cost.requires_grad


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_only_what_is_differentiable_carries_a_gradient(gradient: Gradient) -> None:
    solution = ILQR(cartpole(4), gradient=gradient)(CARTPOLE.starts(2, 0))
    carries = {name for name, part in vars(solution).items() if part is not None and part.requires_grad}
    assert carries == {"states", "controls", "cost"}
