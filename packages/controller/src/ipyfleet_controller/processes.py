"""Whether peers' processes live, as far as this host can tell.

What lives here: `ProcessWatch`. What must not: what follows from it.
"""

from __future__ import annotations

from ipyfleet_protocol.hosts import host_id, process_start
from ipyfleet_protocol.ids import PeerId


class ProcessWatch:
    """Remembers which processes peers are, so that one that is gone can be told."""

    def __init__(self) -> None:
        self._processes: dict[PeerId, tuple[int, float]] = {}

    def add(self, peer: PeerId, host: str, pid: int, started: float | None = None) -> float:
        """Note a peer's process; return when it started, 0 where nobody knows.

        Args:
            peer: whose.
            host: its host; of other hosts nothing is noted.
            pid: its process id.
            started: when it started, where that was known before.
        """
        if host != host_id():
            return 0.0
        if started is None:
            try:
                started = process_start(pid)
            except ProcessLookupError:
                started = 0.0
        # Without it a process of another name space, or a dead one, may be meant.
        if started:
            self._processes[peer] = pid, started
        return started

    def forget(self, peer: PeerId) -> None:
        """Drop what is known of a peer."""
        self._processes.pop(peer, None)

    def is_gone(self, peer: PeerId) -> bool:
        """Whether a peer's process was here and is no more."""
        if peer not in self._processes:
            return False
        pid, started = self._processes[peer]
        try:
            now = process_start(pid)
        except ProcessLookupError:
            return True
        return bool(now) and abs(now - started) > 0.05


__all__ = ["ProcessWatch"]
