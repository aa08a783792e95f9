"""ipyfleet, through its public API only."""

from __future__ import annotations

from benchmarks.peers.views import ViewsPeer


class IpyfleetPeer(ViewsPeer):
    """``with Cluster(n=2) as rc``."""

    title = "ipyfleet"
    module = "ipyfleet"
    distribution = "ipyfleet"


PEER = IpyfleetPeer
