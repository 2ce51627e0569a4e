"""Where a solve starts: guesses of states, other starts where zero controls lead nowhere, several at once."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from problems import CARTPOLE, FLOAT, LinearDynamics, cartpole, far_cartpole_starts, normal, pendulum, published_pendulum_starts
from torch import Tensor, nn

from dilqr_rl import ILQR, ControlProblem, Guess, ILQROptions, MultiStart, QuadraticCost, Solution, Status
from dilqr_rl.multi_start import swings

Backend = Literal["native", "torch"]
each_backend = pytest.mark.parametrize("backend", ["native", "torch"])


def unstable(horizon: int = 60, u_max: float = 1e6) -> ControlProblem:
    """Eigenvalue 1.3: a deviation grows to 7e6 times its size within 60 steps."""
    A, B = torch.tensor([[1.3, 0.1], [0.0, 1.1]], dtype=FLOAT), torch.tensor([[0.0], [1.0]], dtype=FLOAT)
    cost = QuadraticCost([1.0, 1.0, 0.1], [0.0, 0.0, 0.0])
    return ControlProblem(
        LinearDynamics(A, B), cost, horizon=horizon, state_size=2, control_size=1, u_min=-u_max, u_max=u_max
    ).requires_grad_(False)


def of(solution: Solution) -> Guess:
    return Guess(solution.controls.detach(), solution.states.detach(), solution.gains)


@each_backend
def test_a_guess_that_is_the_solution_is_kept_bit_by_bit(backend: Backend) -> None:
    planner = ILQR(cartpole(30), ILQROptions(backend=backend))
    x0 = far_cartpole_starts(8)
    solution = planner(x0)
    again = planner(x0, guess=of(solution))
    assert solution.converged.all()
    assert again.num_iterations.tolist() == [0] * 8
    for name in ("states", "controls", "cost", "gains"):
        assert torch.equal(getattr(again, name), getattr(solution, name)), name


@each_backend
@pytest.mark.parametrize("with_gains", [True, False])
def test_feedback_around_the_states_holds_what_a_replay_of_the_controls_loses(backend: Backend, with_gains: bool) -> None:
    """A linear problem's gains are its optimal policy: rolled out from a moved start, they give the new optimum at once."""
    planner, x0 = ILQR(unstable(), ILQROptions(backend=backend)), normal(5, 2, seed=0)
    solution, moved = planner(x0), x0 + 0.1 * normal(5, 2, seed=1)
    guess = Guess(solution.controls, solution.states, solution.gains if with_gains else None)
    once = ILQR(planner.problem, ILQROptions(backend=backend, max_iterations=1))
    replayed, followed = once(moved, u_init=solution.controls), once(moved, guess=guess)
    best = planner(moved)
    # The gains are found anew from a model around the states; both are exact up to rounding, which 60 steps amplify.
    torch.testing.assert_close(followed.controls, best.controls, rtol=1e-6, atol=1e-6)
    assert (followed.num_iterations <= 1).all()
    start = ILQR(planner.problem, ILQROptions(backend=backend, record=True))(moved, u_init=solution.controls)
    assert start.history is not None
    assert (start.history.cost[:, 0] > 1e6 * best.cost).all()
    assert replayed.num_iterations.max() == 1


@each_backend
def test_a_guess_within_its_bounds_and_for_all_problems_alike(backend: Backend) -> None:
    problem = pendulum(12)
    planner, x0 = ILQR(problem, ILQROptions(backend=backend, max_iterations=1)), published_pendulum_starts(3)
    one = planner(x0[0])
    guess = Guess(one.controls.detach() + 5.0, one.states.detach(), one.gains)
    shared = planner(x0, guess=guess)
    own = planner(x0, guess=Guess(*(part.expand(3, *part.shape) for part in (guess.controls, guess.states, guess.gains))))
    assert torch.equal(shared.controls, own.controls)
    assert (shared.controls <= problem.u_max).all()


