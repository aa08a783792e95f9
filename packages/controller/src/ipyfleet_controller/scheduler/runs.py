"""What waits, and under what terms.

What lives here: `Constraint` (which engines may run a task, and how urgent it is) and `Run` (tasks
of one group with the same attempt number that wait together). What must not: queues.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ipyfleet_protocol.ids import EngineId

from .group import TaskGroup

if TYPE_CHECKING:
    from .engine_queue import EngineQueue
    from .tracker import Tracker


class Constraint(NamedTuple):
    """Under what terms a task waits.

    Attributes:
        targets: engines that may run it; None for any.
        avoid: engines that failed it; they get it again only when no other may run it.
        refused: engines that turned it down; they never get it again.
        needs: resources and how much of each an engine must have, sorted by name.
        follow: the dependency whose tasks' engines may run it, while it can still grow.
        priority: of one client's tasks those with the higher number go first.
    """

    targets: frozenset[EngineId] | None = None
    avoid: frozenset[EngineId] = frozenset()
    refused: frozenset[EngineId] = frozenset()
    needs: tuple[tuple[str, float], ...] = ()
    follow: Tracker | None = None
    priority: int = 0

    def admits(self, engine: EngineQueue) -> bool:
        """Whether an engine may run the task, whatever it has failed."""
        number = engine.engine_id
        if self.targets is not None and number not in self.targets:
            return False
        if number in self.refused:
            return False
        if self.follow is not None and number not in self.follow.engines:
            return False
        return not self.needs or self.is_content_with(engine)

    def is_content_with(self, engine: EngineQueue) -> bool:
        """Whether an engine has the resources."""
        return all(engine.resources.get(name, 0.0) >= amount for name, amount in self.needs)

    @property
    def is_free(self) -> bool:
        """Whether any engine may run the task."""
        return self.targets is None and not self.refused and not self.needs and self.follow is None


ANYWHERE = Constraint()


class Run:
    """Tasks ``start … stop-1`` of a group, all with the same attempt number.

    Attributes:
        deadline: until when they may wait for a place.
    """

    __slots__ = ("attempt", "deadline", "group", "start", "stop")

    def __init__(
        self,
        group: TaskGroup,
        start: int,
        stop: int,
        attempt: int = 0,
        deadline: float = math.inf,
    ) -> None:
        self.group = group
        self.start = start
        self.stop = stop
        self.attempt = attempt
        self.deadline = deadline

    def __len__(self) -> int:
        return self.stop - self.start

    def __repr__(self) -> str:
        return f"<Run {self.group.seq(self.start)}+{len(self)} attempt {self.attempt}>"

    @property
    def first_seq(self) -> int:
        """Sequence number of the first task."""
        return self.group.first + self.start

    def part(self, start: int, stop: int) -> Run:
        """Return the tasks ``start … stop-1`` of the group, which are among the run's."""
        return Run(self.group, start, stop, self.attempt, self.deadline)


def split_runs(runs: list[Run], first: int, end: int) -> tuple[list[Run], list[Run]]:
    """Return the parts of runs inside ``first … end-1`` and those outside, in order."""
    inside: list[Run] = []
    outside: list[Run] = []
    for run in runs:
        offset = run.group.first
        low = min(max(first - offset, run.start), run.stop)
        high = max(min(end - offset, run.stop), low)
        for start, stop, parts in (
            (run.start, low, outside),
            (low, high, inside),
            (high, run.stop, outside),
        ):
            if start < stop:
                parts.append(run.part(start, stop))
    return inside, outside


__all__ = ["ANYWHERE", "Constraint", "Run", "split_runs"]
