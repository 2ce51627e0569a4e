"""A line that shows how a fit goes: epochs, time gone, time left, validation loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dilqr_rl.output import LastingOutput

if TYPE_CHECKING:
    from dilqr_rl.agents.learners.fitting import FitResult

__all__ = ["show_progress"]


@contextmanager
def show_progress(title: str, epochs: int, *, shown: bool | str) -> Iterator[Callable[[FitResult], None]]:
    """A function to call after each epoch with the result so far; an epoch before the last may end the fit.

    Args:
        title: what stands before the bar.
        epochs: at most.
        shown: whether anything is printed; a text stands in the title's place.
    """
    if not shown:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = Console(file=cast(IO[str], LastingOutput("stdout")))
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as lines:
        task = lines.add_task(shown if isinstance(shown, str) else title, total=epochs, note="")

        def show(result: FitResult) -> None:
            loss = next(row["validation_loss"] for row in reversed(result.history) if "validation_loss" in row)
            lines.update(task, completed=int(result.history[-1]["epoch"]), note=f"validation loss {loss:.2e}")

        yield show
        lines.update(task, total=lines.tasks[task].completed)
