"""How far a dependency is, and how the ends of tasks reach those that wait for them.

What lives here: `Tracker` (one dependency; groups that wait for the same one share it) and
`Watches` (which trackers want to know of which tasks of one group). What must not: the groups that
wait; those are `dependencies`'.

Only groups that somebody waits for have watches: all others pay one test for None per message of
results.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import Dependency

from .group import State

if TYPE_CHECKING:
    from .dependencies import Blocked

NOWHERE = EngineId(-1)
"""Where a task ended that ended without an engine."""

UNSURE = EngineId(-2)
"""Where a task ended that its client does not submit again to a controller that was started anew.
The records may know better, also how it ended."""

Key: TypeAlias = tuple[tuple[tuple[bytes, int, int], ...], bool, bool, bool]


def key_of(dependency: Dependency) -> Key:
    """Return what is equal for equal dependencies."""
    tasks = tuple((piece.client, piece.first, piece.count) for piece in dependency.tasks)
    return tasks, dependency.all, dependency.success, dependency.failure


class Tracker:
    """One dependency.

    Attributes:
        key: `key_of` it.
        all: whether all tasks have to end as wanted, or one.
        n_tasks: how many tasks it names.
        n_left: how many of them have not ended.
        n_wanted: how many have ended as wanted.
        engines: where these ran.
        n_nowhere: how many of these ran nowhere, or where nobody knows.
        is_unsure: of some nobody knows where they ran.
        culprit: the first task that ended otherwise, and how.
        is_followed: some wait to run where its tasks ran.
        waiters: groups that wait for it, in the order in which they came.
    """

    __slots__ = (
        "all",
        "culprit",
        "engines",
        "is_followed",
        "is_unsure",
        "key",
        "n_left",
        "n_nowhere",
        "n_tasks",
        "n_wanted",
        "waiters",
        "wanted",
    )

    def __init__(self, dependency: Dependency) -> None:
        self.key = key_of(dependency)
        self.all = dependency.all
        self.n_tasks = self.n_left = sum(piece.count for piece in dependency.tasks)
        self.n_wanted = 0
        self.n_nowhere = 0
        self.engines: set[EngineId] = set()
        self.culprit: tuple[PeerId, int, State] | None = None
        self.is_followed = False
        self.is_unsure = False
        self.waiters: dict[Blocked, None] = {}
        self.wanted = bytes(
            [State.OK] * dependency.success + [State.FAILED, State.ABORTED] * dependency.failure
        )

    @property
    def is_met(self) -> bool:
        """Whether as many tasks as have to have ended as wanted."""
        return self.n_wanted == self.n_tasks if self.all else self.n_wanted > 0

    @property
    def is_missed(self) -> bool:
        """Whether it can never be met."""
        n_unwanted = self.n_tasks - self.n_left - self.n_wanted
        return n_unwanted > 0 if self.all else n_unwanted == self.n_tasks

    @property
    def is_placeless(self) -> bool:
        """Whether there can be no engine to follow its tasks to."""
        if self.all and len(self.engines) + bool(self.n_nowhere) > 1:
            return True
        return self.is_missed or (not self.n_left and not self.engines)

    @property
    def is_decided(self) -> bool:
        """Whether those that wait for it may be told something."""
        return self.is_met or self.is_missed or (self.is_followed and self.is_placeless)

    def note(self, client: PeerId, first: int, states: bytes | bytearray, engine: EngineId) -> None:
        """Take in how tasks ``first …`` of a client ended; all of them at one engine."""
        n_wanted = sum(map(states.count, self.wanted))
        self.n_left -= len(states)
        self.n_wanted += n_wanted
        if n_wanted and engine < 0:
            self.n_nowhere += n_wanted
            self.is_unsure = self.is_unsure or engine == UNSURE
        elif n_wanted:
            self.engines.add(engine)
        if n_wanted < len(states) and self.culprit is None:
            index = next(i for i, state in enumerate(states) if state not in self.wanted)
            self.culprit = (client, first + index, State(states[index]))


class Watches:
    """Who waits for tasks of one group."""

    __slots__ = ("_points", "_ranges")

    def __init__(self) -> None:
        self._points: dict[int, list[Tracker]] = {}
        self._ranges: list[tuple[int, int, Tracker]] = []

    def add(self, start: int, stop: int, tracker: Tracker) -> None:
        """Have a tracker told of the ends of tasks ``start … stop-1`` of the group."""
        if stop - start == 1:
            self._points.setdefault(start, []).append(tracker)
        else:
            self._ranges.append((start, stop, tracker))

    def tell(
        self,
        client: PeerId,
        first: int,
        states: bytes | bytearray,
        start: int,
        stop: int,
        engine: EngineId,
    ) -> list[Tracker]:
        """Tell of the ends of tasks ``start … stop-1``; return who was told.

        Args:
            client, first: of the group.
            states: of all tasks of the group.
            start, stop: which have ended just now, all of them at `engine`.
            engine: `NOWHERE` for none.
        """
        told: list[Tracker] = []
        if self._points:
            for index in range(start, stop):
                for tracker in self._points.pop(index, ()):
                    tracker.note(client, first + index, states[index : index + 1], engine)
                    told.append(tracker)
        for low, high, tracker in self._ranges:
            low, high = max(low, start), min(high, stop)
            if low < high:
                tracker.note(client, first + low, states[low:high], engine)
                told.append(tracker)
        return told


__all__ = ["NOWHERE", "UNSURE", "Key", "Tracker", "Watches", "key_of"]
