"""Models that surprise a tracer, and what native code makes of them: what PyTorch does, or a word."""

from __future__ import annotations

import logging
from typing import Any, Literal

import numpy as np
import pytest
import torch
from odd_models import FLOAT, Model, verdict
from torch import Tensor, nn

from dilqr_rl import ILQR, ControlProblem, ILQROptions, QuadraticCost, compile_dynamics
from dilqr_rl.modules import tensors_of
from dilqr_rl.native.model import Functions, write_model
from dilqr_rl.native.tracing import UntraceableError

X0 = torch.tensor([[0.3, 0.4], [-0.5, 0.2]], dtype=FLOAT)


def problem_of(dynamics: Any) -> ControlProblem:
    cost = QuadraticCost([1.0, 1.0, 0.1, 0.1], [0.5, 0.5, 0.0, 0.0])
    return ControlProblem(dynamics, cost, horizon=3, state_size=2, control_size=2, u_min=-1.0, u_max=1.0)


def plan(dynamics: Any, backend: Literal["auto", "native", "torch"]) -> Tensor:
    return ILQR(problem_of(dynamics), ILQROptions(backend=backend, tolerance=1e-10))(X0).controls.detach()


# What is traced.


def test_random_odd_models_are_traced_right_or_not_at_all() -> None:
    """Values at 20 random points each; the function itself is the truth, but for rounding."""
    traced = 0
    for seed in range(50):
        model, generator = Model(seed), torch.Generator().manual_seed(seed)
        x, u = (1.2 * torch.randn(20, 3, generator=generator, dtype=FLOAT) for _ in range(2))
        tensors = list({id(tensor): tensor for tensor in tensors_of(model).values()}.values())
        try:
            code = write_model(Functions(model, None, None, 3, 3), tensors, only=("constants", "advance"))
        except UntraceableError:
            continue
        traced += 1
        with torch.no_grad():
            truth = model(x.clone(), u.clone())
        found = [code.evaluate(*point)[0] for point in zip(x.tolist(), u.tolist(), strict=True)]
        np.testing.assert_allclose(found, truth.numpy(), rtol=1e-12, atol=1e-12, err_msg=model.source)
    assert traced > 30  # the others have no native form, and say so


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 14, 19])
def test_planners_solve_odd_models_or_say_so_before_and_after_a_change(seed: int) -> None:
    assert not verdict(seed).startswith("WRONG"), verdict(seed)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 2, dtype=FLOAT)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return x + 0.1 * torch.tanh(self.layer(torch.cat((x, u), -1))) + 0.2 * u


def test_a_module_of_torch_fx_is_traced_as_what_it_was_made_of() -> None:
    """Its class has a `__new__` of its own."""
    one = Affine()
    assert torch.equal(plan(torch.fx.symbolic_trace(one), "native"), plan(one, "native"))


def masked_sum(x: Tensor, u: Tensor) -> Tensor:
    return 0.9 * x + u + 0.1 * ((x > 0) + (x > 0.1)).to(x.dtype) + 0.1 * (x > 0).cumsum(-1) * x


def in_single_precision(x: Tensor, u: Tensor) -> Tensor:
    return 0.9 * x + u + 0.1 * (x > -0.7).float() * 0.3


def copied_by_contiguous(x: Tensor, u: Tensor) -> Tensor:
    a = x.unsqueeze(-1) * torch.tensor([1.0, 2.0], dtype=x.dtype)
    b = a.transpose(-1, -2).contiguous()
    b.clamp_(max=0.1)
    return 0.9 * x + u + 0.05 * a.sum(-1) + 0.05 * b.sum(-2)


def copied_by_to(x: Tensor, u: Tensor) -> Tensor:
    y = x.to(x.device, copy=True)
    y.clamp_(max=0.1)
    return 0.9 * x + u + 0.1 * y


def accumulated_twice(x: Tensor, u: Tensor) -> Tensor:
    y = (1.0 * x).movedim(-1, 0).contiguous()
    y.index_put_((torch.tensor([0, 0]),), x.movedim(-1, 0), accumulate=True)
    return 0.9 * x + u + 0.1 * y.movedim(0, -1)


