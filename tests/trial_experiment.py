"""An experiment of three trials, of which the second fails in the preset "quick", for the tests of the report and the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dilqr_rl.experiments import Claim, Record, Row, Trial

title = "Squares"
workers: int | None = None


def trials(preset: str) -> list[Trial]:
    return [Trial(f"square-{n}", {"number": n, "fails": n == 2 and preset == "quick"}) for n in (1, 2, 3)]


def run(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    if settings["fails"]:
        raise RuntimeError("the second can't be squared")
    return {"square": settings["number"] ** 2}


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [{"number": record.settings["number"], "square": record.result["square"]} for record in records]


def claims(rows: Sequence[Row]) -> list[Claim]:
    return [Claim("The sum of squares |n|", "14", str(sum(row["square"] for row in rows)), "reproduced")]


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    (folder / "squares.png").write_bytes(b"a picture")
    return [folder / "squares.png"]
