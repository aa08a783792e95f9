"""When tasks have waited for a place for as long as they may.

What lives here: `Timeouts`, the deadlines of runs in the order in which they come. What must not:
ending tasks.

An entry is made for each run that begins to wait and may not wait for ever. It is looked at when it
is due and not before: most tasks have got a place by then.
"""

from __future__ import annotations

import heapq

from .instructions import WakeAt
from .runs import Run

SWEEP_ABOVE = 1024
"""Entries from which those of groups that have ended are thrown out now and then."""


class Timeouts:
    """Deadlines."""

    __slots__ = ("_asked_at", "_entries", "_n_made", "_sweep_at")

    def __init__(self) -> None:
        # Deadline, a number that makes entries comparable, a copy of the run.
        self._entries: list[tuple[float, int, Run]] = []
        self._n_made = 0
        self._sweep_at = SWEEP_ABOVE
        self._asked_at: float | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, run: Run) -> None:
        """Note a run that begins to wait, with its deadline."""
        self._n_made += 1
        copy = run.part(run.start, run.stop)
        heapq.heappush(self._entries, (run.deadline, self._n_made, copy))
        if len(self._entries) > self._sweep_at:
            self._entries = [entry for entry in self._entries if not entry[2].group.is_done]
            heapq.heapify(self._entries)
            self._sweep_at = max(SWEEP_ABOVE, 2 * len(self._entries))

    def due(self, now: float) -> list[Run]:
        """Take out the runs whose deadline has come; some of their tasks may have left since."""
        if self._asked_at is not None and self._asked_at <= now:
            self._asked_at = None
        out = []
        while self._entries and self._entries[0][0] <= now:
            run = heapq.heappop(self._entries)[2]
            if not run.group.is_done:
                out.append(run)
        return out

    def wake(self) -> list[WakeAt]:
        """Return what makes the scheduler look at the next deadline; nothing if it will anyway."""
        if not self._entries:
            return []
        at = self._entries[0][0]
        if self._asked_at is not None and self._asked_at <= at:
            return []
        self._asked_at = at
        return [WakeAt(at)]


__all__ = ["Timeouts"]