def over_nothing(x: Tensor, u: Tensor) -> Tensor:
    for reference in torch.zeros(0, 2, dtype=x.dtype).unbind(0):
        x = x + reference
    return 0.9 * x + u + 0.1 * sum(x[..., 1:].unbind(-1)).unsqueeze(-1)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "dynamics", [over_nothing, masked_sum, in_single_precision, copied_by_contiguous, copied_by_to, accumulated_twice]
)
def test_types_and_memory_are_torchs(dynamics: Any) -> None:
    """Natively, the states are the function's own rollout: to rounding, also where float32 rounds."""
    solution = ILQR(problem_of(dynamics), ILQROptions(backend="native"))(X0)
    x = X0
    for u, following in zip(solution.controls.unbind(1), solution.states.unbind(1)[1:], strict=True):
        x = dynamics(x, u)
        torch.testing.assert_close(following, x, rtol=0, atol=1e-12)


HIDDEN = nn.Linear(2, 40, dtype=FLOAT).requires_grad_(False)


def view_of_a_layer(x: Tensor, u: Tensor) -> Tensor:
    hidden = HIDDEN(x)
    hidden.unsqueeze(-1).clamp_(min=0.0)
    return 0.9 * x + u + 0.01 * hidden.sum(-1, keepdim=True)


def slice_of_a_view_of_a_layer(x: Tensor, u: Tensor) -> Tensor:
    hidden = HIDDEN(x)
    hidden.reshape(*hidden.shape[:-1], 8, 5)[..., 0].clamp_(max=3.0)
    return 0.9 * x + u + 0.01 * hidden.sum(-1, keepdim=True)


def layer_beside_its_detached_self(x: Tensor, u: Tensor) -> Tensor:
    hidden = HIDDEN(x)
    before = hidden.detach()
    hidden[..., :20].clamp_(max=3.0)
    return 0.9 * x + u + 0.01 * before.sum(-1, keepdim=True)


def view_that_is_detached(x: Tensor, u: Tensor) -> Tensor:
    y = 1.0 * x
    y.detach().clamp_(max=0.1)
    return 0.9 * x + u + 0.1 * y


WRITES = [view_of_a_layer, slice_of_a_view_of_a_layer, layer_beside_its_detached_self, view_that_is_detached]


@pytest.mark.parametrize("dynamics", WRITES)
def test_a_write_that_not_all_views_would_see_is_refused(dynamics: Any) -> None:
    with pytest.raises(
        ValueError, match=r"an in-place operation on a tensor that has been detached or looked at in another sh"
    ):
        plan(dynamics, "native")


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return w.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -0.5 * gradient