def test_both_paths_begin_alike_from_a_guess() -> None:
    x0, others = CARTPOLE.starts(6, 1), CARTPOLE.starts(6, 2)
    found = []
    for backend in ("native", "torch"):
        planner = ILQR(cartpole(20), ILQROptions(backend=backend, record=True, tolerance=1e-10))
        solution = planner(others)
        guesses = of(solution), Guess(solution.controls.detach(), solution.states.detach())
        found += [planner(x0, guess=guess) for guess in guesses]
    for native, reference in zip(found[:2], found[2:], strict=True):
        assert native.history is not None
        assert reference.history is not None
        torch.testing.assert_close(native.history.cost[:, 0], reference.history.cost[:, 0], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(native.controls, reference.controls, rtol=1e-8, atol=1e-8)


def test_both_paths_find_the_same_gains_around_states_that_no_controls_lead_to() -> None:
    problem = cartpole(20).requires_grad_(False)
    problem.u_min.fill_(-4.0)
    problem.u_max.fill_(4.0)
    states = CARTPOLE.starts(6, 5).unsqueeze(1) + 0.3 * normal(6, 21, 5, seed=3)
    guess = Guess(torch.zeros(6, 20, 1, dtype=FLOAT), states)
    costs = []
    for backend in ("native", "torch"):
        history = ILQR(problem, ILQROptions(backend=backend, record=True))(CARTPOLE.starts(6, 1), guess=guess).history
        assert history is not None
        costs.append(history.cost[:, 0])
    torch.testing.assert_close(*costs, rtol=1e-9, atol=1e-9)


def test_unroll_differentiates_from_the_rollout_of_a_guess() -> None:
    x0 = far_cartpole_starts(3).requires_grad_()
    problem = cartpole(10).requires_grad_(False)
    guess = of(ILQR(problem)(x0.detach() + 0.05))
    gradients = []
    for gradient in ("implicit", "unroll"):
        planner = ILQR(problem, ILQROptions(tolerance=1e-10), gradient=gradient)
        gradients.append(torch.autograd.grad(planner(x0, guess=guess).controls.square().sum(), x0)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-7, atol=1e-7)


GUESS = Guess(torch.zeros(4, 1, dtype=FLOAT), torch.zeros(5, 3, dtype=FLOAT), torch.zeros(4, 1, 3, dtype=FLOAT))


@pytest.mark.parametrize(
    ("guess", "message"),
    [
        (Guess(torch.zeros(3, 1)), r"guess.controls: expected a tensor of shape \(2, 4, 1\) or \(4, 1\), got \(3, 1\)"),
        (Guess(GUESS.controls, torch.zeros(4, 3)), r"guess.states: expected a tensor of shape \(2, 5, 3\) or \(5, 3\)"),
        (Guess(GUESS.controls, GUESS.states, torch.zeros(4, 3)), r"guess.gains: expected a tensor of shape \(2, 4, 1, 3\)"),
        (Guess(GUESS.controls, None, GUESS.gains), "guess.gains: expected states beside them"),
        (Guess(GUESS.controls, multipliers=GUESS.states), "guess.multipliers: expected None"),
        (Guess(GUESS.controls, torch.full((5, 3), torch.nan)), "guess.states: expected finite numbers, got nan"),
        (torch.zeros(4, 1), "guess: expected a dilqr_rl.Guess, got Tensor"),
    ],
)
def test_what_is_no_guess_is_refused(guess: Guess, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ILQR(pendulum(4))(published_pendulum_starts(2), guess=guess)


def test_a_guess_and_controls_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="guess: expected either u_init or guess, got both"):
        ILQR(pendulum(4))(published_pendulum_starts(2), u_init=GUESS.controls, guess=GUESS)


# Where zero controls lead nowhere.


class Escape(nn.Module):
    """x'' = x^3 + u: without control the state reaches infinity."""

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        rate = x[..., 1] + 0.05 * (x[..., 0] ** 3 + 0.5 * x[..., 1] ** 2 + u[..., 0])
        return torch.stack((x[..., 0] + 0.05 * rate, rate), dim=-1)


@each_backend
def test_a_start_that_escapes_is_tried_with_feedback(backend: Backend) -> None:
    cost = QuadraticCost([1.0, 1.0, 0.1], [0.0, 0.0, 0.0])
    problem = ControlProblem(Escape(), cost, horizon=100, state_size=2, control_size=1)
    x0 = torch.tensor([[1.4, 0.5], [0.1, 0.0], [0.8, 0.3]], dtype=FLOAT).requires_grad_()
    planner = ILQR(problem, ILQROptions(backend=backend))
    given = planner(x0, u_init=torch.zeros(100, 1, dtype=FLOAT))
    assert given.status.tolist() == [Status.NONFINITE, Status.CONVERGED, Status.NONFINITE]
    solution = planner(x0)
    assert solution.converged.all()
    assert torch.equal(solution.controls[1], given.controls[1])
    (gradient,) = torch.autograd.grad(solution.cost.sum(), x0)
    assert gradient.isfinite().all()
    assert gradient.any(1).all()


@each_backend
def test_a_plateau_at_zero_controls_is_not_believed(backend: Backend) -> None:
    """An engine that is off below a throttle of 0.2, and a bound at 0: nothing to descend from, and far from the best."""

    def dynamics(x: Tensor, u: Tensor) -> Tensor:
        thrust = torch.relu(u[..., 0] - 0.2)
        return torch.stack((x[..., 0] + 0.1 * x[..., 1], x[..., 1] + thrust - 0.1), dim=-1)

    def cost(x: Tensor, u: Tensor) -> Tensor:
        return x.square().sum(-1) + 0.01 * u.square().sum(-1)

    problem = ControlProblem(dynamics, cost, horizon=20, state_size=2, control_size=1, u_min=0.0, u_max=1.0)
    x0 = torch.tensor([[1.0, -1.0]], dtype=FLOAT)
    planner = ILQR(problem, ILQROptions(backend=backend))
    stuck = planner(x0, u_init=torch.zeros(20, 1, dtype=FLOAT))
    solution = planner(x0)
    assert stuck.status.tolist() == [Status.NO_DERIVATIVE]
    assert solution.converged.all()
    assert solution.cost.item() < 0.2 * stuck.cost.item()


def test_a_saddle_gives_way_to_a_cheaper_plan_without_an_end() -> None:
    """A pendulum that hangs: at zero controls it rests, at a cost of 2 a step; within 5 iterations others cost less."""
    problem, x0 = pendulum(50), torch.tensor([[-1.0, 0.0, 0.0]], dtype=FLOAT)
    options = ILQROptions(max_iterations=5)
    resting, solution = ILQR(problem, options)(x0, u_init=torch.zeros(50, 1, dtype=FLOAT)), ILQR(problem, options)(x0)
    assert resting.converged.all()
    assert resting.singular.all()
    assert solution.status.tolist() == [Status.MAX_ITERATIONS]
    assert solution.cost.item() < 0.99 * resting.cost.item()


def test_at_the_goal_nothing_is_tried_twice_for_nothing() -> None:
    solution = ILQR(unstable())(torch.zeros(2, 2, dtype=FLOAT))
    assert not solution.controls.any()
    assert solution.num_iterations.tolist() == [0, 0]


# Several starts.


@each_backend
def test_the_cheapest_plan_is_kept_with_its_gradient(backend: Backend) -> None:
    problem = pendulum(30)
    planner = ILQR(problem, ILQROptions(backend=backend, tolerance=1e-9))
    several = MultiStart(planner)
    x0 = published_pendulum_starts(4)[:, :].clone()
    x0[:, 0], x0[:, 1] = -x0[:, 0].abs(), x0[:, 1]  # hanging, more or less
    alone = [planner(x0, u_init=start) for start in several.starts]
    costs = torch.stack([solution.cost for solution in alone])
    solution = several(x0)
    torch.testing.assert_close(solution.cost, costs.amin(0), rtol=1e-12, atol=0.0)
    assert (costs.amax(0) > 1.01 * costs.amin(0)).any()  # there is something to choose
    solution.controls.sum().backward()
    found = problem.get_parameter("dynamics.mass").grad
    problem.zero_grad()
    best = several.starts[costs.argmin(0)]
    planner(x0, u_init=best).controls.sum().backward()
    torch.testing.assert_close(found, problem.get_parameter("dynamics.mass").grad, rtol=1e-6, atol=1e-9)


def test_a_guess_is_one_more_start_and_alone_or_in_a_batch_makes_no_difference() -> None:
    planner = ILQR(pendulum(25).requires_grad_(False))
    several, x0 = MultiStart(planner, swings(planner.problem)[:3]), published_pendulum_starts(5)
    masses = {"dynamics.mass": torch.linspace(0.7, 1.4, 5, dtype=FLOAT)}
    best = MultiStart(planner)(x0, masses)
    guessed = several(x0, masses, guess=of(best))
    assert (guessed.cost <= best.cost + 1e-9).all()
    for b in range(5):
        alone = several(x0[b], {"dynamics.mass": masses["dynamics.mass"][b]}, best.controls[b])
        together = several(x0, masses, best.controls)
        assert torch.equal(alone.controls, together.controls[b])


@each_backend
def test_a_plan_with_derivatives_that_are_not_finite_is_not_the_cheapest(backend: Backend) -> None:
    """sqrt(u^2) has no derivative at zero, where the cost is lowest; near 1 there is another minimum."""
    problem = ControlProblem(
        lambda x, u: 0.9 * x + u,
        lambda x, u: (u.square().sqrt() + 10 * u.square() * (u - 1).square()).sum(-1),
        horizon=1,
        state_size=1,
        control_size=1,
    )
    starts = torch.tensor([[[0.0]], [[1.0]]], dtype=FLOAT)
    solution = MultiStart(ILQR(problem, ILQROptions(backend=backend)), starts)(torch.tensor([[0.6]], dtype=FLOAT))
    assert solution.converged.all()
    assert solution.cost.item() > 0.5


@each_backend
def test_a_hidden_tensor_is_refused_by_several_starts_too(backend: Backend) -> None:
    hidden = torch.tensor(0.3, dtype=FLOAT, requires_grad=True)
    problem = ControlProblem(
        lambda x, u: x + u,
        lambda x, u: ((x - hidden) ** 2 + u**2).sum(-1),
        horizon=3,
        state_size=1,
        control_size=1,
        u_min=-1.0,
        u_max=1.0,
    )
    with pytest.raises(ValueError, match="stage_cost: depends on a tensor that requires a gradient"):
        MultiStart(ILQR(problem, ILQROptions(backend=backend)))(torch.ones(2, 1, dtype=FLOAT))


def test_unknown_parameters_and_states_are_refused_in_the_planners_words() -> None:
    several = MultiStart(ILQR(pendulum(4)))
    with pytest.raises(ValueError, match=r"params\['typo'\]: the problem has no parameter or buffer of this name"):
        several(published_pendulum_starts(2), {"typo": torch.ones(2)})
    with pytest.raises(ValueError, match="x0: expected a floating-point tensor"):
        several([0.0])  # type: ignore[arg-type]
    # In the sizes that were given, which are not those of the batch of all starts.
    with pytest.raises(ValueError, match=r"x0: expected the shape \(B, 3\) or \(3,\), got \(2, 4\)\."):
        several(torch.ones(2, 4, dtype=FLOAT))
    with pytest.raises(ValueError, match=r"params\['dynamics\.mass'\]: .* \(\), \(2,\), \(2, 4\) .*, got \(3,\)\.") as caught:
        several(published_pendulum_starts(2), {"dynamics.mass": torch.ones(3)})
    assert caught.value.__context__ is None


@each_backend
def test_a_neighbour_that_escapes_changes_no_other_plan(backend: Backend) -> None:
    """Where one problem is started again with feedback, one beside it that sits on a plateau is not."""
    problem = ControlProblem(
        Escape(), QuadraticCost([1.0, 1.0, 0.1], [0.0, 0.0, 0.0]), horizon=100, state_size=2, control_size=1
    )
    x0 = torch.tensor([[0.0, 0.0], [1.4, 0.5], [0.8, 0.3], [0.1, -0.2]], dtype=FLOAT)
    planner = ILQR(problem, ILQROptions(backend=backend))
    together = planner(x0)
    for b in range(4):
        alone = planner(x0[b])
        assert torch.equal(alone.controls, together.controls[b]), b


@pytest.mark.parametrize(
    ("planner", "starts", "message"),
    [
        (pendulum(4), None, "planner: expected an ILQR, got ControlProblem"),
        (ILQR(pendulum(4), gradient="unroll"), None, 'planner: expected gradient="implicit" or "diffmpc"'),
        (ILQR(pendulum(4)), torch.zeros(4, 1), r"starts: expected a tensor of shape \('S', 4, 1\), got \(4, 1\)"),
        (ILQR(pendulum(4)), [1.0], "starts: expected a tensor of shape .* got list"),
        (ILQR(pendulum(4)), torch.zeros(2, 4, 1, dtype=torch.complex64), "starts: expected real numbers, got a tensor of"),
        (ILQR(pendulum(4)), torch.full((2, 4, 1), torch.nan), "starts: expected finite numbers, got nan"),
    ],
)
def test_what_can_not_be_several_starts_is_refused(planner: ILQR, starts: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiStart(planner, starts)
