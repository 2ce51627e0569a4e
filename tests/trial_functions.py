"""What the engine's tests run: functions that a fresh process imports by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def behave(settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Does what its settings say."""
    match settings["what"]:
        case "draw":
            generator = torch.Generator().manual_seed(settings["seed"])
            threads = {"torch": torch.get_num_threads(), "variable": os.environ["OMP_NUM_THREADS"]}
            print("what a trial prints isn't its answer")
            numbers = torch.randn(5, generator=generator, dtype=torch.float64).tolist()
            return {"numbers": numbers, "process": os.getpid(), "threads": threads}
        case "raise":
            raise ZeroDivisionError("the trial's own error")
        case "nan":
            return {"number": float("nan")}
        case "die once":
            marker = folder / "marker"
            if not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return {"seed": settings["seed"], "found": marker.exists()}
        case "die":
            os.write(2, b"famous last words\n")
            os.kill(os.getpid(), signal.SIGKILL)
        case "sleep":
            (folder / "process").write_text(str(os.getpid()))
            time.sleep(settings["seconds"])
    return {}
