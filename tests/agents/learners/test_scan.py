"""The look around before the first step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from learner_data import equal, make, plans, quick, tensors

from dilqr_rl.agents.learners import FitOptions, Learner, PlanningLearner
from dilqr_rl.agents.learners.scan import scan
from dilqr_rl.agents.learners.segments import Segments, cut


def segments_of(learner: Learner, count: int = 5) -> Segments:
    """So few that the scan judges by all of them."""
    data = plans(count)
    return cut(learner.task, data, learner.segment_length(data), torch.device("cpu"))


def planner(name: str, **settings: Any) -> PlanningLearner:
    learner = make(name, **settings)
    assert isinstance(learner, PlanningLearner)
    return learner


def mean_square(learner: Learner, segments: Segments) -> float:
    return float((learner.plan(segments.states[:, 0]) - segments.controls).square().mean())


STARTS: list[tuple[str, dict[str, Any]]] = [
    ("dx", {"physics": {"mass": mass}})
    for mass in (0.3, 1.0, 1.02, 3.0)  # 1 is the demonstrator's
] + [("cost", {}), ("cost", {"bounded_weights": True}), ("cost_dx", {})]


@pytest.mark.parametrize(("name", "settings"), STARTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_never_ends_worse_than_it_began(name: str, settings: dict[str, Any], seed: int) -> None:
    learner = planner(name, **settings)
    segments = segments_of(learner)
    before, start = mean_square(learner, segments), tensors(learner)
    assert scan(learner, segments, FitOptions(scan_rounds=2, seed=seed))
    assert mean_square(learner, segments) <= before * (1 + 1e-6) + 1e-12  # the planner's tolerance
    moved = {key for key, tensor in tensors(learner).items() if not torch.equal(tensor, start[key])}
    assert moved <= set(learner.trained_parameters())
    assert moved or settings.get("physics", {}).get("mass") in (1.0, 1.02)  # next to the demonstrator, no draw may be better


def test_it_finds_its_way_from_far_off() -> None:
    learner = planner("dx", physics={"mass": 6.0, "length": 2.0})
    segments = segments_of(learner)
    before = mean_square(learner, segments)
    scan(learner, segments, FitOptions(scan_rounds=6))
    assert mean_square(learner, segments) < 0.1 * before


def test_equal_seeds_draw_alike_and_none_of_the_global_numbers() -> None:
    found = []
    state = torch.get_rng_state()
    for seed in (3, 3, 4):
        learner = planner("dx", physics={"mass": 3.0})
        scan(learner, segments_of(learner), FitOptions(scan_rounds=1, seed=seed))
        found.append(tensors(learner))
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])
    assert torch.equal(torch.get_rng_state(), state)


def test_draws_that_lead_to_no_number_are_left() -> None:
    """All but the first, which stays where the learner is."""

    class Fragile(type(make("dx"))):  # type: ignore[misc]
        def errors(self, segments: Segments, params: Any = None) -> torch.Tensor:
            found = super().errors(segments, params)
            found[len(found) // self.draws :] = math.nan
            return found

    learner = Fragile("dilqr_rl/Pendulum-v0", horizon=6, physics={"mass": 1.3})
    learner.draws = 8 * 3  # eight for each of three numbers
    before = tensors(learner)
    assert scan(learner, segments_of(learner), FitOptions(scan_rounds=1))
    assert equal(tensors(learner), before)


def test_where_there_is_nothing_to_draw_it_says_so() -> None:
    """Networks have too many numbers, motion has no need, and without rounds nothing is asked for."""
    for name in ("residual", "sysid", "mlp"):
        learner = make(name)
        before = tensors(learner)
        assert not learner.scan(segments_of(learner), FitOptions(scan_rounds=2))
        assert equal(tensors(learner), before)
    wide = planner("residual", hidden=[16])
    assert not scan(wide, segments_of(wide), FitOptions(scan_rounds=1))
    for rounds, rows in ((0, 1), (1, 2)):
        result = make("dx").fit(plans(4), plans(2, seed=1), quick("adam", epochs=1, scan_rounds=rounds))
        assert result.column("epoch")[1].count(0) == rows
