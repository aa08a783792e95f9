"""The test kit of ipyfleet's packages; never a dependency of any of them.

What lives here: what tests of several packages need. `waiting`, `clock` and `memory` are for pure
and in-process tests, `cluster` has fixtures with real processes, `plugin` is loaded by pytest by
itself and fails tests that leak.
"""

from ipyfleet_testing.clock import MockClock
from ipyfleet_testing.memory import (
    DelayingPeer,
    DroppingPeer,
    Endpoint,
    Peer,
    PeerClosed,
    RecordingPeer,
    linked_pair,
)
from ipyfleet_testing.waiting import wait_until

__version__ = "0.1.0"

__all__ = [
    "DelayingPeer",
    "DroppingPeer",
    "Endpoint",
    "MockClock",
    "Peer",
    "PeerClosed",
    "RecordingPeer",
    "linked_pair",
    "wait_until",
]
