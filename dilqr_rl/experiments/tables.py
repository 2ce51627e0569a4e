"""results.csv: what claims are told from, written and read so that both see the same numbers."""

from __future__ import annotations

import ast
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dilqr_rl.agents.files import write_whole

__all__ = ["Row", "read_rows", "write_rows"]

Row = Mapping[str, Any]


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """Write a table whole or not at all, over what is there; a row leaves cells of others empty."""

    def write(file: Path) -> None:
        with file.open("w", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    write_whole(path, write, overwrite=True)


def read_rows(path: Path) -> list[Row]:
    """The rows of a table, with numbers, truth values, lists and texts as they were; empty cells are left out.

    Raises:
        ValueError: there is no such file, or a row hasn't a cell for each column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: expected a table of `dilqr reproduce`, found none ({error}). Run the experiment.") from error
    for place, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise ValueError(f"{path}: expected a cell for each column, line {place} has more or fewer. Run the experiment.")
    return [{name: _value(text) for name, text in row.items() if text} for row in rows]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}.get(text, text)
