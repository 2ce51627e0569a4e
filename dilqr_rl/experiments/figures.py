"""What the experiments' figures share: files without a display, and curves with their spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dilqr_rl.agents.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw_spread", "new_figure", "save_figure"]


def new_figure(width: float, height: float) -> Figure:
    """A figure in inches that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG file, whole, over what is there."""
    write_whole(path, lambda file: figure.savefig(file, dpi=130, metadata={"Software": None}), overwrite=True)
    return path


def draw_spread(
    axes: Axes, x: Sequence[float] | NDArray[np.floating[Any]], curves: Sequence[Sequence[float]], look: Mapping[str, Any]
) -> None:
    """The median of several curves over x, and the band between the least and the most, shaded.

    Args:
        axes: to draw on.
        x: (K,).
        curves: (seeds, K); NaN where a seed has no value.
        look: of the line, as matplotlib takes it: color, label, ...
    """
    values = np.asarray(curves, dtype=np.float64)
    axes.plot(x, np.nanmedian(values, axis=0), **look)
    if len(values) > 1:
        axes.fill_between(x, np.nanmin(values, axis=0), np.nanmax(values, axis=0), color=look.get("color"), alpha=0.2, lw=0)
