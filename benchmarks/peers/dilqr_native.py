"""Our own planner, compiled."""

from benchmarks.peers.dilqr_torch import Planner
from benchmarks.protocol import serve


class NativePlanner(Planner):
    """The same module with the native backend, on one thread."""

    backend = "native"


if __name__ == "__main__":
    serve(NativePlanner)
