"""The inside of a worker: one process, one trial.

The process engine starts it with a request, one line of JSON, on the standard input, and keeps that open: when it ends, the
run has been killed, and its workers end too. The answer is one line of JSON on what was the standard output; whatever else is
printed goes to the standard error. A Ray worker calls `answer` itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dilqr_rl.experiments.trials import versions

__all__ = ["answer", "main", "name_of"]

Function = Callable[[Mapping[str, Any], Path], Mapping[str, Any]]


def name_of(function: Function) -> str:
    """A function as "module:name", by which another process can import it.

    Raises:
        ValueError: it can't.
    """
    module, name = getattr(function, "__module__", "__main__"), getattr(function, "__qualname__", repr(function))
    if module == "__main__" or getattr(sys.modules.get(module), name, None) is not function:
        raise ValueError(
            f"function: expected one at the top level of a module that a fresh process can import, got {name} of {module}."
        )
    return f"{module}:{name}"


def answer(request: Mapping[str, Any]) -> dict[str, Any]:
    """Call the function of a request, {"function", "settings", "folder"}, and perhaps {"path"} to import it from.

    Returns:
        {"result", "seconds", "versions", "machine"}, or {"error"}, a traceback: the function raised, or its result isn't JSON.
    """
    import torch

    torch.set_num_threads(1)  # trials run side by side
    sys.path += [entry for entry in request.get("path", ()) if entry not in sys.path]
    try:
        module, _, name = request["function"].partition(":")
        function: Function = getattr(importlib.import_module(module), name)
        folder = Path(request["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        result = json.loads(json.dumps(function(request["settings"], folder), allow_nan=False))
        seconds = time.perf_counter() - start
        with contextlib.suppress(OSError):  # it is kept where it holds something
            folder.rmdir()
    except Exception:
        return {"error": traceback.format_exc()}
    return {"result": result, "seconds": seconds, "versions": versions(), "machine": _machine()}


def main() -> None:
    """Answer the request on the standard input."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    out.write(json.dumps(answer(request)))
    out.flush()


def _end_with_the_run() -> None:
    while os.read(0, 1):  # empty when the other end is closed
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _machine() -> dict[str, Any]:
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo", encoding="utf-8") as file:
        name = next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    return {"processor": name, "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}
