"""Whether peers' processes live, and run, as far as this host can tell.

What lives here: `ProcessWatch`. What must not: what follows from it.
"""

from __future__ import annotations

from ipyfleet_protocol.hosts import host_id, is_stopped, process_start
from ipyfleet_protocol.ids import PeerId

LOOKS = 3
"""How often a process is looked at within the time for which it may be stopped."""


class ProcessWatch:
    """Remembers which processes peers are, so that one that is gone or stopped can be told.

    To other hosts there are heartbeats, which a stopped process does not answer. On this one nobody
    has to answer anything: the system says whether a process is stopped (SIGSTOP, a terminal's
    Ctrl-Z), and for how many looks in a row it was is counted. Looks are counted and not seconds,
    so that no peer is blamed after this process was stopped itself.

    Attributes:
        next_look_at: when `find_stopped` is to be called; None for never.
    """

    def __init__(self, stop_limit_s: float = 0.0) -> None:
        """Start with nobody.

        Args:
            stop_limit_s: for how long a process may be stopped; 0 for as long as it likes.
        """
        self.next_look_at: float | None = None
        self._processes: dict[PeerId, tuple[int, float]] = {}
        self._look_every_s = stop_limit_s / LOOKS
        # Of those that must not be stopped, how often in a row each was seen so.
        self._seen_stopped: dict[PeerId, int] = {}

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

    def watch(self, peer: PeerId, now: float) -> None:
        """From now on look whether a peer is stopped, if its process is known."""
        if peer in self._processes and self._look_every_s:
            self._seen_stopped[peer] = 0
            if self.next_look_at is None:
                self.next_look_at = now + self._look_every_s

    def forget(self, peer: PeerId) -> None:
        """Drop what is known of a peer."""
        self._processes.pop(peer, None)
        self._seen_stopped.pop(peer, None)

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

    def find_stopped(self, now: float) -> list[PeerId]:
        """Look at all that are watched; return those that have been stopped for too long."""
        found = []
        for peer, count in self._seen_stopped.items():
            if not is_stopped(self._processes[peer][0]):
                self._seen_stopped[peer] = 0
                continue
            self._seen_stopped[peer] = count + 1
            if count >= LOOKS:
                found.append(peer)
        self.next_look_at = now + self._look_every_s if self._seen_stopped else None
        return found


__all__ = ["ProcessWatch"]
