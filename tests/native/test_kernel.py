"""The compiled solver and adjoint, on models written by hand, against the PyTorch path."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import native_models
import numpy as np
import problems
import pytest
import torch
from problems import FLOAT, normal
from torch import Tensor, nn

from dilqr_rl import ILQR, ControlProblem, ILQROptions, Status

pytest.importorskip("numba")
from dilqr_rl.native.cache import load_module
from dilqr_rl.native.kernel import kernel_source

CONTROLS, COST, GRADIENT = 1e-8, 1e-10, 1e-8  # what the two paths promise to agree to; gradients relative to the largest
OPTIONS = ILQROptions(tolerance=1e-8, backend="torch")


@dataclass
class Kernel:
    """The kernel of one problem with a hand-written model, called the way the backend calls it."""

    problem: ControlProblem
    names: tuple[str, ...]
    functions: Any
    work: int
    x0: Tensor
    params: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.addresses = native_models.addresses(self.functions)
        values = [self.params.get(name, problems.value_of(self.problem, name)).detach() for name in self.names]
        leads = [
            value.ndim - problems.value_of(self.problem, name).ndim for name, value in zip(self.names, values, strict=True)
        ]
        self.P = torch.cat([value.reshape(-1) for value in values]).numpy()
        self.parts = [value.shape for value in values]
        self.table = np.zeros((3, len(values)), np.int64)
        self.table[0, 1:] = np.cumsum([value.numel() for value in values])[:-1]
        for i, (value, lead) in enumerate(zip(values, leads, strict=True)):
            self.table[1, i] = value[0].numel() if lead >= 1 else 0
            self.table[2, i] = value[0, 0].numel() if lead == 2 else 0
        last = len(values) - 1
        self.bound_rows = np.array([[last - 1, 1], [last, 1]])
        n, m = self.problem.state_size, self.problem.control_size
        self.module = load_module(f"kernel_{n}_{m}", kernel_source(n, m), f"the solver for {n} states and {m} controls")
        self.sizes = np.array([2, self.work])

    def solve(self, options: ILQROptions = OPTIONS, cuts: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
        (B, n), T, m = self.x0.shape, self.problem.horizon, self.problem.control_size
        out = {
            "states": np.full((B, T + 1, n), 7.0),
            "controls": np.zeros((B, T, m)),
            "cost": np.empty(B),
            "status": np.empty(B, np.int64),
            "num_iterations": np.empty(B, np.int64),
            "residual": np.empty(B),
            "gains": np.full((B, T, m, n), 7.0),
            "singular": np.empty(B, np.int64),
            "history": np.empty((B, 0, 5)),
        }
        integers = np.array([options.max_iterations, options.line_search_steps, 0, 0, 0])
        reals = [options.tolerance, options.step_tolerance, options.sufficient_decrease]
        reals += [options.regularisation_min, options.regularisation_max, options.regularisation_factor, np.inf]
        edges = (0, *cuts, B)
        for start, stop in pairwise(edges):
            self.module.solve(
                *(self.addresses, T, self.sizes, start, stop, self.x0.numpy(), self.P, self.table, self.bound_rows),
                *(integers, np.array(reals), *out.values()),
            )
        return out

    def gradient(
        self, solved: dict[str, np.ndarray], loss: tuple[Tensor, ...], exact: bool = True, values: bool = True
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        B, T = len(self.x0), self.problem.horizon
        dx0, G = np.full(self.x0.shape, 7.0), np.zeros_like(self.P)
        self.module.adjoint(
            *(self.addresses, T, self.sizes, 0, B, int(exact), self.P, self.table, self.bound_rows),
            *(solved["states"], solved["controls"], solved["status"], *(part.numpy() for part in loss)),
            *(int(values), dx0, G, self.table),
        )
        ends = np.append(self.table[0, 1:], len(G))
        parts = zip(self.names, self.table[0], ends, self.parts, strict=True)
        return dx0, {name: G[start:end].reshape(shape) for name, start, end, shape in parts}

    def reference(self, options: ILQROptions = OPTIONS) -> Any:
        with torch.no_grad():
            return ILQR(self.problem, options)(self.x0, self.params)


def pendulum(x0: Tensor, params: Mapping[str, Tensor] | None = None, horizon: int = 20) -> Kernel:
    return Kernel(problems.pendulum(horizon), native_models.PENDULUM_VALUES, native_models.PENDULUM, 0, x0, params or {})


class Linear(nn.Module):
    def __init__(self, F: Tensor) -> None:
        super().__init__()
        self.F = nn.Parameter(F)
        self.register_buffer("sizes", torch.tensor([F.shape[0], F.shape[1] - F.shape[0]], dtype=FLOAT))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return (self.F @ torch.cat((x, u), dim=-1).unsqueeze(-1)).squeeze(-1)


class Quadratic(nn.Module):
    def __init__(self, H: Tensor, g: Tensor) -> None:
        super().__init__()
        self.H, self.g = nn.Parameter(H), nn.Parameter(g)

    def forward(self, *z: Tensor) -> Tensor:
        point = torch.cat(z, dim=-1)
        return 0.5 * (point * (self.H @ point.unsqueeze(-1)).squeeze(-1)).sum(-1) + (self.g * point).sum(-1)


def positive_definite(size: int, seed: int, *lead: int) -> Tensor:
    root = normal(*lead, size, size, seed=seed) / size**0.5
    return root @ root.mT + 0.2 * torch.eye(size, dtype=FLOAT)


def linear(n: int, m: int, horizon: int, x0: Tensor, params: Mapping[str, Tensor] | None = None) -> Kernel:
    F = torch.cat((0.6 * torch.eye(n, dtype=FLOAT) + 0.4 * normal(n, n, seed=1) / n**0.5, normal(n, m, seed=2)), dim=1)
    stage = Quadratic(positive_definite(n + m, 3), normal(n + m, seed=4))
    terminal = Quadratic(positive_definite(n, 5), normal(n, seed=6))
    bounds = {
        "u_min": nn.Parameter(torch.full((m,), -0.4, dtype=FLOAT)),
        "u_max": nn.Parameter(torch.full((m,), 0.3, dtype=FLOAT)),
    }
    problem = ControlProblem(Linear(F), stage, terminal, horizon=horizon, state_size=n, control_size=m, **bounds)
    return Kernel(problem, native_models.LINEAR_VALUES, native_models.LINEAR, n + m, x0, params or {})


def assert_same(solved: dict[str, np.ndarray], reference: Any) -> None:
    assert solved["status"].tolist() == reference.status.tolist()
    assert solved["num_iterations"].tolist() == reference.num_iterations.tolist()
    np.testing.assert_allclose(solved["controls"], reference.controls, rtol=0, atol=CONTROLS)
    np.testing.assert_allclose(solved["states"], reference.states, rtol=0, atol=CONTROLS)
    np.testing.assert_allclose(solved["cost"], reference.cost, rtol=COST, atol=COST)
    np.testing.assert_allclose(solved["residual"], reference.residual, rtol=1e-6, atol=CONTROLS)
    scale = max(1.0, reference.gains.abs().max().item())
    np.testing.assert_allclose(solved["gains"], reference.gains, rtol=0, atol=CONTROLS * scale)


def assert_same_gradients(kernel: Kernel, gradient: str = "implicit", names: tuple[str, ...] | None = None) -> None:
    """Solve, and compare the gradients of a loss on states, controls and costs."""
    x0 = kernel.x0.clone().requires_grad_()
    params = {name: value.clone().requires_grad_() for name, value in kernel.params.items()}
    kernel.problem.zero_grad()
    solution = ILQR(kernel.problem, OPTIONS, gradient=gradient)(x0, params)
    parts = (solution.states, solution.controls, solution.cost)
    loss = tuple(normal(*part.shape, seed=10 + place) for place, part in enumerate(parts))
    torch.autograd.backward(parts, loss)
    dx0, gradients = kernel.gradient(kernel.solve(), loss, exact=gradient == "implicit")
    np.testing.assert_allclose(dx0, x0.grad, rtol=0, atol=GRADIENT * x0.grad.abs().max().item())
    own = dict(kernel.problem.named_parameters())
    for name in names or [name for name in kernel.names if name in own or name in params]:
        expected = params[name].grad if name in params else problems.gradient_of(kernel.problem, name)
        scale = expected.abs().max().item()
        assert scale > 0, name
        np.testing.assert_allclose(gradients[name], expected, rtol=0, atol=GRADIENT * scale, err_msg=name)


NEAR, FAR = problems.published_pendulum_starts(24), problems.far_pendulum_starts(40)
BATCHES = {
    "near": NEAR,
    "far": FAR,  # Newton steps that fail, and weights below one
    "one": FAR[:1],
}


@pytest.mark.parametrize("starts", BATCHES)
def test_the_pendulum_is_solved_and_differentiated_as_in_torch(starts: str) -> None:
    kernel = pendulum(BATCHES[starts])
    assert_same(kernel.solve(), kernel.reference())
    assert_same_gradients(kernel)


def test_diffmpc_leaves_the_curvature_out() -> None:
    assert_same_gradients(pendulum(NEAR), gradient="diffmpc")


def pendulum_params(B: int, T: int) -> dict[str, Tensor]:
    """Something per problem, something per problem and step, and bounds that differ from step to step."""
    torques = problems.uniform(B * T, 3, (0.5, 2.0)).view(B, T, 1)
    return {
        "dynamics.mass": problems.uniform(B, 1, (0.8, 1.2)).squeeze(-1),
        "stage_cost.goal": torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=FLOAT) + 0.3 * normal(B, T, 4, seed=2),
        "u_min": -torques,
        "u_max": torques,
    }


def test_values_per_problem_and_per_step() -> None:
    kernel = pendulum(NEAR, pendulum_params(len(NEAR), 20))
    assert_same(kernel.solve(), kernel.reference())
    assert_same_gradients(kernel)


def test_values_per_problem() -> None:
    params = {name: value for name, value in pendulum_params(len(NEAR), 1).items() if name == "dynamics.mass"}
    kernel = pendulum(NEAR, params)
    assert_same(kernel.solve(), kernel.reference())
    assert_same_gradients(kernel)


def test_twenty_states_and_eight_controls() -> None:
    kernel = linear(20, 8, 6, normal(5, 20, seed=7))
    solved = kernel.solve()
    share = (solved["controls"] <= -0.4).mean() + (solved["controls"] >= 0.3).mean()
    assert 0.2 < share < 0.9  # bounds are active, and not all
    assert_same(solved, kernel.reference())
    assert_same_gradients(kernel)


def box_programs(B: int, m: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q, q, lower and upper of programs with bounds near, at and far from the minimum, some missing, some closed."""
    Q, q = positive_definite(m, seed, B), normal(B, m, seed=seed + 1)
    lower, upper = -normal(B, m, seed=seed + 2).abs(), normal(B, m, seed=seed + 3).abs()
    kind = torch.randint(0, 8, (B, m), generator=torch.Generator().manual_seed(seed + 4))
    lower, upper = torch.where(kind == 0, -torch.inf, lower), torch.where(kind == 1, torch.inf, upper)
    return Q, q, torch.where(kind == 2, 0.0, lower), torch.where(kind == 3, lower, upper)


