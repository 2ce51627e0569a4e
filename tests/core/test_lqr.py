"""The sweep against a dense linear system, and costates and model against automatic differentiation."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from problems import CASES, FLOAT, Case, normal
from torch import Tensor
from torch.func import hessian, jacrev

from dilqr_rl import ControlProblem
from dilqr_rl.derivatives import dynamics_hessian
from dilqr_rl.ilqr import expand, projected_gradient_norm, rollout
from dilqr_rl.instance import Instance, bind
from dilqr_rl.lqr import Quadratic, backward_sweep, control_gradient, costates, linear_rollout

B, T, n, m = 5, 6, 4, 2
UNBOUNDED = torch.full((B, T, m), torch.inf, dtype=FLOAT)


def random_model() -> Quadratic:
    """Convex, with every block filled."""
    factor, last = normal(B, T, n + m, n + m, seed=1), normal(B, n, n, seed=2)
    return Quadratic(
        F=normal(B, T, n, n + m, seed=3) / 2,
        H=factor @ factor.mT + torch.eye(n + m, dtype=FLOAT),
        g=normal(B, T, n + m, seed=4),
        H_T=last @ last.mT + torch.eye(n, dtype=FLOAT),
        g_T=normal(B, n, seed=5),
    )


def model_gradient(model: Quadratic, dx: Tensor, du: Tensor) -> tuple[Tensor, Tensor]:
    """g + H d of every step, and of the last state."""
    d = torch.cat((dx[:, :-1], du), dim=-1).unsqueeze(-1)
    return model.g + (model.H @ d).squeeze(-1), model.g_T + (model.H_T @ dx[:, -1].unsqueeze(-1)).squeeze(-1)


def model_cost(model: Quadratic, dx: Tensor, du: Tensor) -> Tensor:
    g, g_T = model_gradient(model, dx, du)
    d = torch.cat((dx[:, :-1], du), dim=-1)
    return 0.5 * ((g + model.g) * d).sum((1, 2)) + 0.5 * ((g_T + model.g_T) * dx[:, -1]).sum(-1)


def dense_solution(model: Quadratic) -> tuple[Tensor, Tensor, Tensor]:
    """dx, du and the multipliers of the dynamics, from one linear system over (dx_0, du_0, ..., dx_T) and lambda_0..T."""
    size, states = T * (n + m) + n, (T + 1) * n
    system, right = torch.zeros(B, size + states, size + states, dtype=FLOAT), torch.zeros(B, size + states, dtype=FLOAT)
    minus_one = -torch.eye(n, dtype=FLOAT)
    for t in range(T + 1):
        row = slice(size + t * n, size + (t + 1) * n)
        here = slice(t * (n + m), min((t + 1) * (n + m), size))
        system[:, row, here.start : here.start + n] = minus_one  # of dx_0 = 0 and dx_t+1 = F d_t
        system[:, here, here] = model.H[:, t] if t < T else model.H_T
        right[:, here] = -(model.g[:, t] if t < T else model.g_T)
        if t < T:
            system[:, row.stop : row.stop + n, here] = model.F[:, t]
    system[:, :size, size:] = system[:, size:, :size].mT
    solved = torch.linalg.solve(system, right)
    d = solved[:, : T * (n + m)].view(B, T, n + m)
    dx = torch.cat((d[..., :n], solved[:, None, size - n : size]), dim=1)
    return dx, d[..., n:], solved[:, size:].view(B, T + 1, n)


def test_the_sweep_solves_the_dense_system() -> None:
    model = random_model()
    policy = backward_sweep(model, -UNBOUNDED, UNBOUNDED, torch.zeros(B, dtype=FLOAT))
    dx, du = linear_rollout(model.F, policy)
    expected = dense_solution(model)
    multipliers = costates(model.F, *model_gradient(model, dx, du))
    for found, wanted in zip((dx, du, multipliers), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)  # the systems' condition is up to 1e5
    assert policy.positive.all()


def test_damping_is_added_to_the_diagonal_of_q_uu_relative_to_its_largest_element() -> None:
    model = random_model()
    policy = backward_sweep(model, -UNBOUNDED, UNBOUNDED, torch.full((B,), 0.5, dtype=FLOAT))
    Q = model.H[:, -1] + model.F[:, -1].mT @ model.H_T @ model.F[:, -1]
    largest = Q.diagonal(dim1=1, dim2=2)[:, n:].amax(1)
    damping = 0.5 * largest[:, None, None] * torch.eye(m, dtype=FLOAT)
    expected = -torch.linalg.solve(Q[:, n:, n:] + damping, Q[:, n:, :n])
    torch.testing.assert_close(policy.K[:, -1], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("regularisation", "bound", "length"), [(0.0, torch.inf, 1.0), (0.0, torch.inf, 0.3), (0.5, 0.1, 1.0)])
def test_slope_and_curvature_foretell_the_change_of_the_models_cost(regularisation: float, bound: float, length: float) -> None:
    model, limit = random_model(), torch.full((B, T, m), bound, dtype=FLOAT)
    policy = backward_sweep(model, -limit, limit, torch.full((B,), regularisation, dtype=FLOAT))
    change = model_cost(model, *linear_rollout(model.F, replace(policy, k=length * policy.k)))
    expected = policy.slope * length + 0.5 * policy.curvature * length**2
    torch.testing.assert_close(change, expected, rtol=1e-11, atol=1e-11)  # rounding
    assert (policy.slope < 0).all()


def at_random(case: Case, size: int = 3, horizon: int = 5) -> tuple[Instance, Tensor, Tensor, Tensor]:
    """An instance of a case, start states, and controls with the trajectory that they make."""
    problem: ControlProblem = case.build(horizon).requires_grad_(False)
    x0 = case.starts(size, 3)
    u = 0.5 * normal(size, horizon, problem.control_size, seed=4)
    instance = bind(problem, x0, None)
    return instance, x0, u, rollout(instance, x0, u)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_costates_and_control_gradient_are_derivatives_of_the_total_cost(case: Case) -> None:
    instance, x0, u, x = at_random(case)
    leaves = x0.clone().requires_grad_(), u.clone().requires_grad_()
    expected = torch.autograd.grad(instance.total_cost(rollout(instance, *leaves), leaves[1]).sum(), leaves)
    model, costate = expand(instance, x, u)
    torch.testing.assert_close(costate[:, 0], expected[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(control_gradient(model.F, model.g, costate), expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_model_holds_the_derivatives_at_every_step(case: Case) -> None:
    instance, _, u, x = at_random(case)
    model, costate = expand(instance, x, u)
    curvature = dynamics_hessian(instance, x[:, :-1], u, costate[:, 1:])
    size, dynamics, stage_cost = x.shape[-1], instance.problem.dynamics, instance.problem.stage_cost
    for b in range(x.shape[0]):
        for t in range(u.shape[1]):
            z, weights = torch.cat((x[b, t], u[b, t])), costate[b, t + 1]
            expected = {
                "F": jacrev(lambda z: dynamics(z[:size], z[size:]))(z),
                "g": jacrev(lambda z: stage_cost(z[:size], z[size:]))(z),
                "H": hessian(lambda z: stage_cost(z[:size], z[size:]))(z),
                "curvature": hessian(lambda z, weights=weights: weights @ dynamics(z[:size], z[size:]))(z),
            }
            found = {"F": model.F, "g": model.g, "H": model.H, "curvature": curvature}
            for name, value in expected.items():
                torch.testing.assert_close(found[name][b, t], value, rtol=1e-11, atol=1e-11, msg=name)
    if instance.problem.terminal_cost is None:
        assert not model.H_T.any()
        assert not model.g_T.any()
    else:
        last = torch.stack([hessian(instance.problem.terminal_cost)(state) for state in x[:, -1]])
        torch.testing.assert_close(model.H_T, last, rtol=1e-12, atol=1e-12)


def test_the_projected_gradient_is_zero_only_where_no_move_within_the_bounds_helps() -> None:
    lower, upper = torch.zeros(4, 1, 1, dtype=FLOAT), torch.ones(4, 1, 1, dtype=FLOAT)
    u = torch.tensor([0.0, 1.0, 0.0, 0.5], dtype=FLOAT).view(4, 1, 1)
    gradient = torch.tensor([2.0, -3.0, -0.25, 0.125], dtype=FLOAT).view(4, 1, 1)
    assert projected_gradient_norm(gradient, u, lower, upper).tolist() == [0.0, 0.0, 0.25, 0.125]
