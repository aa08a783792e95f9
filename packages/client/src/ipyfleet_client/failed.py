"""Which of a client's tasks have not ended well, for those that come to depend on them.

What lives here: `FailedTasks`, bounded. What must not: results and errors; those belong to whoever
asked for them.

A controller that is started anew knows of a task that has ended only what its client says, and with
it come the groups that depend on it. Neighbouring tasks that ended alike are one range of 17 bytes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from itertools import groupby

from ipyfleet_protocol.messages import OK, EndedRange

MAX_RANGES = 1 << 16
"""Ranges that are remembered; of older tasks it is forgotten that they failed."""

FORGOTTEN_PART = 16
"""So many parts of the bound are kept when one part has to be forgotten."""


class FailedTasks:
    """The tasks that ended otherwise than `OK`."""

    def __init__(self, max_ranges: int = MAX_RANGES) -> None:
        self._max_ranges = max_ranges
        self._firsts = array("q")
        self._ends = array("q")
        self._statuses = bytearray()

    def note(self, first: int, statuses: bytes | bytearray) -> None:
        """Note how tasks ``first …`` ended; those that ended well do not count."""
        if not statuses.strip(bytes((OK,))):
            return
        for status, stretch in groupby(statuses):
            end = first + sum(1 for _ in stretch)
            if status != OK:
                self._add(first, end, status)
            first = end

    def between(self, first: int, end: int) -> list[EndedRange]:
        """Return those of the tasks ``first … end-1`` that have not ended well."""
        found = []
        at = max(bisect_right(self._firsts, first) - 1, 0)
        while at < len(self._firsts) and self._firsts[at] < end:
            low, high = max(self._firsts[at], first), min(self._ends[at], end)
            if low < high:
                found.append(EndedRange(low, high - low, self._statuses[at]))
            at += 1
        return found

    def _add(self, first: int, end: int, status: int) -> None:
        at = bisect_right(self._firsts, first)
        before = at - 1
        if at and self._ends[before] >= end:
            return  # it came twice
        if at and self._ends[before] == first and self._statuses[before] == status:
            self._ends[before] = end
            return
        # Tasks end nearly in order, so little has to be moved.
        self._firsts.insert(at, first)
        self._ends.insert(at, end)
        self._statuses.insert(at, status)
        if len(self._firsts) > self._max_ranges:
            forgotten = max(1, self._max_ranges // FORGOTTEN_PART)
            for column in (self._firsts, self._ends, self._statuses):
                del column[:forgotten]
