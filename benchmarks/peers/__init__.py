"""One adapter a solver, each run as a process of its own: `python -m benchmarks.peers.<name>`; see benchmarks/protocol.py."""
