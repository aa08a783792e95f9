"""Where the tasks are that a dependency names.

What lives here: `find_tasks`. Tasks are in groups that live, or have ended and are remembered, or
are asked of the records, or nobody knows them. What must not: waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ipyfleet_protocol.ids import PeerId
from ipyfleet_protocol.messages import Dependency, TaskRange

from .ended import EndedRun, with_gaps
from .group import TaskGroup
from .instructions import EndedTask
from .state import SchedulerState
from .tracker import UNSURE


@dataclass(slots=True)
class Found:
    """What is known of the tasks of a dependency.

    Attributes:
        live: groups that have not ended, and from where to where tasks of them are meant.
        ended: clients, and how tasks of theirs ended.
        doubtful: tasks of which the records may know more.
        unknown: the first task that nobody knows, if there is one.
    """

    live: list[tuple[TaskGroup, int, int]] = field(default_factory=list)
    ended: list[tuple[PeerId, EndedRun]] = field(default_factory=list)
    doubtful: list[TaskRange] = field(default_factory=list)
    unknown: tuple[PeerId, int] | None = None


def find_tasks(
    state: SchedulerState, dependency: Dependency, answers: Sequence[EndedTask] | None
) -> Found:
    """Return where the tasks of a dependency are.

    Args:
        state: what the scheduler knows.
        dependency: names the tasks.
        answers: what the records know of those that were doubtful; None if they were not asked.
    """
    found = Found()
    for piece in dependency.tasks:
        client, at, end = PeerId(piece.client), piece.first, piece.first + piece.count
        index = state.groups.get(client)
        for group in index.overlapping(at, end) if index is not None else ():
            if at < group.first:
                _find_ended(state, client, at, group.first, answers, found)
            start = max(at, group.first) - group.first
            found.live.append((group, start, min(end, group.end) - group.first))
            at = group.end
        if at < end:
            _find_ended(state, client, at, end, answers, found)
    return found


def _find_ended(
    state: SchedulerState,
    client: PeerId,
    first: int,
    end: int,
    answers: Sequence[EndedTask] | None,
    found: Found,
) -> None:
    """Note how tasks ended that are in no group that lives."""
    # The records know better than who is not sure.
    recorded = [
        (max(part.first, first), min(part.end, end), part.state, part.engine)
        for part in answers or ()
        if part.client == client and part.first < end and first < part.end
    ]
    for low, high, run in with_gaps(sorted(recorded), first, end):
        remembered = [run] if run is not None else state.ended.find(client, low, high)
        for start, stop, part in with_gaps(remembered, low, high):
            if part is None:
                _note_unknown(state, client, start, stop, answers, found)
            elif part[3] == UNSURE and answers is None:
                found.doubtful.append(TaskRange(client, start, stop - start))
            else:
                found.ended.append((client, part))


def _note_unknown(
    state: SchedulerState,
    client: PeerId,
    first: int,
    end: int,
    answers: Sequence[EndedTask] | None,
    found: Found,
) -> None:
    index = state.groups.get(client)
    is_to_come = index is not None and end > index.next_seq
    if answers is None and not is_to_come:
        found.doubtful.append(TaskRange(client, first, end - first))
    elif found.unknown is None:
        unknown = first if index is None or answers is not None else max(first, index.next_seq)
        found.unknown = (client, unknown)


__all__ = ["Found", "find_tasks"]
