"""Where in the functions that are traced something happens: the file and the line that a person wrote."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

__all__ = ["here", "line_of"]

_LIBRARIES = (str(Path(__file__).parents[2]), str(Path(torch.__file__).parent), str(Path(np.__file__).parent))


def here() -> str:
    """The line of the traced function that is being run."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((*_LIBRARIES, "<")):
            return f", in {file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def line_of(error: BaseException) -> str:
    """The innermost line of an error's traceback that is no library's."""
    lines = traceback.extract_tb(error.__traceback__)
    ours: Sequence[traceback.FrameSummary] = [line for line in lines if not line.filename.startswith((*_LIBRARIES, "<"))]
    return f", in {ours[-1].filename}:{ours[-1].lineno}" if ours else ""