@pytest.mark.parametrize("m", [1, 8])
def test_one_step_finds_the_minimum_in_the_box(m: int) -> None:
    n, B = (3, 200) if m == 1 else (20, 60)
    Q, q, lower, upper = box_programs(B, m, seed=20)
    H, g = torch.zeros(B, n + m, n + m, dtype=FLOAT), torch.zeros(B, n + m, dtype=FLOAT)
    H[:, n:, n:], g[:, n:] = Q, q
    params = {"stage_cost.H": H, "stage_cost.g": g, "u_min": lower.unsqueeze(1), "u_max": upper.unsqueeze(1)}
    params |= {"terminal_cost.H": torch.zeros(B, n, n, dtype=FLOAT), "terminal_cost.g": torch.zeros(B, n, dtype=FLOAT)}
    solved = linear(n, m, 1, torch.zeros(B, n, dtype=FLOAT), params).solve()
    assert (solved["status"] == Status.CONVERGED).all()
    assert (solved["num_iterations"] <= 1).all()
    # both solve a linear system with condition numbers up to some hundreds
    np.testing.assert_allclose(solved["controls"][:, 0], problems.box_minimum(Q, q, lower, upper), rtol=0, atol=1e-11)


def test_the_cut_into_ranges_makes_no_difference() -> None:
    kernel = pendulum(FAR, pendulum_params(len(FAR), 20))
    whole = kernel.solve()
    for cuts in ((1, 2), (17,), (5, 5, 39)):
        parts = kernel.solve(cuts=cuts)
        for name, value in whole.items():
            np.testing.assert_array_equal(parts[name], value, err_msg=name)


