"""What the commands print with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dilqr_rl.output import LastingOutput

__all__ = ["Bar", "console", "errors", "output", "progress"]

output = LastingOutput("stdout")
console = Console(file=cast(IO[str], output))
errors = Console(stderr=True)


class Bar:
    """One line of progress."""

    def __init__(self, lines: Progress, title: str, total: int) -> None:
        self._lines = lines
        self._task = lines.add_task(title, total=total, note="")

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Move on by some steps, with a few words on how it goes."""
        if note is None:
            self._lines.advance(self._task, steps)
        else:
            self._lines.update(self._task, advance=steps, note=note)


@contextmanager
def progress(title: str, total: int) -> Iterator[Bar]:
    """A bar with the time gone and the time left."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as lines:
        yield Bar(lines, title, total)
