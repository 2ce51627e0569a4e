"""The field's experiments, repeated: each in a file of its own, and the engine that runs them.

An experiment is a module with the names of `Experiment`. `find_experiment` imports it on first use.
"""

from dilqr_rl.experiments.engine import EngineOptions, Run, run_trials
from dilqr_rl.experiments.experiment import EXPERIMENTS, PRESETS, Claim, Experiment, find_experiment
from dilqr_rl.experiments.report import Report, results_table, write_report
from dilqr_rl.experiments.trials import Record, Trial, read_records, remove_others

__all__ = [
    "EXPERIMENTS",
    "PRESETS",
    "Claim",
    "EngineOptions",
    "Experiment",
    "Record",
    "Report",
    "Run",
    "Trial",
    "find_experiment",
    "read_records",
    "remove_others",
    "results_table",
    "run_trials",
    "write_report",
]
