"""A planner under torch.func, in forward mode, and inside checkpoints, inference mode and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.functional import jacobian
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

from dilqr_rl import ILQR, ControlProblem, Guess, ILQROptions, MultiStart, QuadraticCost, Solution, Status

OPTIONS = ILQROptions(tolerance=1e-11, step_tolerance=1e-8)
STARTS = torch.tensor([[0.3, 0.4], [-0.8, 1.1], [1.5, -0.5]], dtype=torch.float64)
FACTORS = torch.tensor([0.7, 1.0, 1.4], dtype=torch.float64)


class Swing(nn.Module):
    """A pendulum with a factor on its pull and one on its drive; the third control step or so sits on a bound."""

    def __init__(self) -> None:
        super().__init__()
        self.pull = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.drive = nn.Parameter(torch.tensor([0.8, 0.1], dtype=torch.float64))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        rate = x[..., 1] + 0.2 * (self.pull * torch.sin(x[..., 0]) + (self.drive * u).sum(-1))
        return torch.stack((x[..., 0] + 0.2 * rate, rate), -1)


def problem(bound: float | Tensor = 0.9) -> ControlProblem:
    cost = QuadraticCost([1.0, 0.1, 0.05, 0.2], [0.0, 0.0, 0.0, 0.0])
    return ControlProblem(
        Swing(), cost, lambda x: 2.0 * (x * x).sum(-1), horizon=6, state_size=2, control_size=2, u_min=-bound, u_max=bound
    )


@pytest.fixture(params=["native", "torch"])
def planner(request: pytest.FixtureRequest) -> ILQR:
    return ILQR(problem(), replace(OPTIONS, backend=request.param))


def differences(function: Callable[[Tensor], Tensor], x: Tensor, along: Tensor, step: float = 1e-5) -> Tensor:
    with torch.no_grad():
        return (function(x + step * along) - function(x - step * along)) / (2 * step)


def test_the_problem_has_free_and_held_controls(planner: ILQR) -> None:
    solution = planner(STARTS)
    assert solution.converged.all()
    held = solution.controls.abs() == 0.9
    assert held.any()
    assert not held.all()


@pytest.mark.parametrize("part", ["states", "controls", "cost"])
def test_jacobians_agree_in_every_way(planner: ILQR, part: str) -> None:
    def found(x0: Tensor) -> Tensor:
        return getattr(planner(x0), part)

    expected = jacobian(found, STARTS)
    along = torch.tensor([[0.6, -0.8], [0.1, 0.3], [-1.0, 0.5]], dtype=torch.float64)
    told = differences(found, STARTS, along)
    assert torch.allclose((expected * along).sum((-2, -1)), told, atol=1e-6)
    for way in (jacobian(found, STARTS, vectorize=True), jacrev(found)(STARTS), jacfwd(found)(STARTS)):
        assert torch.allclose(way, expected, atol=1e-9)
    assert torch.allclose(jvp(found, (STARTS,), (along,))[1], (expected * along).sum((-2, -1)), atol=1e-9)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(found(forward_ad.make_dual(STARTS, along))).tangent
        assert torch.allclose(tangent, (expected * along).sum((-2, -1)), atol=1e-9)
    out = found(STARTS.clone().requires_grad_())
    assert out.requires_grad


@pytest.mark.parametrize("name", ["dynamics.pull", "dynamics.drive", "stage_cost.weights", "stage_cost.goal", "u_max"])
@pytest.mark.parametrize("gradient", ["implicit", "diffmpc"])
def test_forward_mode_is_backward_modes_for_every_value(planner: ILQR, name: str, gradient: Any) -> None:
    other = ILQR(planner.problem, planner.options, gradient)
    value = planner.problem.get_parameter(name).detach() if name != "u_max" else planner.problem.u_max
    each = value.expand(3, *value.shape) + 0.05 * torch.arange(3, dtype=torch.float64).view(-1, *[1] * value.ndim)

    def found(value: Tensor) -> Tensor:
        solution = other(STARTS, {name: value})
        return torch.cat((solution.states.flatten(), solution.controls.flatten(), solution.cost))

    for values in (value, each):
        assert torch.allclose(jacfwd(found)(values), jacobian(found, values), atol=1e-8)
    if gradient == "implicit":
        assert torch.allclose(
            jacfwd(found)(value).flatten(1).sum(1) if value.ndim else jacfwd(found)(value),
            differences(found, value, torch.ones_like(value)),
            atol=1e-5,
        )


def test_gains_are_the_tangents_of_the_first_control(planner: ILQR) -> None:
    solution = planner(STARTS)
    first = vmap(jacfwd(lambda x: planner(x).controls[0]))(STARTS)
    assert torch.allclose(first, solution.gains[:, 0], atol=1e-6)


def test_vmap_makes_a_batch(planner: ILQR) -> None:
    def found(x0: Tensor, pull: Tensor) -> Solution:
        return planner(x0, {"dynamics.pull": pull})

    mapped = vmap(lambda x, p: vars(found(x, p)) | {"history": ()})(STARTS, FACTORS)
    batch = found(STARTS, FACTORS)
    for name in ("states", "controls", "cost", "status", "num_iterations", "gains", "singular"):
        assert torch.equal(mapped[name], getattr(batch, name)), name
    every = vmap(lambda p: vmap(lambda x: found(x, p).controls)(STARTS))(FACTORS)
    assert torch.equal(every, torch.stack([found(STARTS, p).controls for p in FACTORS]))
    shared = vmap(lambda p: found(STARTS, p).controls)(FACTORS)
    assert torch.equal(shared, every)


def test_a_guess_and_a_history_are_mapped_too() -> None:
    planner = ILQR(problem(), replace(OPTIONS, record=True))
    last = planner(STARTS + 0.05)
    guess = (last.controls, last.states, last.gains)
    mapped = vmap(lambda x, *parts: planner(x, guess=Guess(*parts)).history.cost)(STARTS, *guess)
    expected = planner(STARTS, guess=Guess(*guess)).history.cost
    assert torch.equal(mapped.nan_to_num(), expected.nan_to_num())


def test_several_starts_are_one_planner(planner: ILQR) -> None:
    """The gradient is that of the plan kept, in every mode."""
    several = MultiStart(planner)
    expected = jacobian(lambda x: several(x).controls, STARTS)
    for way in (jacrev, jacfwd):
        assert torch.allclose(way(lambda x: several(x).controls)(STARTS), expected, atol=1e-9)
    assert torch.equal(vmap(lambda x: several(x).cost)(STARTS), several(STARTS).cost)


def test_gradients_of_each_problem(planner: ILQR) -> None:
    def loss(pull: Tensor, x0: Tensor) -> Tensor:
        return planner(x0, {"dynamics.pull": pull}).states.square().sum()

    expected = torch.stack([jacobian(lambda p, x=x: loss(p, x), f) for f, x in zip(FACTORS, STARTS, strict=True)])
    assert (expected != 0).all()
    assert torch.allclose(vmap(grad(loss))(FACTORS, STARTS), expected, atol=1e-10)
    assert torch.allclose(grad(lambda f: vmap(loss)(f, STARTS).sum())(FACTORS), expected, atol=1e-10)
    assert torch.allclose(vmap(jacfwd(loss))(FACTORS, STARTS), expected, atol=1e-9)


def test_functional_call_and_the_gradients_of_each_sample(planner: ILQR) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.encoder, self.planner = nn.Linear(2, 2, dtype=torch.float64), planner

        def forward(self, x: Tensor) -> Tensor:
            return self.planner(x + 0.1 * self.encoder(x)).states

    net = Net()
    values = {name: value.detach() for name, value in net.named_parameters()}

    def loss(values: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, values, (x,)).square().sum()

    net(STARTS).square().sum().backward()
    whole, each = grad(loss)(values, STARTS), vmap(grad(loss), in_dims=(None, 0))(values, STARTS)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(whole[name], parameter.grad, atol=1e-10), name
        assert torch.allclose(each[name].sum(0), parameter.grad, atol=1e-10), name
    assert all(isinstance(parameter, nn.Parameter) for parameter in net.parameters())


def test_problems_that_did_not_converge_have_no_tangents(planner: ILQR) -> None:
    few = ILQR(planner.problem, replace(planner.options, max_iterations=1))
    assert (few(STARTS).status == Status.MAX_ITERATIONS).all()
    assert not jacfwd(lambda x: few(x).controls)(STARTS).any()


def test_what_has_no_derivative_says_so(planner: ILQR) -> None:
    with pytest.raises(NotImplementedError, match="second derivatives"):
        hessian(lambda x: planner(x).cost.sum())(STARTS)
    with pytest.raises(NotImplementedError, match="unroll"):
        grad(lambda x: ILQR(planner.problem, gradient="unroll")(x).cost.sum())(STARTS)
    with pytest.raises(ValueError, match="x0: expected finite numbers"):
        vmap(lambda x: planner(x).cost)(STARTS * torch.inf)


def test_cotangents_of_zero_ask_for_nothing(planner: ILQR) -> None:
    (controls, gains), pull = vjp(lambda x: (planner(x).controls, planner(x).gains), STARTS)
    (along,) = pull((torch.ones_like(controls), torch.zeros_like(gains)))
    assert torch.allclose(along, grad(lambda x: planner(x).controls.sum())(STARTS))


@pytest.mark.parametrize("part", ["gains", "residual", "history"])
def test_a_transform_takes_nothing_for_constant_in_silence(planner: ILQR, part: str) -> None:
    """Autograd tells by requires_grad what has no derivative."""
    one = ILQR(planner.problem, replace(planner.options, record=True))

    def found(x0: Tensor, detached: bool = False) -> Tensor:
        solution = one(x0)
        other = solution.history.cost.nan_to_num() if part == "history" else getattr(solution, part)
        return solution.controls.sum() + (other.detach() if detached else other).sum()

    for way in (grad, jacrev, lambda f: vmap(grad(f))):
        with pytest.raises(NotImplementedError, match=r"got one of gains, residual or history.*Put \.detach\(\) behind"):
            way(found)(STARTS)
    expected = jacobian(found, STARTS)
    assert jacfwd(found)(STARTS).isnan().all()
    for way in (grad, jacrev, jacfwd):
        assert torch.allclose(way(lambda x: found(x, detached=True))(STARTS), expected, atol=1e-9)
    assert not one(STARTS.clone().requires_grad_()).gains.requires_grad
    assert not vmap(lambda x: one(x).gains)(STARTS.clone().requires_grad_()).requires_grad


def test_a_plan_may_start_from_anothers_gains_under_a_transform(planner: ILQR) -> None:
    def again(x0: Tensor) -> Tensor:
        solution = planner(x0)
        return planner(x0, guess=Guess(solution.controls, solution.states, solution.gains)).controls

    expected = jacobian(lambda x: planner(x).controls, STARTS)
    for way in (jacrev, jacfwd):
        assert torch.allclose(way(again)(STARTS), expected, atol=1e-8)


def test_a_transforms_tensor_in_a_closure_is_refused() -> None:
    def loss(factor: Tensor, x0: Tensor = STARTS) -> Tensor:
        hidden = ControlProblem(
            lambda x, u: x + factor * u, lambda x, u: (x * x).sum(-1) + (u * u).sum(-1), horizon=4, state_size=2, control_size=2
        )
        return ILQR(hidden)(x0).cost.sum()

    with pytest.raises(ValueError, match="dynamics: depends on a tensor"):
        grad(loss)(torch.tensor(0.5, dtype=torch.float64))
    with pytest.raises(ValueError, match="dynamics: depends on a tensor"):
        vmap(loss)(FACTORS)
    with pytest.raises(ValueError, match="dynamics: depends on a tensor"):
        jacfwd(lambda factor: vmap(lambda x: loss(factor, x))(STARTS))(FACTORS[0])


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_checkpoints_go_around_a_planner(planner: ILQR, reentrant: bool, known: bool) -> None:
    expected = jacobian(lambda x: ILQR(problem(), planner.options)(x).cost.sum(), STARTS)
    if known:
        planner(STARTS)
    x0 = STARTS.clone().requires_grad_()
    checkpoint(lambda x: planner(x).cost.sum(), x0, use_reentrant=reentrant).backward()
    assert torch.equal(x0.grad, expected)


@pytest.mark.parametrize("inside", [False, True])
def test_inference_mode_first(planner: ILQR, inside: bool) -> None:
    """Also of a problem that was made inside, whose tensors know no gradients."""
    expected = planner(STARTS)
    with torch.inference_mode():
        other = ILQR(problem(), planner.options) if inside else ILQR(planner.problem, planner.options)
        found = other(STARTS.clone())
    assert torch.equal(found.controls, expected.controls)
    assert torch.equal(other(STARTS).controls, expected.controls)


def test_the_first_solve_may_be_inside_a_transform(caplog: pytest.LogCaptureFixture) -> None:
    expected = ILQR(problem(), OPTIONS)(STARTS).controls
    for way in (vmap, lambda f: lambda x: jacfwd(lambda y: f(y), has_aux=False) and f(x)):
        assert torch.allclose(way(lambda x: ILQR(problem().requires_grad_(False), OPTIONS)(x).controls)(STARTS), expected)
    assert not caplog.messages


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own, which it hides
def test_compiling_goes_around_a_planner(planner: ILQR) -> None:
    def act(x: Tensor) -> Tensor:
        return 2.0 * planner(x + 0.0).controls[:, 0]

    import torch._dynamo

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, first = torch.compile(act, backend="eager"), STARTS.clone().requires_grad_()
    compiled(first).sum().backward()
    again = STARTS.clone().requires_grad_()
    act(again).sum().backward()
    assert torch.equal(first.grad, again.grad)
    assert torch._dynamo.utils.counters["frames"]["total"] <= 3, "it went into the solver's own functions"


class Tied(nn.Module):
    """Two functions that hold one parameter, and an integer that is a setting."""

    def __init__(self, factor: nn.Parameter) -> None:
        super().__init__()
        self.factor, self.count = factor, nn.Buffer(torch.tensor(1))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.count * self.factor * x + u


class TiedCost(nn.Module):
    def __init__(self, factor: nn.Parameter) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.factor * (x * x).sum(-1) + (u * u).sum(-1)


def test_tied_tensors_and_integers_are_handed_over() -> None:
    factor = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
    tied = ControlProblem(Tied(factor), TiedCost(factor), horizon=3, state_size=2, control_size=2)
    one = ILQR(tied, OPTIONS)
    expected = torch.stack([one(STARTS[0], {"dynamics.factor": f}).cost for f in FACTORS])
    found = vmap(lambda f: functional_call(one, {"problem.dynamics.factor": f}, (STARTS[0],)).cost)(FACTORS)
    assert torch.allclose(found, expected)
    assert not torch.allclose(expected[:1], expected[1:])
    twice = {"dynamics.count": torch.tensor(2)}
    assert torch.allclose(vmap(lambda x: one(x, twice).cost)(STARTS), one(STARTS, twice).cost)


def cubed(x: Tensor) -> Tensor:
    """3 x² by torch.func, row by row."""
    rows = x.reshape(-1, x.shape[-1])
    return vmap(grad(lambda row: (row**3).sum()))(rows).reshape(x.shape)


def test_a_model_may_be_made_of_transforms() -> None:
    def solve(drag: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        cost = QuadraticCost([1.0] * 4, [0.5] * 4)
        one = ControlProblem(lambda x, u: 0.9 * x + u - 0.01 * drag(x), cost, horizon=3, state_size=2, control_size=2)
        x0 = STARTS.clone().requires_grad_()
        controls = ILQR(one, replace(OPTIONS, backend="torch"))(x0).controls
        return controls, *torch.autograd.grad(controls.square().sum(), x0)

    for found, truth in zip(solve(cubed), solve(lambda x: 3.0 * x * x), strict=True):
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-8)


def test_another_transforms_tensor_inside_a_models_own_is_refused() -> None:
    def loss(factor: Tensor) -> Tensor:
        inner = vmap(lambda row: row * factor)
        cost = QuadraticCost([1.0] * 4, [0.5] * 4)
        hidden = ControlProblem(lambda x, u: x + inner(u), cost, horizon=3, state_size=2, control_size=2)
        return ILQR(hidden, replace(OPTIONS, backend="torch"))(STARTS).cost.sum()

    for transformed in (lambda: grad(loss)(FACTORS[0]), lambda: vmap(loss)(FACTORS)):
        with pytest.raises(ValueError, match="dynamics: depends on a tensor"):
            transformed()
    with pytest.raises(ValueError, match="dynamics: depends on a tensor"):
        vmap(lambda x, factor: ILQR(scaled(factor), replace(OPTIONS, backend="torch"))(x).cost)(STARTS, FACTORS)


def scaled(factor: Tensor) -> ControlProblem:
    inner = vmap(lambda row: row * factor)
    cost = QuadraticCost([1.0] * 4, [0.5] * 4)
    return ControlProblem(lambda x, u: x + inner(u[None])[0], cost, horizon=3, state_size=2, control_size=2)


def test_a_leaf_in_a_closure_is_refused_under_a_transform(planner: ILQR) -> None:
    hidden = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    one = ControlProblem(lambda x, u: x + hidden * u, planner.problem.stage_cost, horizon=3, state_size=2, control_size=2)
    with pytest.raises(ValueError, match="dynamics: depends on a tensor that requires a gradient"):
        vmap(lambda x: ILQR(one, planner.options)(x).cost)(STARTS)
