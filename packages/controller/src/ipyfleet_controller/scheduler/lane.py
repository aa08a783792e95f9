"""The waiting runs of one client under one constraint, in the order of their sequence numbers.

What lives here: `Lane`. It is a sorted list with a gap in front: taking from the front and putting
back there is O(1), as is adding behind all others; anything else costs a binary search.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator

from .runs import Constraint, Run, split_runs

GAP_MAX = 64
"""Places in front that are kept free; more only while they are less than half."""


class Lane:
    """Runs that wait; no two have a task in common.

    Attributes:
        constraint: of all of them.
        n_tasks: tasks in them.
        is_dormant: no engine that is there may run them.
        key: its place among the client's lanes, while it is not dormant: minus the priority, and
            the first task's sequence number.
    """

    __slots__ = ("_firsts", "_front", "_runs", "constraint", "is_dormant", "key", "n_tasks")

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint
        self.n_tasks = 0
        self.is_dormant = False
        self.key = (0, 0)
        self._runs: list[Run] = []
        self._firsts: list[int] = []
        self._front = 0

    def head(self) -> Run:
        """Return the run with the lowest sequence number."""
        return self._runs[self._front]

    def push(self, run: Run) -> bool:
        """Put a run in its place; return whether the first task is another one now."""
        self.n_tasks += run.stop - run.start
        firsts, runs, front = self._firsts, self._runs, self._front
        first = run.group.first + run.start
        if front == len(firsts) or first > firsts[-1]:
            is_first = front == len(firsts)
            if not is_first and runs[-1].group is run.group and _continues(runs[-1], run):
                runs[-1].stop = run.stop
            else:
                firsts.append(first)
                runs.append(run)
            return is_first
        at = bisect_left(firsts, first, front)
        # Without merging, recalls would chop groups into crumbs.
        if _continues(run, runs[at]):
            runs[at].start = run.start
            firsts[at] = first
        elif at > front and _continues(runs[at - 1], run):
            runs[at - 1].stop = run.stop
        elif at == front and front:
            self._front = front - 1
            firsts[front - 1], runs[front - 1] = first, run
        else:
            firsts.insert(at, first)
            runs.insert(at, run)
        return at == front

    def take(self, count: int) -> Run:
        """Take up to `count` tasks from the front of the first run."""
        front = self._front
        head = self._runs[front]
        size = head.stop - head.start
        if count >= size:
            self._front = front = front + 1
            if front > GAP_MAX and 2 * front > len(self._runs):
                del self._runs[:front], self._firsts[:front]
                self._front = 0
            self.n_tasks -= size
            return head
        taken = Run(head.group, head.start, head.start + count, head.attempt, head.deadline)
        head.start += count
        self._firsts[front] += count
        self.n_tasks -= count
        return taken

    def remove(self, first: int, end: int, due: float = math.inf) -> list[Run]:
        """Take out the tasks with sequence numbers ``first … end-1``.

        Args:
            first, end: which.
            due: runs whose deadline is later stay.
        """
        firsts, runs, front = self._firsts, self._runs, self._front
        low = bisect_left(firsts, first, front)
        if low > front and runs[low - 1].group.seq(runs[low - 1].stop) > first:
            low -= 1
        high = bisect_left(firsts, end, low)
        removed: list[Run] = []
        kept: list[Run] = []
        for run in runs[low:high]:
            if run.deadline > due:
                kept.append(run)
                continue
            inside, outside = split_runs([run], first, end)
            removed += inside
            kept += outside
        if removed:
            runs[low:high] = kept
            firsts[low:high] = [run.first_seq for run in kept]
            self.n_tasks -= sum(map(len, removed))
        return removed

    def runs(self) -> Iterator[Run]:
        """Yield all runs, in order."""
        return (self._runs[position] for position in range(self._front, len(self._runs)))


def _continues(before: Run, after: Run) -> bool:
    """Whether two runs may be one."""
    return (
        before.group is after.group
        and before.stop == after.start
        and before.attempt == after.attempt
        and before.deadline == after.deadline
    )


__all__ = ["Lane"]
