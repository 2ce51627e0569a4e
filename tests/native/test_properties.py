"""Random models: formulas and small networks with parameters, from random starts, within random bounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from interpreted_code import differences
from problems import FLOAT, normal, uniform
from torch import Tensor, nn

from dilqr_rl import ILQR, ControlProblem, ILQROptions, Solution, explain

Formula = tuple[Any, ...]
PARAMETERS, BATCH, HORIZON = 4, 24, 4
SIZES = ((3, 1), (3, 2), (4, 2))
EACH_MODEL = {"deadline": None, "suppress_health_check": list(HealthCheck)}
COMPILED = {**EACH_MODEL, "phases": (Phase.explicit, Phase.reuse, Phase.generate)}  # to shrink would take minutes
ONE: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tanh": torch.tanh,
    "atan": torch.atan,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "square": lambda a: 0.3 * a**2,
    "cube": lambda a: 0.1 * a**3,
    "root": lambda a: torch.sqrt(1.0 + a * a),
    "log": lambda a: torch.log1p(a.square()),
    "bell": lambda a: torch.exp(-a * a),
    "inverse": lambda a: 1 / (1.5 + a.sin()),
    "power": lambda a: (1 + a * a) ** 0.7,
    "negative": lambda a: -a,
}
TWO: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: 0.5 * a * b,
    "/": lambda a, b: a / (1 + b**2),
    "atan2": lambda a, b: torch.atan2(a, 1.5 + b.cos()),
    "hypot": lambda a, b: torch.hypot(a, 1 + b * b),
    "where": lambda a, b: torch.where(a > 0, a * a * b, a**2 * 0.5),  # smooth once: like a spring with an end stop
    "power": lambda a, b: (1 + a * a) ** torch.tanh(b),
}


def evaluate(formula: Formula, x: Tensor, u: Tensor, p: Tensor) -> Tensor:
    kind, *rest = formula
    if kind == "x":
        return x[..., rest[0] % x.shape[-1]]
    if kind == "u":
        return u[..., rest[0] % u.shape[-1]]
    if kind == "p":
        return p[rest[0]].expand(x.shape[:-1])
    if kind == "number":
        return torch.full(x.shape[:-1], rest[0], dtype=x.dtype)
    parts = [evaluate(part, x, u, p) for part in rest]
    return ONE[kind](parts[0]) if len(parts) == 1 else TWO[kind](*parts)


LEAVES = st.one_of(
    st.tuples(st.just("x"), st.integers(0, 3)),
    st.tuples(st.just("u"), st.integers(0, 1)),
    st.tuples(st.just("p"), st.integers(0, PARAMETERS - 1)),
    st.tuples(st.just("number"), st.floats(-2.0, 2.0).map(lambda number: round(number, 2))),
)
FORMULAS = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.tuples(st.sampled_from(sorted(ONE)), parts), st.tuples(st.sampled_from(sorted(TWO)), parts, parts)
    ),
    max_leaves=6,
)


class RandomDynamics(nn.Module):
    """A tame linear system, and a formula in each component."""

    def __init__(self, formulas: list[Formula], m: int) -> None:
        super().__init__()
        self.formulas = formulas
        self.p = nn.Parameter(normal(PARAMETERS, seed=1))
        self.B = nn.Parameter(0.3 * normal(len(formulas), m, seed=2))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        random = torch.stack([evaluate(formula, x, u, self.p) for formula in self.formulas], dim=-1)
        return 0.7 * x + u @ self.B.mT + 0.2 * torch.tanh(random)


class RandomEnd(nn.Module):
    """The square of a formula."""

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.formula = formula
        self.p = nn.Parameter(normal(PARAMETERS, seed=4))

    def forward(self, x: Tensor) -> Tensor:
        return evaluate(self.formula, x, x[..., :1], self.p).square()


class RandomCost(nn.Module):
    """A tame quadratic cost, and the square of a formula."""

    def __init__(self, formula: Formula) -> None:
        super().__init__()
        self.formula = formula
        self.p = nn.Parameter(normal(PARAMETERS, seed=3))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        tame = 0.5 * (x - 0.3).square().sum(-1) + 0.2 * u.square().sum(-1)
        return tame + 0.1 * torch.tanh(evaluate(self.formula, x, u, self.p)) ** 2


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu by tanh": nn.GELU(approximate="tanh"),
    "softplus": nn.Softplus(),
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "mish": F.mish,
    "softmax": lambda h: torch.softmax(h, dim=-1),
    "layer_norm": lambda h: F.layer_norm(h, h.shape[-1:]) if h.shape[-1] > 2 else h.sin(),
}


class RandomNetwork(nn.Module):
    """x and a share of a network of (x, u), whose layers may skip, and see the input again."""

    def __init__(self, n: int, m: int, layers: list[tuple[int, str, bool, bool]]) -> None:
        super().__init__()
        self.plan = layers
        self.layers = nn.ModuleList()
        size = n + m
        for width, _, bias, again in layers:
            self.layers.append(nn.Linear(size, width, bias=bias, dtype=FLOAT))
            size = width + (n + m if again else 0)
        self.last = nn.Linear(size, n, dtype=FLOAT)
        for place, weight in enumerate(self.parameters()):
            weight.data.copy_(normal(*weight.shape, seed=30 + place) / math.sqrt(weight.shape[-1]))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        z = torch.cat((x, u), dim=-1)
        hidden = z
        for layer, (width, activation, _, again) in zip(self.layers, self.plan, strict=True):
            result = ACTIVATIONS[activation](layer(hidden))
            hidden = result + hidden if width == hidden.shape[-1] else result
            hidden = torch.cat((hidden, z), dim=-1) if again else hidden
        return 0.8 * x + 0.2 * self.last(hidden)


class NetworkCost(nn.Module):
    """The square of what a network predicts."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.network(x, u).square().sum(-1) + 0.1 * u.square().sum(-1)


