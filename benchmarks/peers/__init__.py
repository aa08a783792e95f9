"""The systems that are compared, in the order of the table's columns.

A file here that is named in :data:`NAMES` defines ``PEER``, its class
(:class:`benchmarks.peers.base.Peer`).
"""

from __future__ import annotations

import importlib

from benchmarks.peers.base import Peer

OURS = "ipyfleet"
"""The peer whose ratios to the others are shown."""
REFERENCE = "ipyparallel"
"""The system that ours succeeds."""
FLOOR = "floor"
"""What the machine itself takes; compared with nobody."""

NAMES = (
    OURS,
    REFERENCE,
    "concurrent_futures",
    "multiprocessing_pool",
    "joblib_loky",
    "dask",
    "ray",
    FLOOR,
)


def load_peer(name: str) -> type[Peer]:
    """Return the class of a peer; the system itself is not imported yet.

    Args:
        name: One of :data:`NAMES`, or the dotted name of any module that defines ``PEER``.
    """
    module = name if "." in name else f"benchmarks.peers.{name}"
    peer: type[Peer] = importlib.import_module(module).PEER
    return peer
