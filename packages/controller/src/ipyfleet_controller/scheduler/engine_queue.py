"""What one engine has been given and has not answered.

What lives here: `Slice` (tasks placed together) and `EngineQueue` (an engine's outstanding slices
in the order of their ordinals, and the direct tasks that wait for it). What must not: decisions.

Every change costs O(outstanding slices), and the usual one, a result for the oldest slice, O(1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

from ipyfleet_protocol.ids import EngineId, PeerId

from .group import TaskGroup
from .runs import Constraint, Run, split_runs


class Slice(msgspec.Struct):
    """Tasks of one group on one engine, with contiguous ordinals.

    Attributes:
        group, start, n_tasks: which tasks; `start` is an index in the group.
        attempt: the attempt number of each.
        ordinal: the first one's number at this engine.
        cost_s: seconds that one is expected to take.
        constraint: under which they waited; None for direct tasks.
    """

    group: TaskGroup
    start: int
    n_tasks: int
    attempt: int
    ordinal: int
    cost_s: float
    constraint: Constraint | None

    @property
    def end_ordinal(self) -> int:
        """The ordinal after the last one."""
        return self.ordinal + self.n_tasks

    def part(self, ordinal: int, end: int) -> Slice:
        """Return the slice's tasks with ordinals ``ordinal … end-1``."""
        return Slice(
            self.group,
            self.start + ordinal - self.ordinal,
            end - ordinal,
            self.attempt,
            ordinal,
            self.cost_s,
            self.constraint,
        )