def test_threads_make_no_difference() -> None:
    kernel = pendulum(FAR)
    whole = kernel.solve()
    with ThreadPoolExecutor(4) as pool:
        for solved in pool.map(lambda cut: kernel.solve(cuts=(cut,)), range(1, 9)):
            for name, value in whole.items():
                np.testing.assert_array_equal(solved[name], value, err_msg=name)


def test_a_range_leaves_the_others_alone() -> None:
    kernel = pendulum(NEAR)
    kernel.x0 = NEAR[:3]
    solved = kernel.solve()
    assert solved["controls"].any()
    kernel.module.solve(
        *(kernel.addresses, 20, kernel.sizes, 1, 2, NEAR[3:6].numpy(), kernel.P, kernel.table, kernel.bound_rows),
        *(
            np.array([3, 10, 0, 0, 0]),
            np.array([1e-8, 1e-4, 1e-4, 1e-6, 1e10, 10.0, np.inf]),
            *(changed := {k: v.copy() for k, v in solved.items()}).values(),
        ),
    )
    for name, value in solved.items():
        np.testing.assert_array_equal(changed[name][[0, 2]], value[[0, 2]], err_msg=name)
    assert (changed["states"][1] != solved["states"][1]).any()


@pytest.mark.parametrize("bad", [float("nan"), 1e200], ids=["NaN", "overflow"])
def test_a_bad_problem_leaves_its_neighbours_alone(bad: float) -> None:
    x0 = NEAR.clone()
    x0[4, 2] = bad
    solved, sound = pendulum(x0).solve(), pendulum(NEAR).solve()
    others = [b for b in range(len(NEAR)) if b != 4]
    assert solved["status"][4] == Status.NONFINITE
    for name, value in sound.items():
        np.testing.assert_array_equal(solved[name][others], value[others], err_msg=name)
    loss = tuple(torch.ones(sound[name].shape, dtype=FLOAT) for name in ("states", "controls", "cost"))
    dx0, gradients = pendulum(x0).gradient(solved, loss)
    expected, _ = pendulum(NEAR).gradient(sound, loss)
    np.testing.assert_array_equal(dx0[4], 0.0)
    np.testing.assert_array_equal(dx0[others], expected[others])
    assert all(np.isfinite(part).all() for part in gradients.values())