LAYERS = st.lists(
    st.tuples(st.sampled_from((1, 2, 5, 8, 9, 16, 33, 70)), st.sampled_from(sorted(ACTIVATIONS)), st.booleans(), st.booleans()),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module", autouse=True)
def a_cache_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Models that never come again would pile up in the user's cache; the kernels, compiled before, stay there."""
    for n, m in SIZES:
        plain = ControlProblem(
            lambda x, u: 0.9 * x + u.sum(-1, keepdim=True),
            lambda x, u: x.square().sum(-1) + u.square().sum(-1),
            horizon=1,
            state_size=n,
            control_size=m,
        )
        solve(plain, torch.ones(1, n, dtype=FLOAT), "native")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DILQR_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


def solve(problem: ControlProblem, x0: Tensor, backend: Literal["native", "torch"], **arguments: Any) -> Solution:
    return ILQR(problem, ILQROptions(tolerance=1e-11, backend=backend))(x0, **arguments)


def leaves_of(problem: ControlProblem, seed: int, scale: float) -> dict[str, Tensor]:
    """Random starts, parameters and bounds: some shared, some per problem, some per problem and step."""
    leads = ((), (BATCH,), (BATCH, HORIZON))
    leaves = {"x0": scale * normal(BATCH, problem.state_size, seed=seed)}
    for place, (name, own) in enumerate(problem.named_parameters()):
        lead = leads[(place + seed) % 3]
        leaves[name] = own.detach() + 0.2 * scale * normal(*lead, *own.shape, seed=seed + place + 1)
    sides = uniform(BATCH, seed, *[(0.05, 0.8)] * (2 * problem.control_size))
    leaves["u_min"], leaves["u_max"] = -sides[:, : problem.control_size], sides[:, problem.control_size :]
    return {name: leaf.requires_grad_() for name, leaf in leaves.items()}


def assert_agreement(problem: ControlProblem, seed: int, scale: float) -> None:
    found = []
    for backend in ("native", "torch"):
        leaves = leaves_of(problem, seed, scale)
        solution = solve(problem, leaves["x0"], backend, params={name: leaf for name, leaf in leaves.items() if name != "x0"})
        parts = (solution.states, solution.controls, solution.cost)
        loss = torch.stack([(part * normal(*part.shape, seed=seed + 9)).sum() for part in parts]).sum()
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        found.append((solution, dict(zip(leaves, gradients, strict=True))))
    (native, ours), (reference, theirs) = found
    assert torch.equal(native.status, reference.status), (native.describe(), reference.describe())
    good = reference.converged
    assert good.any(), reference.describe()
    for name in ("controls", "states", "cost"):
        one, other = (getattr(solution, name)[good] for solution in (native, reference))
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}")
    largest = max(gradient.norm().item() for gradient in theirs.values())
    for name, other in theirs.items():
        error = (ours[name] - other).norm().item() / max(other.norm().item(), 1e-3 * largest, 1e-6)
        assert error <= 1e-7, f"{name}: {error:.1e} apart"  # of a tolerance of 1e-11 and a condition of up to 1e4