class EngineQueue:
    """One engine, as the scheduler sees it.

    Attributes:
        engine_id, peer: who it is.
        resources: what it has, such as ``{"gpu": 1.0}``.
        direct: runs of direct tasks that have not been sent to it yet, in order of arrival.
        n_direct: tasks in `direct`.
        n_tasks: tasks at the engine.
        n_bytes: payload bytes of these tasks.
        n_completed: tasks that it has answered.
        progress_at: when it last answered, or when it got work after having none.
        used_at: when it last got a task.
        is_away: it cannot be reached for now; it gets nothing, and gives nothing back.
        is_leaving: it is known to go, or to be gone; it gets nothing any more.
        is_stuck: it was asked for what waits behind its running task; it gets no balanced tasks
            until it has answered some.
        cancelled: ordinals, as ``(first, end)``, of tasks here that a client has taken back. Never
            changed in place.
        recall: first and last ordinal of the recall that it has not answered.
        recall_not_before: no recall until then: the last one brought nothing.
    """

    __slots__ = (
        "_cost_s",
        "_slices",
        "cancelled",
        "direct",
        "engine_id",
        "is_away",
        "is_leaving",
        "is_stuck",
        "n_bytes",
        "n_completed",
        "n_direct",
        "n_tasks",
        "next_ordinal",
        "peer",
        "progress_at",
        "recall",
        "recall_not_before",
        "resources",
        "used_at",
    )

    def __init__(
        self,
        engine_id: EngineId,
        peer: PeerId,
        now: float,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        self.engine_id = engine_id
        self.peer = peer
        self.resources: Mapping[str, float] = resources or {}
        self.direct: deque[Run] = deque()
        self.n_direct = 0
        self.n_tasks = 0
        self.n_completed = 0
        self.n_bytes = 0
        self.next_ordinal = 0
        self.progress_at = now
        self.used_at = now
        self.is_away = False
        self.is_leaving = False
        self.is_stuck = False
        self.cancelled: list[tuple[int, int]] = []
        self.recall: tuple[int, int] | None = None
        self.recall_not_before = now
        self._slices: deque[Slice] = deque()
        self._cost_s = 0.0

    def __repr__(self) -> str:
        return f"<EngineQueue {self.engine_id}: {self.n_tasks} tasks, {self.n_direct} waiting>"

    @property
    def slices(self) -> tuple[Slice, ...]:
        """The outstanding slices, oldest first."""
        return tuple(self._slices)

    @property
    def head(self) -> Slice | None:
        """The oldest outstanding slice; its first task is the one that runs, as far as is known."""
        return self._slices[0] if self._slices else None

    def silence_s(self, now: float) -> float:
        """Return for how long it has had work and has answered nothing; 0 without work."""
        return now - self.progress_at if self.n_tasks else 0.0

    def load_s(self, now: float) -> float:
        """Return the seconds that it is expected to need for what it has.

        A task that has run for a while is expected to run as long again, so an engine that hangs in
        one long task looks loaded, whatever the others of the kind took.
        """
        return max(self._cost_s, self.silence_s(now)) if self.n_tasks else 0.0

    def place(self, run: Run, cost_s: float, constraint: Constraint | None, now: float) -> Slice:
        """Add tasks behind all others and number them."""
        count = run.stop - run.start
        placed = Slice(
            run.group, run.start, count, run.attempt, self.next_ordinal, cost_s, constraint
        )
        if not self.n_tasks:
            self.progress_at = now
            self.cancelled = []
        self._slices.append(placed)
        self.next_ordinal += count
        self.n_tasks += count
        self._cost_s += count * cost_s
        self.n_bytes += count * run.group.task_bytes
        self.used_at = now
        return placed

    def adopt(self, piece: Slice) -> None:
        """Add tasks that it has had already, at their place."""
        slices = self._slices
        at = len(slices)
        while at and slices[at - 1].ordinal > piece.ordinal:
            at -= 1
        slices.insert(at, piece)
        self.next_ordinal = max(self.next_ordinal, piece.end_ordinal)
        self.n_tasks += piece.n_tasks
        self._cost_s += piece.n_tasks * piece.cost_s
        self.n_bytes += piece.n_tasks * piece.group.task_bytes

    def take(self, ordinal: int, count: int) -> list[Slice]:
        """Take out the tasks with ordinals ``ordinal … ordinal+count-1``, those that are there."""
        end = ordinal + count
        slices = self._slices
        taken = []
        if slices and slices[0].ordinal >= ordinal:
            # The usual case: answers come in order, so whatever is taken is at the front.
            while slices and slices[0].ordinal + slices[0].n_tasks <= end:
                taken.append(slices.popleft())
            if slices and slices[0].ordinal < end:
                head = slices[0]
                taken.append(head.part(head.ordinal, end))
                slices[0] = head.part(end, head.end_ordinal)
        else:
            kept: deque[Slice] = deque()
            for piece in slices:
                low = min(max(piece.ordinal, ordinal), piece.end_ordinal)
                high = max(min(piece.end_ordinal, end), low)
                if piece.ordinal < low:
                    kept.append(piece.part(piece.ordinal, low))
                if low < high:
                    taken.append(piece.part(low, high))
                if high < piece.end_ordinal:
                    kept.append(piece.part(high, piece.end_ordinal))
            self._slices = kept
        for piece in taken:
            self.n_tasks -= piece.n_tasks
            self._cost_s -= piece.n_tasks * piece.cost_s
            self.n_bytes -= piece.n_tasks * piece.group.task_bytes
        if not self.n_tasks:
            self._cost_s = 0.0  # sums of floats drift
        return taken

    def answer(self, ordinal: int, count: int, now: float) -> list[Slice]:
        """Take out tasks that the engine has answered."""
        taken = self.take(ordinal, count)
        if taken:
            self.progress_at = now
            self.is_stuck = False
            for piece in taken:
                self.n_completed += piece.n_tasks
        return taken

    def remove_direct(self, client: PeerId, first: int, end: int) -> list[Run]:
        """Take out the waiting direct tasks ``first … end-1`` of a client."""
        removed: list[Run] = []
        kept: deque[Run] = deque()
        for run in self.direct:
            if run.group.client == client:
                inside, outside = split_runs([run], first, end)
                removed += inside
                kept += outside
            else:
                kept.append(run)
        self.direct = kept
        self.n_direct -= sum(map(len, removed))
        return removed

    def last_recallable(self) -> tuple[int, int] | None:
        """Return first and last ordinal of the last block of balanced tasks behind the oldest
        task.
        """
        first = last = None
        for piece in reversed(self._slices):
            if piece.constraint is not None:
                last = piece.end_ordinal - 1 if last is None else last
                first = piece.ordinal
            elif last is not None:
                break
        if first is None or last is None:
            return None
        first = max(first, self._slices[0].ordinal + 1)
        return (first, last) if first <= last else None


__all__ = ["EngineQueue", "Slice"]
