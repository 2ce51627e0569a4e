"""CasADi with ipopt, a general interior-point method."""

from benchmarks.peers.casadi_nlp import Peer
from benchmarks.protocol import serve


class Ipopt(Peer):
    """The same problem, the other solver."""

    name = "ipopt"


if __name__ == "__main__":
    serve(Ipopt)
