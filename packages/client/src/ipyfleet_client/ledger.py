"""Which call a task belongs to.

What lives here: the map from sequence numbers to works and groups. What must not: locks (the link
has one), I/O.

Calls of one task are found in a dictionary, calls of many in a sorted list of ranges, so that a
slice of a thousand results of one map costs one look-up.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from ipyfleet_client.failed import FailedTasks
from ipyfleet_client.pending import Work
from ipyfleet_client.retention import Retained


class Ledger:
    """The outstanding tasks of a client. Seqs must be added in ascending order.

    Attributes:
        groups: those with tasks that have not ended, by their first seq, ascending.
        failed: the tasks that have ended otherwise than well.
    """

    def __init__(self) -> None:
        self.groups: dict[int, Retained] = {}
        self.failed = FailedTasks()
        self._singles: dict[int, tuple[Work, int, Retained | None]] = {}
        self._starts: list[int] = []
        self._ranges: list[tuple[int, int, Work, int, Retained | None]] = []
        self.outstanding = 0
        """Number of tasks that have been sent and have not ended."""

    def add(
        self, first: int, count: int, work: Work, index: int, group: Retained | None = None
    ) -> None:
        """Note that seqs ``first … first+count-1`` are tasks ``index …`` of `work`.

        Args:
            first, count, work, index: which.
            group: what they are submitted in, to be kept until its tasks have ended.
        """
        if count == 1:
            self._singles[first] = (work, index, group)
        else:
            self._starts.append(first)
            self._ranges.append((first, first + count, work, index, group))
        if group is not None:
            group.parts.append((work, index, count))
            group.count += count
            group.open += count
            self.groups[group.first] = group
        self.outstanding += count

    def find(self, seq: int) -> tuple[Work, int, int] | None:
        """Return the work, the index of the task in it, and how many more follow from there.

        None for a seq that is not outstanding and whose work is done.
        """
        single = self._singles.get(seq)
        if single is not None:
            return single[0], single[1], 1
        position = bisect_right(self._starts, seq) - 1
        if position >= 0:
            first, end, work, index, _ = self._ranges[position]
            if seq < end and (work.arrived < work.total or not work.closed):
                return work, index + seq - first, end - seq
        return None

    def ended(self, first: int, count: int, work: Work) -> None:
        """Note that tasks have ended: `count` of those from `first` on, all of one `add`."""
        self.outstanding -= count
        single = self._singles.pop(first, None)
        if single is not None:
            group = single[2]
        else:
            position = bisect_right(self._starts, first) - 1
            group = self._ranges[position][4] if position >= 0 else None
        if group is not None:
            group.open -= count
            if not group.open:
                del self.groups[group.first]
                group.release()

    def end_lone(self, seq: int) -> Work | None:
        """Note that the only task of a work has ended; return the work.

        None, and nothing has happened, if the task is one of several or somebody follows it.
        """
        single = self._singles.get(seq)
        if single is None:
            return None
        work, _, group = single
        if work.total > 1 or not work.closed or work.followers:
            return None
        del self._singles[seq]
        self.outstanding -= 1
        if group is not None:
            group.open -= 1
            if not group.open:
                del self.groups[group.first]
        return work

    def give_up(self) -> None:
        """Nothing is outstanding any more: nobody will end what was."""
        self.outstanding = 0
        for group in self.groups.values():
            group.release()
        self.groups.clear()

    def forget(self, work: Work) -> None:
        """Drop what is left of a work that is done."""
        for _, first, count in work.ranges:
            if count > 1:
                # All ranges between belong to this work: its seqs are contiguous there.
                start = bisect_left(self._starts, first)
                end = bisect_left(self._starts, first + count)
                del self._starts[start:end]
                del self._ranges[start:end]

    def works(self) -> Iterator[Work]:
        """Iterate over the works that have outstanding tasks, each once."""
        seen: set[int] = set()
        for work, _, _ in list(self._singles.values()):
            if id(work) not in seen:
                seen.add(id(work))
                yield work
        for _, _, work, _, _ in list(self._ranges):
            if id(work) not in seen and not work.done:
                seen.add(id(work))
                yield work
