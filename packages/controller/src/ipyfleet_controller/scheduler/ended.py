"""Tasks that have ended, for those that come to depend on them later.

What lives here: `EndedTasks`, bounded. What must not: results; those are the database's.

Neighbouring tasks that ended alike at the same engine are one **run** of 21 bytes, in columns per
client. A map whose tasks are placed hundreds at a time costs a fraction of a byte per task, one
whose neighbours all ended at different engines 21. Beyond `ENDED_MAX_RUNS` the oldest tasks of the
client that has had none end for the longest time are forgotten.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import TypeAlias

from ipyfleet_protocol.ids import EngineId, PeerId

from .group import State, TaskGroup
from .tracker import NOWHERE

ENDED_MAX_RUNS = 1 << 20
"""Runs that are remembered of all clients together: 22 MB at most, at least a million tasks."""

FORGOTTEN_PART = 16
"""So many parts of the bound are kept when one part has to be forgotten."""

EndedRun: TypeAlias = tuple[int, int, State, EngineId]
"""First task, end, how these ended and at which engine."""


class _Columns:
    """The runs of one client, sorted by their first task; they are disjoint."""

    __slots__ = ("counts", "engines", "firsts", "states")

    def __init__(self) -> None:
        self.firsts = array("q")
        self.counts = array("q")
        self.states = bytearray()
        self.engines = array("i")

    def __len__(self) -> int:
        return len(self.firsts)

    def add(self, first: int, end: int, state: int, engine: int) -> int:
        """Add a run; return by how many there are more now, 1 or 0."""
        firsts = self.firsts
        at = len(firsts)
        if at and firsts[-1] > first:
            at = bisect_left(firsts, first)
        before = at - 1
        if (
            at
            and self.states[before] == state
            and self.engines[before] == engine
            and firsts[before] + self.counts[before] == first
        ):
            self.counts[before] += end - first
            return 0
        # Tasks end nearly in order, so little has to be moved.
        firsts.insert(at, first)
        self.counts.insert(at, end - first)
        self.states.insert(at, state)
        self.engines.insert(at, engine)
        return 1

    def find(self, first: int, end: int) -> Iterator[EndedRun]:
        """Yield the parts of runs that are in ``first … end-1``."""
        at = max(bisect_right(self.firsts, first) - 1, 0)
        while at < len(self.firsts) and self.firsts[at] < end:
            low, high = self.firsts[at], self.firsts[at] + self.counts[at]
            if high > first:
                state, engine = State(self.states[at]), EngineId(self.engines[at])
                yield max(low, first), min(high, end), state, engine
            at += 1

    def forget(self, count: int) -> None:
        """Forget the oldest runs."""
        for column in (self.firsts, self.counts, self.states, self.engines):
            del column[:count]


class EndedTasks:
    """How tasks ended, and where.

    A group whose tasks ended here and there is taken apart in `tidy`, when there is time for it or
    when somebody asks: its last result would wait, 4 ms for a thousand tasks.
    """

    __slots__ = ("_clients", "_max_runs", "_untidy", "n_runs")

    def __init__(self, max_runs: int = ENDED_MAX_RUNS) -> None:
        """Start empty; hold `max_runs` at most."""
        self._max_runs = max_runs
        self._clients: OrderedDict[PeerId, _Columns] = OrderedDict()
        self._untidy: list[TaskGroup] = []
        self.n_runs = 0

    def note(self, group: TaskGroup, engine: EngineId | None = None) -> None:
        """Remember a group that has ended.

        Args:
            group: which.
            engine: where all of its tasks ended; None where the group knows of each.
        """
        if engine is None:
            self._untidy.append(group)
        else:
            self._add(group, engine)

    def tidy(self) -> None:
        """Take in what was left for later."""
        untidy, self._untidy = self._untidy, []
        for group in untidy:
            self._add(group, None)

    def _add(self, group: TaskGroup, engine: EngineId | None) -> None:
        columns = self._clients.get(group.client)
        if columns is None:
            columns = self._clients[group.client] = _Columns()
        elif len(self._clients) > 1:
            self._clients.move_to_end(group.client)
        states, count = group.states, group.count
        if engine is not None and (count == 1 or states.count(states[0]) == count):
            self.n_runs += columns.add(group.first, group.first + count, states[0], engine)
        else:
            if engine is not None and engine != NOWHERE:
                group.note_place(0, count, engine)
            for first, end, state, place in runs_of(group, 0, count):
                self.n_runs += columns.add(first, end, state, place)
        if self.n_runs > self._max_runs:
            self._forget()

    def find(self, client: PeerId, first: int, end: int) -> list[EndedRun]:
        """Return what is known of a client's tasks ``first … end-1``, in order."""
        self.tidy()
        columns = self._clients.get(client)
        return list(columns.find(first, end)) if columns is not None else []

    def _forget(self) -> None:
        while self.n_runs > self._max_runs:
            client, columns = next(iter(self._clients.items()))
            count = min(len(columns), max(1, self._max_runs // FORGOTTEN_PART))
            columns.forget(count)
            self.n_runs -= count
            if not columns:
                del self._clients[client]


def with_gaps(
    runs: Iterable[EndedRun], first: int, end: int
) -> Iterator[tuple[int, int, EndedRun | None]]:
    """Yield from where to where each of some runs is, and between them, with None, what is in none.

    Args:
        runs: in order, all within ``first … end-1``.
        first, end: the whole.
    """
    at = first
    for run in runs:
        if at < run[0]:
            yield at, run[0], None
        yield run[0], run[1], run
        at = run[1]
    if at < end:
        yield at, end, None


def runs_of(group: TaskGroup, start: int, stop: int) -> Iterator[EndedRun]:
    """Yield how tasks ``start … stop-1`` of a group ended, those that have, in order."""
    at = start
    for low, high, engine in sorted(group.places()):
        low, high = max(low, start), min(high, stop)
        if low >= high:
            continue
        if at < low:
            yield from _stretches(group, at, low, NOWHERE)
        yield from _stretches(group, low, high, EngineId(engine))
        at = high
    if at < stop:
        yield from _stretches(group, at, stop, NOWHERE)


def _stretches(group: TaskGroup, start: int, stop: int, engine: EngineId) -> Iterator[EndedRun]:
    """Yield the stretches of tasks that ended alike; all of those that have ran at one engine."""
    states, offset = group.states, group.first
    while start < stop:
        state = states[start]
        if states.count(state, start, stop) == stop - start:
            end = stop
        else:
            end = start + 1
            while end < stop and states[end] == state:
                end += 1
        if state > State.PLACED:
            yield offset + start, offset + end, State(state), engine
        start = end


__all__ = ["ENDED_MAX_RUNS", "EndedRun", "EndedTasks", "runs_of", "with_gaps"]
