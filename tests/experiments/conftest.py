"""The trials of the smoke presets, which several files look at."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from dilqr_rl.experiments import Record, find_experiment

Smoke = Callable[[str], dict[str, Record]]


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Smoke:
    """An experiment's name -> its records by key, of trials that run once; nothing is timed a second time."""

    @cache
    def run(name: str) -> dict[str, Record]:
        experiment, found = find_experiment(name), {}
        for trial in experiment.trials("smoke"):
            short = {"budget_seconds": 0.0} if "budget_seconds" in trial.settings else {}
            result = experiment.run({**trial.settings, **short}, tmp_path_factory.mktemp(trial.key))
            found[trial.key] = Record(trial.key, trial.settings, result, 1.0)
        return found

    return run
