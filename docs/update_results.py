"""Put the tables of results/ into docs/results.md, after `dilqr reproduce`; the notes below them stay."""

from __future__ import annotations

import re
from pathlib import Path

from dilqr_rl.experiments import results_table

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results.md"


def sections(table: str) -> list[str]:
    """One for each experiment: its heading, a line on the run, and the table."""
    return [section.strip() for section in re.split(r"^(?=## [ER]\d)", table, flags=re.MULTILINE) if section.strip()]


def updated(text: str, table: str) -> str:
    """The page's text with the sections of a table in the places of the old ones.

    Raises:
        ValueError: the page hasn't such a place.
    """
    for section in sections(table):
        heading = section.partition("\n")[0]
        old = re.search(rf"^{re.escape(heading)}\n\n.*\n\n(\|.*\n)+", text, flags=re.MULTILINE)
        if old is None:
            raise ValueError(f"{PAGE}: expected the heading {heading!r}, a line and a table below it. Add them by hand first.")
        text = text[: old.start()] + section + "\n" + text[old.end() :]
    return text


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), results_table(ROOT / "results")), encoding="utf-8")


if __name__ == "__main__":
    main()
