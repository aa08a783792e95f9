"""Tasks that wait for an engine, in lanes, one set of lanes per client; clients take turns.

What lives here: `WaitingTasks`. What must not: decisions about engines' load.

A **lane** is what one client has waiting under one constraint. Of one client the lane with the
highest priority comes first, then the one with the oldest task. A lane that no engine there may run
is **dormant**: it is counted and can be asked about, and is not looked at when tasks are placed,
until an engine comes that may run it.

A million queued tasks are some hundred runs. Taking tasks from the front of a lane costs O(1),
putting some back or taking out any others O(log runs).
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ipyfleet_protocol.ids import PeerId

from .lane import Lane
from .runs import ANYWHERE, Constraint, Run, split_runs

if TYPE_CHECKING:
    from .engine_queue import EngineQueue
    from .tracker import Tracker


class _ClientLanes:
    """The lanes of one client, and those that are not dormant in the order of their keys."""

    __slots__ = ("all", "ready")

    def __init__(self) -> None:
        self.all: dict[Constraint, Lane] = {}
        self.ready: list[tuple[int, int, Lane]] = []

    def enter(self, lane: Lane) -> None:
        """Give a lane its place."""
        priority, first = -lane.constraint.priority, lane.head().first_seq
        lane.key = (priority, first)
        # No two lanes begin with the same task, so lanes themselves are never compared.
        insort(self.ready, (priority, first, lane))

    def leave(self, lane: Lane) -> None:
        """Take a lane out of its place."""
        if len(self.ready) == 1:
            self.ready.clear()
        else:
            del self.ready[bisect_left(self.ready, (*lane.key, lane))]

    def update(self, lane: Lane) -> None:
        """Give a lane whose first task may be another one its new place."""
        priority, first = lane.key
        head = lane.head()
        now_first = head.group.first + head.start
        if now_first == first:
            return
        if len(self.ready) == 1:
            lane.key = (priority, now_first)
            self.ready[0] = (priority, now_first, lane)
        else:
            self.leave(lane)
            self.enter(lane)


class WaitingTasks:
    """All balanced tasks that wait for an engine.

    Attributes:
        n_tasks: how many they are.
        n_dormant: how many of them no engine that is there may run.
    """

    __slots__ = ("_clients", "_is_usable", "n_dormant", "n_tasks")

    def __init__(self, is_usable: Callable[[Constraint], bool]) -> None:
        """Start empty.

        Args:
            is_usable: tells whether an engine is there that a constraint admits.
        """
        self._is_usable = is_usable
        # In the order of their turns: who was served goes to the end.
        self._clients: OrderedDict[PeerId, _ClientLanes] = OrderedDict()
        self.n_tasks = 0
        self.n_dormant = 0

    @property
    def n_ready(self) -> int:
        """How many tasks an engine that is there may run."""
        return self.n_tasks - self.n_dormant

    def push(self, run: Run, constraint: Constraint) -> None:
        """Let a run wait."""
        client = run.group.client
        lanes = self._clients.get(client)
        if lanes is None:
            lanes = self._clients[client] = _ClientLanes()
        count = run.stop - run.start
        self.n_tasks += count
        lane = lanes.all.get(constraint)
        if lane is None:
            lane = lanes.all[constraint] = Lane(constraint)
            lane.push(run)
            if constraint is ANYWHERE or constraint.is_free or self._is_usable(constraint):
                lanes.enter(lane)
            else:
                lane.is_dormant = True
        else:
            if lane.push(run) and not lane.is_dormant:
                lanes.update(lane)
        if lane.is_dormant:
            self.n_dormant += count

    def lanes_in_turn(self) -> Iterator[Lane]:
        """Yield the lanes that are not dormant, the client first whose turn it is, and of one
        client in the order of priorities and ages.
        """
        for lanes in self._clients.values():
            for _, _, lane in lanes.ready:
                yield lane

    def has_one_lane(self, client: PeerId) -> bool:
        """Whether all that a client has waiting is in one lane."""
        return len(self._clients[client].all) == 1

    def take(self, lane: Lane, count: int) -> Run:
        """Take tasks from a lane that is not dormant; the client goes to the end of the turn."""
        run = lane.take(count)
        client = run.group.client
        self.n_tasks -= run.stop - run.start
        if len(self._clients) > 1:
            self._clients.move_to_end(client)
        lanes = self._clients[client]
        if lane.n_tasks:
            lanes.update(lane)
        else:
            self._forget(client, lanes, lane)
        return run

    def remove(
        self, client: PeerId, first: int, end: int, due: float = math.inf
    ) -> list[tuple[Constraint, Run]]:
        """Take out a client's waiting tasks ``first … end-1``, of those whose deadline is not later
        than `due`.
        """
        removed: list[tuple[Constraint, Run]] = []
        lanes = self._clients.get(client)
        if lanes is None:
            return removed
        for lane in list(lanes.all.values()):
            part = lane.remove(first, end, due)
            self._note_removed(client, lanes, lane, part)
            removed += [(lane.constraint, run) for run in part]
        return removed

    def remove_where(
        self, is_wanted: Callable[[Lane], bool], is_run_wanted: Callable[[Run], bool] | None = None
    ) -> list[tuple[Constraint, Run]]:
        """Take out lanes for which a condition holds; of these, all runs or those for which another
        one does. O(lanes + runs in those lanes).
        """
        removed: list[tuple[Constraint, Run]] = []
        for client, lanes in list(self._clients.items()):
            for lane in list(lanes.all.values()):
                if not is_wanted(lane):
                    continue
                for run in list(lane.runs()):
                    if is_run_wanted is not None and not is_run_wanted(run):
                        continue
                    part = lane.remove(run.first_seq, run.group.seq(run.stop))
                    self._note_removed(client, lanes, lane, part)
                    removed += [(lane.constraint, each) for each in part]
        return removed

    def all_lanes(self) -> list[Lane]:
        """Return all lanes."""
        return [lane for lanes in self._clients.values() for lane in lanes.all.values()]

    # -- who may run them ---------------------------------------------------------------------

    def note_engine_joined(self, engine: EngineQueue) -> None:
        """Wake the lanes that a new engine may run."""
        if self.n_dormant:
            self._wake(lambda lane: lane.constraint.admits(engine))

    def note_places(self, tracker: Tracker) -> None:
        """Wake the lanes that follow a dependency that has got places, if they may run now."""
        if self.n_dormant:
            self._wake(
                lambda lane: lane.constraint.follow is tracker and self._is_usable(lane.constraint)
            )

    def note_engine_gone(self) -> None:
        """Let the lanes sleep that no engine may run any more."""
        for lanes in self._clients.values():
            for lane in lanes.all.values():
                constraint = lane.constraint
                if lane.is_dormant or constraint.is_free or self._is_usable(constraint):
                    continue
                lanes.leave(lane)
                lane.is_dormant = True
                self.n_dormant += lane.n_tasks

    def _wake(self, condition: Callable[[Lane], bool]) -> None:
        for lanes in self._clients.values():
            for lane in lanes.all.values():
                if lane.is_dormant and condition(lane):
                    lane.is_dormant = False
                    self.n_dormant -= lane.n_tasks
                    lanes.enter(lane)

    def _note_removed(
        self, client: PeerId, lanes: _ClientLanes, lane: Lane, removed: list[Run]
    ) -> None:
        count = sum(map(len, removed))
        self.n_tasks -= count
        if lane.is_dormant:
            self.n_dormant -= count
        if not lane.n_tasks:
            self._forget(client, lanes, lane)
        elif count and not lane.is_dormant:
            lanes.update(lane)

    def _forget(self, client: PeerId, lanes: _ClientLanes, lane: Lane) -> None:
        """Forget a lane that is empty."""
        if not lane.is_dormant:
            lanes.leave(lane)
        del lanes.all[lane.constraint]
        if not lanes.all:
            del self._clients[client]


__all__ = ["ANYWHERE", "Constraint", "Lane", "Run", "WaitingTasks", "split_runs"]
