"""The box-constrained program of one step, against all active sets and against finite differences."""

from __future__ import annotations

import pytest
import torch
from problems import FLOAT, box_minimum, normal
from torch import Tensor

from dilqr_rl.box import box_step


def random_programs(
    count: int, m: int, condition: float = 10.0, scale: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q with eigenvalues from 1 to `condition`, q, and bounds about the origin: some infinite, some equal, some
    close by, some at it.
    """
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(count, m, m, generator=generator, dtype=FLOAT))[0]
    eigenvalues = condition ** torch.rand(count, m, generator=generator, dtype=FLOAT)
    Q = rotation @ torch.diag_embed(eigenvalues) @ rotation.mT
    q = scale * torch.randn(count, m, generator=generator, dtype=FLOAT) * eigenvalues.sqrt()

    def distance() -> Tensor:
        kind = torch.rand(count, m, generator=generator, dtype=FLOAT)
        near = torch.rand(count, m, generator=generator, dtype=FLOAT)
        distance = torch.where(kind < 0.2, 1e-6 * near, near)
        distance = torch.where(kind > 0.85, torch.inf, distance)
        return torch.where((kind > 0.2) & (kind < 0.3), 0.0, distance)

    lower, upper = -distance(), distance()
    equal = torch.rand(count, m, generator=generator) < 0.1
    return 0.5 * (Q + Q.mT), q, torch.where(equal, 0.3, lower), torch.where(equal, 0.3, upper)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_minimum_is_that_of_the_best_active_set(m: int, condition: float, scale: float) -> None:
    Q, q, lower, upper = random_programs(200, m, condition, scale)
    step = box_step(Q, q, torch.zeros(200, m, 2, dtype=FLOAT), lower, upper)
    tolerance = 1e-13 * condition * scale  # rounding of a linear system
    torch.testing.assert_close(step.k, box_minimum(Q, q, lower, upper), rtol=tolerance, atol=tolerance)
    assert step.positive.all()
    free = (step.k > lower) & (step.k < upper)
    assert (~free).any()
    assert free.any()
    assert (step.k >= lower - tolerance).all()
    assert (step.k <= upper + tolerance).all()


@pytest.mark.parametrize("m", [6, 10])
def test_optimality_conditions_hold_for_many_controls(m: int) -> None:
    Q, q, lower, upper = random_programs(300, m, condition=1e4)
    k = box_step(Q, q, torch.zeros(300, m, 1, dtype=FLOAT), lower, upper).k
    gradient = q + (Q @ k.unsqueeze(-1)).squeeze(-1)
    gap = k - torch.clamp(k - gradient / 1e4, lower, upper)  # by the largest eigenvalue: a distance in k
    assert gap.abs().max() < 1e-13  # rounding


@pytest.mark.parametrize("m", [1, 2, 3])
def test_the_gain_is_the_derivative_of_the_minimum(m: int) -> None:
    """q moves with dx as Q_ux dx, so that k + K dx is the minimum for q + Q_ux dx as long as the active set stays."""
    Q, q, lower, upper = random_programs(100, m)
    Q_ux = normal(100, m, 4, seed=1)
    step = box_step(Q, q, Q_ux, lower, upper)
    h = 1e-7  # the program is piecewise linear in q: a difference errs by rounding alone, 1e-16 / h
    for column in range(4):
        moved = [box_step(Q, q + sign * h * Q_ux[..., column], Q_ux, lower, upper) for sign in (1.0, -1.0)]
        same = [(one.K == 0).all(-1) == (step.K == 0).all(-1) for one in moved]
        stays = (same[0] & same[1]).all(-1)
        assert stays.double().mean() > 0.95
        difference = (moved[0].k - moved[1].k) / (2 * h)
        torch.testing.assert_close(step.K[stays][..., column], difference[stays], rtol=1e-7, atol=1e-7)


def test_controls_that_do_not_interact_are_solved_alike_alone_and_together() -> None:
    Q, q, lower, upper = random_programs(100, 1)
    pair = [part.repeat(1, 2) for part in (q, lower, upper)]
    Q_ux = normal(100, 1, 3, seed=2)
    alone = box_step(Q, q, Q_ux, lower, upper)
    together = box_step(torch.diag_embed(Q[..., 0].repeat(1, 2)), pair[0], Q_ux.repeat(1, 2, 1), pair[1], pair[2])
    torch.testing.assert_close(together.k, alone.k.repeat(1, 2), rtol=1e-15, atol=0.0)
    torch.testing.assert_close(together.K, alone.K.repeat(1, 2, 1), rtol=1e-15, atol=0.0)


@pytest.mark.parametrize("m", [1, 2])
def test_an_indefinite_program_is_told_and_solved_for_its_stationary_point(m: int) -> None:
    Q = torch.diag_embed(torch.tensor([[-2.0, 3.0][:m]], dtype=FLOAT))
    q, unbounded = torch.ones(1, m, dtype=FLOAT), torch.full((1, m), torch.inf, dtype=FLOAT)
    step = box_step(Q, q, torch.ones(1, m, 1, dtype=FLOAT), -unbounded, unbounded)
    assert not step.positive.any()
    torch.testing.assert_close(step.k, torch.tensor([[0.5, -1.0 / 3.0][:m]], dtype=FLOAT))
    torch.testing.assert_close(step.K[..., 0], step.k)


@pytest.mark.parametrize("m", [1, 3])
def test_a_component_whose_bounds_meet_stays_whatever_its_curvature(m: int) -> None:
    Q, q, still = -torch.eye(m, dtype=FLOAT)[None], normal(1, m, seed=0), torch.zeros(1, m, dtype=FLOAT)
    step = box_step(Q, q, normal(1, m, 2, seed=1), still, still)
    assert step.positive.all()
    assert not step.k.any()
    assert not step.K.any()


@pytest.mark.parametrize("m", [1, 2])
def test_a_component_without_curvature_stays_and_has_a_minimum_only_without_a_slope(m: int) -> None:
    Q, unbounded = torch.zeros(2, m, m, dtype=FLOAT), torch.full((2, m), torch.inf, dtype=FLOAT)
    q = torch.tensor([[0.0], [1.0]], dtype=FLOAT).expand(2, m)
    step = box_step(Q, q, torch.ones(2, m, 2, dtype=FLOAT), -unbounded, unbounded)
    assert step.positive.tolist() == [True, False]
    assert not step.k.any()
    assert not step.K.any()


@pytest.mark.parametrize("m", [1, 2])
def test_one_program_with_nan_leaves_the_others_bitwise_alone(m: int) -> None:
    Q, q, lower, upper = random_programs(8, m, condition=1e3)
    Q_ux = normal(8, m, 2, seed=3)
    before = box_step(Q, q, Q_ux, lower, upper)
    Q[3, 0, 0] = torch.nan
    after = box_step(Q, q, Q_ux, lower, upper)
    others = torch.arange(8) != 3
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one[others], other[others])
