"""CasADi with fatrop, a structured interior-point method."""

from benchmarks.peers.casadi_nlp import Peer
from benchmarks.protocol import serve

if __name__ == "__main__":
    serve(Peer)