class Gain(nn.Module):
    """The control's gain, by way of a function."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.gain = function, nn.Parameter(torch.tensor(0.33, dtype=FLOAT))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return 0.9 * x + self.function(self.gain) * u


def gradient_by_gain(function: Any) -> Tensor:
    model = Gain(function)
    ILQR(problem_of(model))(X0).states.sum().backward()
    assert model.gain.grad is not None
    return model.gain.grad


def test_a_custom_backward_of_a_parameter_is_followed() -> None:
    """The truth: -0.5 times the derivative of the same values."""
    torch.testing.assert_close(gradient_by_gain(Scaled.apply), -0.5 * gradient_by_gain(torch.clone), rtol=1e-8, atol=1e-10)
    with pytest.raises(ValueError, match=r"in a custom autograd.Function, whose backward only PyTorch follows"):
        plan(Gain(Scaled.apply), "native")


def test_a_backward_hook_of_a_layer_is_followed() -> None:
    model = Gain(nn.Identity())
    model.function.register_full_backward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"Identity has backward hooks, which only PyTorch follows"):
        plan(model, "native")


class Hooked(nn.Module):
    """A gain of the control whose gradient goes through a hook."""

    def __init__(self, hook: Any, bent: bool = False, beyond: float = 0.0) -> None:
        super().__init__()
        self.hook, self.bent, self.beyond = hook, bent, beyond
        self.gain = nn.Parameter(torch.tensor(0.33, dtype=FLOAT))

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        y = self.gain * x if self.bent else 1.0 * self.gain
        if y.requires_grad:
            hooked = bool((x.detach().abs() > self.beyond).any())
            y.register_hook(lambda gradient: self.hook(gradient) if hooked else None)
        return 0.4 * x + u + (torch.sin(y) if self.bent else y * x)


def states_gradient(model: Hooked, backend: Literal["auto", "torch"]) -> Tensor:
    model.gain.grad = None
    ILQR(problem_of(model), ILQROptions(backend=backend))(X0).states.sum().backward()
    assert model.gain.grad is not None
    return model.gain.grad


@pytest.mark.parametrize("bent", [False, True])
def test_a_hook_on_what_a_parameter_became_is_followed(bent: bool) -> None:
    """Of something that the state is in, too, detaching changes the second derivatives alone."""
    model = Hooked((lambda g: g.detach()) if bent else (lambda g: -0.5 * g), bent)
    torch.testing.assert_close(states_gradient(model, "auto"), states_gradient(model, "torch"), rtol=1e-9, atol=0)
    with pytest.raises(ValueError, match=r"other derivatives by their parameters, or other second ones, .* a hook of a tensor"):
        plan(model, "native")


def test_a_hook_that_changes_nothing_costs_nothing() -> None:
    plan(Hooked(lambda _: None), "native")


def test_a_hook_that_acts_far_from_the_start_is_found_at_the_first_gradient(caplog: pytest.LogCaptureFixture) -> None:
    """At the points of the first comparison there is none yet."""
    model = Hooked(lambda gradient: -0.5 * gradient, beyond=1.0)
    goal = QuadraticCost([1.0, 1.0, 0.1, 0.1], [2.0, 2.0, 0.0, 0.0])
    problem = ControlProblem(model, goal, horizon=3, state_size=2, control_size=2)
    found = []
    with caplog.at_level(logging.WARNING, logger="dilqr_rl"):
        for backend in ("auto", "torch"):
            model.gain.grad = None
            ILQR(problem, ILQROptions(backend=backend))(X0).states.sum().backward()  # type: ignore[arg-type]
            found.append(model.gain.grad)
    torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=0)
    assert caplog.text.count("its derivatives gave other results than native code that was made from them") == 1
    with pytest.raises(ValueError, match=r"its derivatives gave other results"):
        ILQR(problem, ILQROptions(backend="native"))(X0)


# What functions keep.


class ByShape(nn.Module):
    state_size = control_size = 2

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[Any, Tensor] = {}

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        shape = x.shape[:-1]
        if shape not in self.cache:
            self.cache[shape] = torch.full((*shape, 1), 0.9, dtype=x.dtype)
        return self.cache[shape] * x + u


@pytest.mark.parametrize("backend", ["auto", "native", "torch"])
def test_a_functions_cache_can_be_used_after_its_trace(backend: Literal["auto", "native", "torch"]) -> None:
    model = ByShape()
    want = plan(lambda x, u: 0.9 * x + u, "torch")
    torch.testing.assert_close(plan(model, backend), want, rtol=0, atol=1e-9)
    torch.testing.assert_close(model(X0[:1], X0[:1]), 0.9 * X0[:1] + X0[:1], rtol=0, atol=0)
    step = compile_dynamics(model)
    np.testing.assert_allclose(step(X0[0].numpy(), X0[1].numpy()), 0.9 * X0[0] + X0[1], rtol=1e-15)
    torch.testing.assert_close(plan(model, "torch"), want, rtol=0, atol=1e-9)


class Shared(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, dtype=FLOAT)
        self.net = nn.Sequential(self.layer, nn.Tanh(), self.layer)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return 0.9 * x + 0.2 * self.net(x) + u


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_module_under_two_names_keeps_its_parameters(backend: Literal["native", "torch"]) -> None:
    """Central differences in its weight, twice, since the first call used to take the parameter away."""
    problem = problem_of(Shared())
    planner, weight = ILQR(problem, ILQROptions(backend=backend, tolerance=1e-11)), problem.dynamics.layer.weight  # type: ignore[union-attr]
    for _ in range(2):
        problem.zero_grad()
        planner(X0).controls.square().sum().backward()
        sums = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[0, 1] += step  # type: ignore[index,operator]
                sums.append(planner(X0).controls.square().sum().item())
                weight[0, 1] -= step  # type: ignore[index,operator]
        assert weight is problem.dynamics.layer.weight  # type: ignore[union-attr]
        assert weight.grad[0, 1].item() == pytest.approx((sums[0] - sums[1]) / 2e-5, rel=1e-6)  # type: ignore[union-attr,index]


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        self.calls += 1
        return 0.9 * x + u


def test_code_that_is_made_anew_at_every_call_is_told(caplog: pytest.LogCaptureFixture) -> None:
    planner = ILQR(problem_of(Counts()))
    with caplog.at_level(logging.WARNING, logger="dilqr_rl"):
        for _ in range(12):
            planner(X0)
    assert caplog.text.count("has been made anew 8 times, since what its functions read has changed") == 1