def test_what_has_not_converged_passes_no_gradient() -> None:
    kernel = pendulum(FAR)
    solved = kernel.solve()
    solved["status"][:] = Status.MAX_ITERATIONS
    loss = tuple(torch.ones(solved[name].shape, dtype=FLOAT) for name in ("states", "controls", "cost"))
    dx0, gradients = kernel.gradient(solved, loss)
    assert not dx0.any()
    assert not any(part.any() for part in gradients.values())


def test_without_values_only_the_start_states_get_a_gradient() -> None:
    kernel = pendulum(NEAR)
    solved = kernel.solve()
    loss = tuple(torch.ones(solved[name].shape, dtype=FLOAT) for name in ("states", "controls", "cost"))
    dx0, gradients = kernel.gradient(solved, loss, values=False)
    np.testing.assert_array_equal(dx0, kernel.gradient(solved, loss)[0])
    assert not any(part.any() for part in gradients.values())


@pytest.mark.parametrize("most", [1, 2, 5])
def test_iterations_are_limited_as_in_torch(most: int) -> None:
    options = ILQROptions(tolerance=1e-8, max_iterations=most, backend="torch")
    kernel = pendulum(FAR)
    reference = kernel.reference(options)
    assert (reference.status == Status.MAX_ITERATIONS).any()
    assert_same(kernel.solve(options), reference)


@pytest.mark.parametrize(("n", "m"), [(3, 1), (20, 8)])
def test_a_concave_cost_is_solved_as_in_torch(n: int, m: int) -> None:
    """By Gauss-Newton steps with the cost made convex; some controls end at their bounds."""
    B = 3
    H = positive_definite(n + m, 30, B)
    H[:, n::2, n::2] -= 3.0 * torch.eye((m + 1) // 2, dtype=FLOAT)
    kernel = linear(n, m, 3, normal(B, n, seed=31), {"stage_cost.H": H})
    reference = kernel.reference()
    assert reference.converged.all()
    assert ((reference.controls == -0.4) | (reference.controls == 0.3)).any()
    assert_same(kernel.solve(), reference)


def test_a_start_at_the_solution_takes_no_iteration() -> None:
    kernel = linear(
        3,
        1,
        4,
        torch.zeros(2, 3, dtype=FLOAT),
        {"u_min": torch.zeros(2, 1, dtype=FLOAT), "u_max": torch.zeros(2, 1, dtype=FLOAT)},
    )
    solved = kernel.solve()
    assert solved["status"].tolist() == [Status.CONVERGED] * 2
    assert solved["num_iterations"].tolist() == [0, 0]
    assert_same(solved, kernel.reference())


@pytest.mark.parametrize("m", [1, 2])
def test_the_joined_files_do_not_share_names(m: int) -> None:
    body = ast.parse(kernel_source(2, m)).body
    names = [node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    names += [
        target.id for node in body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)
    ]
    assert sorted({name for name in names if names.count(name) > 1}) == ["sweep_loop"]  # is replaced by its compiled self


@pytest.mark.parametrize(("n", "m"), [(0, 1), (3, 0), (3, 63)])
def test_impossible_sizes(n: int, m: int) -> None:
    with pytest.raises(ValueError, match=f"n = {n}, m = {m}"):
        kernel_source(n, m)


def test_wrong_arrays_are_refused_rather_than_compiled_for() -> None:
    kernel = pendulum(NEAR)
    kernel.x0 = NEAR.float()
    with pytest.raises(TypeError, match="No matching definition"):
        kernel.solve()