# Several starts, parameters and bounds for one model, since only the model takes long.
VALUES = st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from((0.1, 0.5, 1.0, 2.0))), min_size=3, max_size=5)


@settings(max_examples=40, **EACH_MODEL)
@given(st.sampled_from(SIZES), st.lists(FORMULAS, min_size=5, max_size=5), st.integers(0, 10**6))
def test_the_code_of_random_formulas_has_their_derivatives(sizes: tuple[int, int], formulas: list[Formula], seed: int) -> None:
    """Run by Python: many models, and no compiler to wait for."""
    n, m = sizes
    parts = (RandomDynamics(formulas[:n], m), RandomCost(formulas[-1]), RandomEnd(formulas[0]))
    problem = ControlProblem(*parts, horizon=1, state_size=n, control_size=m)
    assert not differences(problem, [seed, seed + 1])


@settings(max_examples=4, **COMPILED)
@given(st.sampled_from(SIZES), st.lists(FORMULAS, min_size=5, max_size=5), VALUES)
def test_random_formulas_agree(sizes: tuple[int, int], formulas: list[Formula], values: list[tuple[int, float]]) -> None:
    n, m = sizes
    problem = ControlProblem(
        RandomDynamics(formulas[:n], m), RandomCost(formulas[-1]), horizon=HORIZON, state_size=n, control_size=m
    )
    for seed, scale in values:
        assert_agreement(problem, seed, scale)


@settings(max_examples=15, **EACH_MODEL)
@given(st.sampled_from(SIZES), LAYERS, st.integers(0, 10**6))
def test_the_code_of_random_networks_has_their_derivatives(
    sizes: tuple[int, int], layers: list[tuple[int, str, bool, bool]], seed: int
) -> None:
    n, m = sizes
    dynamics = RandomNetwork(n, m, layers)
    problem = ControlProblem(dynamics, NetworkCost(dynamics), horizon=1, state_size=n, control_size=m)
    assume("too large" not in explain(problem).reason)  # as the derivatives of a wide softmax are
    assert not differences(problem, [seed])


@pytest.mark.slow
@settings(max_examples=2, **COMPILED)
@given(st.sampled_from(SIZES), LAYERS, FORMULAS, VALUES)
def test_random_networks_agree(
    sizes: tuple[int, int], layers: list[tuple[int, str, bool, bool]], formula: Formula, values: list[tuple[int, float]]
) -> None:
    n, m = sizes
    problem = ControlProblem(RandomNetwork(n, m, layers), RandomCost(formula), horizon=HORIZON, state_size=n, control_size=m)
    for seed, scale in values:
        assert_agreement(problem, seed, scale)
