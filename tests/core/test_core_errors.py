"""Bad input: each ends at the door, in a ValueError that names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from problems import FLOAT, GRADIENTS, Gradient, LinearDynamics, pendulum, quadrotor, smallest
from torch import Tensor, nn

from dilqr_rl import ILQR, Guess, ILQROptions, QuadraticCost

X0 = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.5]], dtype=FLOAT)
ANYTHING: Any = "pendulum"
NAN, INF = float("nan"), float("inf")


def plan(x0: Any = X0, params: Any = None, u_init: Any = None, guess: Any = None, **settings: Any) -> Any:
    return ILQR(pendulum(4), **settings)(x0, params=params, u_init=u_init, guess=guess)


def plan_with(**changes: Any) -> Any:
    return ILQR(smallest(**changes))(torch.ones(2, 1, dtype=FLOAT))


def options(**settings: Any) -> ILQROptions:
    return ILQROptions(**settings)


def full(*shape: int, value: float = 1.0) -> Tensor:
    return torch.full(shape, value, dtype=FLOAT)


class TiedCost(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        return self.model(x, u).square().sum(-1)


TIED = LinearDynamics(full(1, 1), full(1, 1))
HIDDEN = torch.ones((), dtype=FLOAT, requires_grad=True)

CASES: dict[str, tuple[Callable[[], object], str]] = {
    "x0 without numbers": (
        lambda: plan(X0.to("meta")),
        r"x0: expected numbers, got a tensor on the meta device, which has none\.",
    ),
    "a lazy layer": (
        lambda: plan_with(dynamics=nn.Sequential(nn.LazyLinear(1))),
        r"0\.weight: expected a parameter with a shape, got one of a lazy module\. Call the module once",
    ),
    # The problem
    "horizon zero": (lambda: smallest(horizon=0), r"horizon: expected a positive integer, got 0\."),
    "horizon a float": (lambda: smallest(horizon=3.0), r"horizon: expected a positive integer, got 3\.0\."),
    "horizon a bool": (lambda: smallest(horizon=True), r"horizon: expected a positive integer, got True\."),
    "state_size": (lambda: smallest(state_size=-1), r"state_size: expected a positive integer, got -1\."),
    "control_size": (lambda: smallest(control_size="1"), r"control_size: expected a positive integer, got '1'\."),
    "dynamics": (lambda: smallest(dynamics=3), r"dynamics: expected an nn\.Module or a function, got int 3\."),
    "stage_cost": (
        lambda: smallest(stage_cost="quadratic"),
        r"stage_cost: expected an nn\.Module or a function, got str 'quadratic'\.",
    ),
    "terminal_cost": (
        lambda: smallest(terminal_cost=full(2)),
        r"terminal_cost: expected an nn\.Module or a function, got Tensor",
    ),
    "bounds swapped": (
        lambda: smallest(u_min=2.0, u_max=-2.0),
        r"u_min, u_max: expected u_min <= u_max, got u_min = 2 with u_max = -2\. Are they swapped\?",
    ),
    "one bound swapped": (
        lambda: smallest(control_size=2, u_min=torch.tensor([0.0, 3.0]), u_max=1.0),
        r"u_min, u_max: expected u_min <= u_max, got u_min = 3 with u_max = 1\.",
    ),
    "bound nan": (
        lambda: smallest(u_max=NAN),
        r"u_max: expected numbers, got NaN\. Leave it out, or use infinity, where there is no",
    ),
    "u_min infinite": (
        lambda: smallest(u_min=INF),
        r"u_min: expected a number, or -inf for no bound, got inf: no control is with",
    ),
    "u_max infinite": (
        lambda: smallest(u_max=-INF),
        r"u_max: expected a number, or inf for no bound, got -inf: no control is wi",
    ),
    "u_min infinite in params": (lambda: plan(params={"u_min": full(1, value=INF)}), r"u_min: expected a number, or -inf for"),
    "bound text": (lambda: smallest(u_min="low"), r"u_min: expected a number or a tensor \(1,\), got 'low'\."),
    "bound with a gradient": (
        lambda: smallest(u_max=2.0 * HIDDEN),
        r"u_max: expected numbers or an nn\.Parameter, got a tensor that requires a gradient, which would be lost\. Pass it to the",
    ),
    "bound shape": (lambda: smallest(u_min=full(2)), r"u_min: expected a number or a tensor \(1,\), got shape \(2,\)\."),
    "bound matrix": (
        lambda: smallest(u_max=nn.Parameter(full(1, 1))),
        r"u_max: expected a number or a tensor \(1,\), got shape \(1, 1\)\.",
    ),
    # The ready-made cost
    "goal shape": (
        lambda: QuadraticCost([1.0, 1.0], [0.0]),
        r"goal: expected the shape of weights, \(2,\), got \(1,\)\. Give one goal",
    ),
    "weights nan": (
        lambda: QuadraticCost([NAN], [0.0]),
        r"weights: expected a vector \(n\+m,\) of finite numbers, got \[nan\]\.",
    ),
    "weights text": (
        lambda: QuadraticCost(ANYTHING, [0.0]),
        r"weights: expected a vector \(n\+m,\) of finite numbers, got 'pendulum'\.",
    ),
    "goal with a gradient": (
        lambda: QuadraticCost([1.0], HIDDEN.reshape(1)),
        r"goal: expected numbers or an nn\.Parameter, got a tensor that requires a gradient, which would be lost\. Pass it to the",
    ),
    "weights matrix": (
        lambda: QuadraticCost(full(2, 2), full(2)),
        r"weights: expected a vector \(n\+m,\) of finite numbers, got tensor",
    ),
    "goal integers": (
        lambda: QuadraticCost([1.0], torch.tensor([1])),
        r"goal: expected a vector \(n\+m,\) of finite numbers, got tensor",
    ),
    # The planner
    "problem": (lambda: ILQR(ANYTHING), r"problem: expected a ControlProblem, got str\."),
    "options": (lambda: plan(options={"tolerance": 1.0}), r"options: expected ILQROptions, got dict\."),
    "gradient": (
        lambda: plan(gradient="exact"),
        r"gradient: expected one of \('implicit', 'diffmpc', 'unroll'\), got 'exact'\.",
    ),
    # The options
    "native unrolled": (
        lambda: ILQR(pendulum(3), options(backend="native"), gradient="unroll"),
        r'gradient: "unroll" has no native form; use backend="auto" or "torch" with it\.',
    ),
    "backend": (lambda: options(backend="cuda"), r"backend: expected \"auto\", \"native\" or \"torch\", got 'cuda'\."),
    "max_iterations": (lambda: options(max_iterations=0), r"max_iterations: expected a positive integer, got 0\."),
    "max_iterations huge": (lambda: options(max_iterations=2**70), r"max_iterations: expected at most 1000000000, got 1180591"),
    "max_iterations float": (
        lambda: options(max_iterations=1e2),
        r"max_iterations: expected a positive integer, got 100\.0\.",
    ),
    "line_search_steps": (
        lambda: options(line_search_steps=True),
        r"line_search_steps: expected a positive integer, got True\.",
    ),
    "tolerance": (lambda: options(tolerance=0.0), r"tolerance: expected a number above 0, got 0\.0\."),
    "tolerance nan": (lambda: options(tolerance=NAN), r"tolerance: expected a number above 0, got nan\."),
    "tolerance text": (lambda: options(tolerance="1e-6"), r"tolerance: expected a number above 0, got '1e-6'\."),
    "regularisation_min": (
        lambda: options(regularisation_min=-1.0),
        r"regularisation_min: expected a number above 0, got -1\.0\.",
    ),
    "regularisation_max": (
        lambda: options(regularisation_max=0),
        r"regularisation_max: expected a number above 0, got 0\.",
    ),
    "regularisation_factor": (
        lambda: options(regularisation_factor=1.0),
        r"regularisation_factor: expected a number above 1, got 1\.0\.",
    ),
    "sufficient_decrease": (
        lambda: options(sufficient_decrease=0.5),
        r"sufficient_decrease: expected a number between 0 and 0\.5, got 0\.5\.",
    ),
    # The start
    "x0 list": (lambda: plan([1.0, 0.0, 0.0]), r"x0: expected a floating-point tensor \(B, 3\) or \(3,\), got list\."),
    "x0 integers": (
        lambda: plan(torch.ones(3, dtype=torch.int64)),
        r"x0: expected a floating-point .*, got a tensor of torch\.int64\.",
    ),
    "x0 size": (lambda: plan(full(2, 4)), r"x0: expected the shape \(B, 3\) or \(3,\), got \(2, 4\)\."),
    "x0 dimensions": (lambda: plan(full(1, 2, 3)), r"x0: expected the shape \(B, 3\) or \(3,\), got \(1, 2, 3\)\."),
    "x0 number": (lambda: plan(full()), r"x0: expected the shape \(B, 3\) or \(3,\), got \(\)\."),
    "x0 empty": (lambda: plan(full(0, 3)), r"x0: expected the shape \(B, 3\) or \(3,\), got \(0, 3\)\."),
    "x0 nan": (lambda: plan(full(2, 3, value=NAN)), r"x0: expected finite numbers, got nan\."),
    "x0 infinite": (lambda: plan(full(3, value=-INF)), r"x0: expected finite numbers, got -inf\."),
    "u_init list": (lambda: plan(u_init=[0.0] * 4), r"u_init: expected a tensor of shape \(2, 4, 1\) or \(4, 1\), got list\."),
    "u_init shape": (
        lambda: plan(u_init=full(4, 2)),
        r"u_init: expected a tensor of shape \(2, 4, 1\) or \(4, 1\), got \(4, 2\)\.",
    ),
    "u_init batch": (lambda: plan(u_init=full(3, 4, 1)), r"u_init: expected a tensor of shape .*, got \(3, 4, 1\)\."),
    "u_init nan": (lambda: plan(u_init=full(4, 1, value=NAN)), r"u_init: expected finite numbers, got nan\."),
    "u_init complex": (
        lambda: plan(u_init=torch.zeros(4, 1, dtype=torch.complex128)),
        r"u_init: expected real numbers, got a tensor of torch\.complex128\.",
    ),
    "guess states complex": (
        lambda: plan(guess=Guess(full(4, 1), torch.zeros(5, 3, dtype=torch.complex64))),
        r"guess\.states: expected real numbers, got a tensor of torch\.complex64\.",
    ),
    "guess gains bool": (
        lambda: plan(guess=Guess(full(4, 1), full(5, 3), torch.zeros(4, 1, 3, dtype=torch.bool))),
        r"guess\.gains: expected real numbers, got a tensor of torch\.bool\.",
    ),
    # The params
    "params name": (
        lambda: plan(params={"dynamics.weight": full()}),
        r"params\['dynamics\.weight'\]: the problem has no parameter or buffer of this name; it has \['dynamics\.damping', .*, 'u_min'\]\.",
    ),
    "params no mapping": (lambda: plan(params=[full()]), r"params: expected a mapping from names to tensors, got list\."),
    "params text": (
        lambda: plan(params={"dynamics.mass": "heavy"}),
        r"params\['dynamics\.mass'\]: expected a tensor of real numbers, got str\.",
    ),
    "params complex": (
        lambda: plan(params={"dynamics.mass": torch.ones((), dtype=torch.complex128)}),
        r"params\['dynamics\.mass'\]: expected a tensor of real numbers, got torch\.complex128\.",
    ),
    "params shape": (
        lambda: plan(params={"dynamics.mass": full(3)}),
        r"params\['dynamics\.mass'\]: expected one of the shapes \(\), \(2,\), \(2, 4\) \(shared, per problem, per problem and step\), "
        r"got \(3,\)\.",
    ),
    "params shape of a vector": (
        lambda: plan(params={"stage_cost.goal": full(2)}),
        r"params\['stage_cost\.goal'\]: expected one of the shapes \(4,\), \(2, 4\), \(2, 4, 4\) .*, got \(2,\)\.",
    ),
    "params nan": (
        lambda: plan(params={"stage_cost.goal": full(4, value=NAN)}),
        r"stage_cost\.goal: expected finite numbers, got nan\.",
    ),
    "params infinite": (
        lambda: plan(params={"dynamics.gravity": full(value=INF)}),
        r"dynamics\.gravity: expected finite numbers, got inf\.",
    ),
    "negative mass": (
        lambda: plan(params={"dynamics.mass": torch.tensor([1.0, -0.5])}),
        r"dynamics\.mass: expected a number above 0, got -0\.5\. To learn it, keep it positive: learn its logarithm and pass",
    ),
    "zero length": (
        lambda: plan(params={"dynamics.length": full(value=0.0)}),
        r"dynamics\.length: expected a number above 0, got 0\.0\.",
    ),
    "params bounds swapped": (
        lambda: plan(params={"u_max": torch.tensor([[1.0], [-3.0]])}),
        r"u_min, u_max: expected u_min <= u_max, got u_min = -2 with u_max = -3\.",
    ),
    "params bounds swapped at a step": (
        lambda: plan(params={"u_min": torch.tensor([0.0, 1.0, 5.0, 0.0]).view(1, 4, 1).expand(2, 4, 1)}),
        r"u_min, u_max: expected u_min <= u_max, got u_min = 5 with u_max = 2\.",
    ),
    "params per step for the last state": (
        lambda: ILQR(quadrotor(4))(full(2, 6), params={"terminal_cost.goal": full(2, 4, 6)}),
        r"params\['terminal_cost\.goal'\]: the terminal cost has no steps; give one value, or one per problem\.",
    ),
    "params twice": (
        lambda: ILQR(smallest(dynamics=TIED, stage_cost=TiedCost(TIED)))(
            full(1), params={"dynamics.A": full(1, 1), "stage_cost.model.A": full(1, 1)}
        ),
        r"params\['stage_cost\.model\.A'\]: \['dynamics\.A', 'stage_cost\.model\.A'\] are one and the same tensor; give it under one",
    ),
    # Gradients that would be lost
    "hidden in dynamics": (
        lambda: plan_with(dynamics=lambda x, u: HIDDEN * x + u),
        r"dynamics: depends on a tensor that requires a gradient but is no parameter or buffer of the problem, so its gradient would be "
        r"lost\. Make the function an nn\.Module that holds it, pass it through params, or detach it\.",
    ),
    "hidden in the cost": (
        lambda: plan_with(stage_cost=lambda x, u: HIDDEN * x.square().sum(-1)),
        r"stage_cost: depends on a tensor that requires a gradient",
    ),
    "hidden in the terminal cost": (
        lambda: plan_with(terminal_cost=lambda x: HIDDEN * x.square().sum(-1)),
        r"terminal_cost: depends on a tensor that requires a gradient",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_by_name(name: str) -> None:
    act, message = CASES[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        act()


def test_a_mass_that_an_optimiser_has_made_negative_is_refused() -> None:
    planner = ILQR(pendulum(4))
    planner(X0).controls.sum().backward()
    with torch.no_grad():
        planner.problem.get_parameter("dynamics.mass").fill_(-0.25)
    with pytest.raises(ValueError, match=r"^dynamics\.mass: expected a number above 0, got -0\.25\."):
        planner(X0)


def test_parameters_that_have_become_nan_are_refused() -> None:
    planner = ILQR(pendulum(4))
    with torch.no_grad():
        planner.problem.get_parameter("stage_cost.weights")[2] = NAN
    with pytest.raises(ValueError, match=r"^stage_cost\.weights: expected finite numbers, got nan\."):
        planner(X0)


def test_hidden_tensors_are_no_matter_without_gradients() -> None:
    with torch.no_grad():
        assert plan_with(dynamics=lambda x, u: HIDDEN * x + u).converged.all()
    assert plan_with(dynamics=lambda x, u: HIDDEN.detach() * x + u).converged.all()


@pytest.mark.parametrize("gradient", GRADIENTS[:2])
@pytest.mark.parametrize("wrong", [NAN, INF])
def test_a_loss_whose_gradient_is_no_number_is_refused(gradient: Gradient, wrong: float) -> None:
    solution = ILQR(pendulum(4), gradient=gradient)(X0)
    weights = torch.tensor([1.0, wrong], dtype=FLOAT).view(2, 1, 1)
    with pytest.raises(ValueError, match=r"^loss: its gradient with respect to the solution of problem 1 is NaN or infinite\."):
        (solution.controls * weights).sum().backward()
