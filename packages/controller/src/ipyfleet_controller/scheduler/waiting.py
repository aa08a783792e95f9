"""Tasks that wait for an engine: runs of tasks, in lanes, one set of lanes per client.

What lives here: `Run` (tasks of one group with the same attempt number that wait together),
`Lane` (the runs of one client that may go to the same engines, in sequence order) and
`WaitingTasks` (all lanes, round-robin over clients). What must not: decisions about engines'
load.

A million queued tasks are some hundred runs. Taking tasks from the front of a lane costs O(1),
putting some back O(log runs).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ipyfleet_protocol.ids import EngineId, PeerId

from .group import TaskGroup


class Constraint(NamedTuple):
    """Which engines may run a task.

    Attributes:
        targets: engines that the caller named; None for any.
        avoid: engines that failed the task; they get it again only when no other may run it.
    """

    targets: frozenset[EngineId] | None = None
    avoid: frozenset[EngineId] = frozenset()

    def admits(self, engine: EngineId) -> bool:
        """Whether the caller allows this engine, whatever it has failed."""
        return self.targets is None or engine in self.targets


ANYWHERE = Constraint()


class Run:
    """Tasks ``start … stop-1`` of a group, all with the same attempt number."""

    __slots__ = ("attempt", "group", "start", "stop")

    def __init__(self, group: TaskGroup, start: int, stop: int, attempt: int = 0) -> None:
        self.group = group
        self.start = start
        self.stop = stop
        self.attempt = attempt

    def __len__(self) -> int:
        return self.stop - self.start

    def __repr__(self) -> str:
        return f"<Run {self.group.seq(self.start)}+{len(self)} attempt {self.attempt}>"

    @property
    def first_seq(self) -> int:
        """Sequence number of the first task."""
        return self.group.first + self.start


class Lane:
    """The waiting runs of one client under one constraint, lowest sequence number first."""

    __slots__ = ("_heap", "constraint", "n_tasks")

    def __init__(self, constraint: Constraint) -> None:
        self.constraint = constraint
        self.n_tasks = 0
        # (first seq, run); no two numbers are equal, since runs are disjoint.
        self._heap: list[tuple[int, Run]] = []

    def head(self) -> Run:
        """Return the run with the lowest sequence number."""
        return self._heap[0][1]

    def push(self, run: Run) -> None:
        """Put a run in its place."""
        self.n_tasks += len(run)
        if self._heap:
            head = self._heap[0][1]
            if head.group is run.group and head.attempt == run.attempt and run.stop == head.start:
                # Given back by an engine: without this, recalls would chop groups into crumbs.
                head.start = run.start
                self._heap[0] = (head.first_seq, head)
                return
        heapq.heappush(self._heap, (run.first_seq, run))

    def take(self, count: int) -> Run:
        """Take up to `count` tasks from the front of the first run."""
        head = self._heap[0][1]
        size = head.stop - head.start
        if count >= size:
            heapq.heappop(self._heap)
            self.n_tasks -= size
            return head
        taken = Run(head.group, head.start, head.start + count, head.attempt)
        head.start += count
        # Its number has grown and is still the lowest: runs are disjoint. The order of the heap
        # holds.
        self._heap[0] = (head.first_seq, head)
        self.n_tasks -= count
        return taken

    def remove(self, first: int, end: int) -> list[Run]:
        """Take out the tasks with sequence numbers ``first … end-1``; O(runs)."""
        if not any(run.first_seq < end and first < run.group.seq(run.stop) for run in self.runs()):
            return []
        removed, kept = split_runs([run for _, run in sorted(self._heap)], first, end)
        self._heap = [(run.first_seq, run) for run in kept]
        self.n_tasks -= sum(map(len, removed))
        return removed

    def runs(self) -> Iterator[Run]:
        """Yield all runs, in no particular order."""
        return (run for _, run in self._heap)


def split_runs(runs: list[Run], first: int, end: int) -> tuple[list[Run], list[Run]]:
    """Return the parts of runs inside ``first … end-1`` and those outside, in order."""
    inside: list[Run] = []
    outside: list[Run] = []
    for run in runs:
        group, offset = run.group, run.group.first
        low = min(max(first - offset, run.start), run.stop)
        high = max(min(end - offset, run.stop), low)
        for start, stop, parts in (
            (run.start, low, outside),
            (low, high, inside),
            (high, run.stop, outside),
        ):
            if start < stop:
                parts.append(Run(group, start, stop, run.attempt))
    return inside, outside


class WaitingTasks:
    """All balanced tasks that wait for an engine.

    Clients take turns: after each slice that was taken, the next client is asked first.
    """

    __slots__ = ("_lanes", "_turn", "n_tasks")

    def __init__(self) -> None:
        self._lanes: dict[PeerId, dict[Constraint, Lane]] = {}
        self._turn: deque[PeerId] = deque()
        self.n_tasks = 0

    def push(self, run: Run, constraint: Constraint) -> None:
        """Let a run wait."""
        lanes = self._lanes.get(run.group.client)
        if lanes is None:
            lanes = self._lanes[run.group.client] = {}
            self._turn.append(run.group.client)
        lane = lanes.get(constraint)
        if lane is None:
            lane = lanes[constraint] = Lane(constraint)
        lane.push(run)
        self.n_tasks += len(run)

    def lanes_in_turn(self) -> Iterator[Lane]:
        """Yield lanes, the client first whose turn it is, and of one client the oldest task
        first.
        """
        for client in self._turn:
            lanes = self._lanes[client]
            if len(lanes) == 1:
                yield from lanes.values()
            else:
                yield from sorted(lanes.values(), key=lambda lane: lane.head().first_seq)

    def take(self, lane: Lane, count: int) -> Run:
        """Take tasks from a lane; the turn goes to the next client."""
        run = lane.take(count)
        client = run.group.client
        self.n_tasks -= run.stop - run.start
        if len(self._turn) > 1 and self._turn[0] == client:
            self._turn.rotate(-1)
        if not lane.n_tasks:
            self._forget_if_empty(client, lane)
        return run

    def remove(self, client: PeerId, first: int, end: int) -> list[Run]:
        """Take out a client's waiting tasks ``first … end-1``."""
        removed: list[Run] = []
        for lane in list(self._lanes.get(client, {}).values()):
            removed += lane.remove(first, end)
            self._forget_if_empty(client, lane)
        self.n_tasks -= sum(map(len, removed))
        return removed

    def remove_where_impossible(self, live: frozenset[EngineId]) -> list[tuple[Constraint, Run]]:
        """Take out the tasks whose named targets are all gone; they cannot come back."""
        return self._remove_lanes(
            lambda lane: lane.constraint.targets is not None and not lane.constraint.targets & live
        )

    def remove_all(self) -> list[tuple[Constraint, Run]]:
        """Take out everything."""
        return self._remove_lanes(lambda lane: True)

    def all_lanes(self) -> list[Lane]:
        """Return all lanes."""
        return [lane for lanes in self._lanes.values() for lane in lanes.values()]

    def _remove_lanes(self, condition: Callable[[Lane], bool]) -> list[tuple[Constraint, Run]]:
        removed = []
        for client, lanes in list(self._lanes.items()):
            for lane in list(lanes.values()):
                if condition(lane):
                    removed += [(lane.constraint, lane.take(lane.n_tasks)) for _ in [*lane.runs()]]
                    self._forget_if_empty(client, lane)
        self.n_tasks -= sum(len(run) for _, run in removed)
        return removed

    def _forget_if_empty(self, client: PeerId, lane: Lane) -> None:
        if lane.n_tasks:
            return
        lanes = self._lanes[client]
        del lanes[lane.constraint]
        if not lanes:
            del self._lanes[client]
            self._turn.remove(client)


__all__ = ["ANYWHERE", "Constraint", "Lane", "Run", "WaitingTasks", "split_runs"]
