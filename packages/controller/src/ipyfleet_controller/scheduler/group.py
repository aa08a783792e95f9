"""Groups of tasks as compact columns.

What lives here: `TaskGroup`, one state byte per task and the payload frames of all, and the table
of legal transitions. What must not: any notion of engines or queues.

    QUEUED ──► PLACED ──► OK | FAILED | ABORTED
      ▲          │
      └──────────┘  recalled, its engine was lost, or it failed and has attempts left
    QUEUED ──► FAILED | ABORTED     ended without an engine
"""

from __future__ import annotations

import enum
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ipyfleet_protocol.columns import Frame, Payloads
from ipyfleet_protocol.ids import PeerId
from ipyfleet_protocol.messages import ABORTED as STATUS_ABORTED
from ipyfleet_protocol.messages import FAILED as STATUS_FAILED
from ipyfleet_protocol.messages import OK as STATUS_OK
from ipyfleet_protocol.messages import Columns, Function, Group, Options

if TYPE_CHECKING:
    from .dependencies import Blocked
    from .prefetch import Estimate
    from .tracker import Watches


class State(enum.IntEnum):
    """Where a task is. The last three are final."""

    QUEUED = 0
    PLACED = 1
    OK = 2
    FAILED = 3
    ABORTED = 4


TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.QUEUED: (State.PLACED, State.FAILED, State.ABORTED),
    State.PLACED: (State.QUEUED, State.OK, State.FAILED, State.ABORTED),
    State.OK: (),
    State.FAILED: (),
    State.ABORTED: (),
}
"""Which states may follow a state."""

STATE_OF_STATUS = {
    STATUS_OK: State.OK,
    STATUS_FAILED: State.FAILED,
    STATUS_ABORTED: State.ABORTED,
}
"""The final state that a byte of `ResultSlice.status` stands for."""

_PLACED = int(State.PLACED)

_STATES_OF_STATUS = bytes(STATE_OF_STATUS.get(status, 0) for status in range(256))


STATUS_OF_STATE = {state: status for status, state in STATE_OF_STATUS.items()}
"""The other way round."""


class IllegalTransition(AssertionError):
    """A bug: a task was to go where it cannot go from where it is."""


class TaskGroup:
    """What one call submitted: tasks ``first … first+count-1`` of one client.

    Tasks are named by their index in the group, 0 … count-1; `seq` adds the group's first.

    Attributes:
        client: who submitted it.
        first: sequence number of the first task.
        count: number of tasks.
        options: what the caller asked for.
        function: header of the function, without a body; None for `execute`.
        states: one `State` per task.
        estimate: of how long its tasks take; kept here by `prefetch.Estimates`.
        frames: payload frames of all tasks; None once the group has ended.
        task_bytes: mean size of one task's payload.
        remaining: number of tasks that have not ended.
        blocked: what its tasks wait for before they wait for an engine; None for nothing.
        watches: who waits for its tasks; None for nobody.
    """

    __slots__ = (
        "_payloads",
        "_places",
        "blocked",
        "client",
        "columns",
        "count",
        "estimate",
        "first",
        "frames",
        "function",
        "options",
        "remaining",
        "states",
        "task_bytes",
        "watches",
    )

    def __init__(self, client: PeerId, group: Group, frames: Sequence[Frame]) -> None:
        """Take a group from a checked `Submit`, and its payload frames."""
        self.client = client
        self.first = group.first
        self.count = group.count
        self.options: Options = group.options
        self.function: Function | None = group.function
        self.columns = group.columns
        self.frames: Sequence[Frame] | None = frames
        # Finds the part of some tasks; made when that is wanted for the first time.
        self._payloads: Payloads | None = None
        self.estimate: Estimate | None = None
        self.task_bytes = sum(map(len, frames)) // (len(group.columns.sizes) // 4)
        self.states = bytearray(group.count)
        self.remaining = group.count
        self.blocked: Blocked | None = None
        self.watches: Watches | None = None
        # Start, stop and engine of tasks that ended there, one triple for each message of results.
        self._places: array[int] | None = None

    def __repr__(self) -> str:
        return f"<TaskGroup {self.client.hex()[:8]} {self.first}+{self.count}>"

    @property
    def end(self) -> int:
        """The sequence number after the last task's."""
        return self.first + self.count

    @property
    def is_done(self) -> bool:
        """Whether all tasks have ended."""
        return not self.remaining

    def seq(self, index: int) -> int:
        """Return a task's sequence number."""
        return self.first + index

    def part(self, start: int, stop: int) -> tuple[Columns, list[Frame]]:
        """Return columns and frames of the payloads of some tasks.

        Raises:
            IllegalTransition: if the group has ended and its payloads are freed.
        """
        if self.frames is None:
            raise IllegalTransition(f"{self!r} has ended; its payloads are freed")
        if stop - start == self.count or self.options.shared:
            return self.columns, list(self.frames)
        if self._payloads is None:
            self._payloads = Payloads(self.columns, self.frames)
        return self._payloads.part(start, stop)

    def replace_payloads(self, columns: Columns, frames: Sequence[Frame]) -> None:
        """Have the same payloads in other frames."""
        self.columns, self.frames, self._payloads = columns, frames, None

    def move(self, start: int, stop: int, source: State, target: State) -> None:
        """Move tasks ``start … stop-1``, all in one state, to another.

        Raises:
            IllegalTransition: if one of them is elsewhere or may not go there. Nothing has changed.
        """
        if target not in TRANSITIONS[source]:
            raise IllegalTransition(f"{self!r}: {source.name} -> {target.name}")
        states = self.states
        if stop - start == 1 and states[start] == source:
            states[start] = target
        else:
            self._require(start, stop, source)
            states[start:stop] = bytes((target,)) * (stop - start)
        if target > State.PLACED:
            self._end(stop - start)

    def finish(self, start: int, stop: int, status: bytes) -> None:
        """End placed tasks ``start … stop-1`` as an engine says, one status byte each.

        Raises:
            IllegalTransition: if one of them is not placed. Nothing has changed.
        """
        if stop - start != 1 or self.states[start] != _PLACED:
            self._require(start, stop, State.PLACED)
        self.states[start:stop] = status.translate(_STATES_OF_STATUS)
        self._end(stop - start)

    def note_place(self, start: int, stop: int, engine: int) -> None:
        """Note that tasks ``start … stop-1`` ended at an engine."""
        places = self._places
        if places is None:
            places = self._places = array("i")
        places.append(start)
        places.append(stop)
        places.append(engine)

    def places(self) -> Iterable[tuple[int, int, int]]:
        """Return start, stop and engine of the tasks that ended at an engine."""
        places = self._places or ()
        return zip(places[::3], places[1::3], places[2::3], strict=True)

    def _require(self, start: int, stop: int, source: State) -> None:
        if self.states.count(source, start, stop) != stop - start or start >= stop:
            found = sorted({State(byte).name for byte in self.states[start:stop]})
            raise IllegalTransition(
                f"{self!r}: tasks {self.first + start} … {self.first + stop - 1} should all be "
                f"{source.name} and are {', '.join(found)}"
            )

    def _end(self, count: int) -> None:
        self.remaining -= count
        if not self.remaining:
            # The frames hold the client's data; nobody needs them once the last task has ended.
            self.frames = self._payloads = None


