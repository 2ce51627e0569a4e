"""The command line: `dilqr expert`, `train`, `evaluate`, `explain`, `demo`, `bench` and `reproduce`."""

from __future__ import annotations

import sys
from typing import Annotated

import torch
import tyro

from dilqr_rl.cli.bench import Bench
from dilqr_rl.cli.console import console, errors, output
from dilqr_rl.cli.demo import Demo
from dilqr_rl.cli.evaluate import Evaluate
from dilqr_rl.cli.expert import Expert
from dilqr_rl.cli.explain import Explain
from dilqr_rl.cli.reproduce import Reproduce
from dilqr_rl.cli.train import Train
from dilqr_rl.signals import like_ctrl_c

__all__ = ["main"]

Command = (
    Annotated[Expert, tyro.conf.subcommand("expert")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Explain, tyro.conf.subcommand("explain")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Reproduce, tyro.conf.subcommand("reproduce")]
)


def main(arguments: list[str] | None = None) -> None:
    """Run a command; what a person got wrong is told in a line, with exit code 2. SIGTERM and SIGHUP are like Ctrl-C."""
    command: Command = tyro.cli(
        Command,
        args=arguments,
        prog="dilqr",
        description="Planning policies: roll out an expert, clone it, evaluate the clone.",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        # The solver's tensors are small: a second thread costs more than it brings, several times more where cores are shared.
        torch.set_num_threads(1)
        with like_ctrl_c():
            command.import_modules()
            command.run()
    except (ValueError, OSError, FloatingPointError) as error:
        errors.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.exit(130)
    finally:
        output.settle()
