"""ipyparallel, through its public API only."""

from __future__ import annotations

from benchmarks.peers.views import ViewsPeer


class IpyparallelPeer(ViewsPeer):
    """``with Cluster(n=2) as rc``."""

    title = "ipyparallel"
    module = "ipyparallel"
    distribution = "ipyparallel"


PEER = IpyparallelPeer
