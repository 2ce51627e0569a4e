"""Modules of a person's own, on the command line."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

__all__ = ["WithModules"]


@dataclass(frozen=True, kw_only=True)
class WithModules:
    """What all commands take."""

    modules: tyro.conf.UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(name="import", metavar="MODULE")]] = ()
    """A module of your own to import first, which registers environments and their models; no file chooses it."""

    def import_modules(self) -> None:
        """Import them; also from the working directory, as `python -m` does.

        Raises:
            ValueError: one can't be imported.
        """
        if self.modules and "" not in sys.path:
            sys.path.append("")
        for name in self.modules:
            try:
                importlib.import_module(name)
            except Exception as error:  # whatever a module of anybody's raises
                raise ValueError(f"--import: {name!r} can't be imported: {type(error).__name__}: {error}") from error