class GroupIndex:
    """The groups of one client that have not ended, found by sequence number.

    Groups arrive with growing sequence numbers, so they are a sorted list; ended ones are swept
    out when they are half of it, which is O(1) per group on average.
    """

    __slots__ = ("_groups", "_n_done", "next_seq")

    def __init__(self) -> None:
        self._groups: list[TaskGroup] = []
        self._n_done = 0
        self.next_seq = 0
        """No further group may start before this sequence number."""

    def add(self, group: TaskGroup) -> None:
        """Add a group that comes after all others that were added."""
        groups = self._groups
        if groups and groups[-1].first > group.first:
            self.insert(group)  # behind it there is one of which only an engine has told
        else:
            groups.append(group)
        self.next_seq = group.first + group.count

    def insert(self, group: TaskGroup) -> None:
        """Put a group in its place, whatever comes after it."""
        if self._groups and self._groups[-1].first > group.first:
            self._groups.insert(bisect_left(self._groups, group.first, key=_first), group)
        else:
            self._groups.append(group)

    def discard(self, group: TaskGroup) -> None:
        """Take a group out."""
        if group in self._groups:
            self._groups.remove(group)
            self._n_done -= group.is_done

    def note_done(self) -> None:
        """Count a group that has ended."""
        self._n_done += 1
        if self._n_done > 16 and 2 * self._n_done > len(self._groups):
            self._groups = [group for group in self._groups if not group.is_done]
            self._n_done = 0

    def overlapping(self, first: int, end: int) -> list[TaskGroup]:
        """Return the live groups that have tasks in ``first … end-1``, in order."""
        low, high = 0, len(self._groups)
        while low < high:
            middle = (low + high) // 2
            if self._groups[middle].end <= first:
                low = middle + 1
            else:
                high = middle
        found = []
        for position in range(low, len(self._groups)):
            group = self._groups[position]
            if group.first >= end:
                break
            if not group.is_done:
                found.append(group)
        return found

    def live(self) -> list[TaskGroup]:
        """Return all groups that have not ended."""
        return [group for group in self._groups if not group.is_done]


def _first(group: TaskGroup) -> int:
    return group.first


__all__ = [
    "STATE_OF_STATUS",
    "STATUS_OF_STATE",
    "TRANSITIONS",
    "GroupIndex",
    "IllegalTransition",
    "State",
    "TaskGroup",
]
