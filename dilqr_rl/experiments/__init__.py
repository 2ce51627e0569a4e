"""The field's experiments, repeated: each in a file of its own, and the engine that runs them.

An experiment is a module with the names of `Experiment`. `find_experiment` imports it on first use.
"""

from dilqr_rl.experiments.engine import EngineOptions, Run, run_trials
from dilqr_rl.experiments.experiment import EXPERIMENTS, PRESETS, Claim, Experiment, find_experiment
from dilqr_rl.experiments.report import Report, claims_of, renew_report, results_table, write_report
from dilqr_rl.experiments.tables import Row, read_rows
from dilqr_rl.experiments.trials import Record, Trial, read_records, remove_others

__all__ = [
    "EXPERIMENTS",
    "PRESETS",
    "Claim",
    "EngineOptions",
    "Experiment",
    "Record",
    "Report",
    "Row",
    "Run",
    "Trial",
    "claims_of",
    "find_experiment",
    "read_records",
    "read_rows",
    "remove_others",
    "renew_report",
    "results_table",
    "run_trials",
    "write_report",
]
