"""A peer that does wrong whatever a peer can do wrong; the driver has to cope."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

from benchmarks.peers.base import Peer

DAEMON = "import time; time.sleep(300)"


class MisbehavingPeer(Peer):
    """Starts, and goes wrong in nearly every figure."""

    title = "misbehaving"
    module = "sys"
    distribution = None

    def start(self, workers: int) -> None:
        """Start a process that leaves the session and is never stopped."""
        subprocess.Popen([sys.executable, "-c", DAEMON], start_new_session=True)

    def stop(self) -> None:
        """Leave everything behind."""

    def call(self) -> int:
        """The one thing that works."""
        return 0

    def call_one(self) -> int:
        """Hang."""
        time.sleep(300)
        return 0

    def map_single(self, count: int) -> list[int]:
        """Take the process down."""
        os._exit(3)

    def map_chunked(self, count: int) -> list[int]:
        """Return what was not asked for."""
        return [0] * count

    def push(self, array: Any) -> None:
        """Raise."""
        raise OSError("no room for the array")


PEER = MisbehavingPeer
