"""Which tasks go to which engine now.

What lives here: `Placer`. Direct tasks go first and at once, as far as bytes allow. Balanced
tasks are handed out in rounds: in the order of the scheme each engine gets a slice, at most its
share of what waits and at most what `prefetch` allows, until nothing waits or nobody has room.
"""

from __future__ import annotations

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.messages import TaskSlice

from .engine_queue import EngineQueue, Slice
from .group import State
from .instructions import SendTasks
from .lane import Lane
from .runs import ANYWHERE, Constraint, Run
from .schemes import Scheme
from .state import SchedulerState

HELD_MAX_BYTES = 64 << 20
"""Payload bytes at one engine above which it gets no more until it has answered some."""

DIRECT_MAX_TASKS = 10_000
"""Direct tasks at one engine above which further ones wait here."""


class Placer:
    """Hands out tasks.

    Attributes:
        sent: by engine what has been placed and not been returned yet, by `place` or `take_sent`.
    """

    def __init__(self, state: SchedulerState, scheme: Scheme) -> None:
        self._state = state
        self._scheme = scheme
        self.sent: dict[EngineQueue, list[Slice]] = {}

    def place(self, now: float) -> list[SendTasks]:
        """Place what can be placed; at most one instruction per engine."""
        state = self._state
        if state.direct:
            for engine in list(state.direct):
                self._place_direct(engine, now)
        if state.open and state.waiting.n_ready:
            self._place_balanced(now)
        return self.take_sent()

    def take_sent(self) -> list[SendTasks]:
        """Return what sends the tasks that have been placed."""
        sent = self.sent
        if not sent:
            return []
        self.sent = {}
        out = []
        for engine, slices in sent.items():
            out.append(self._send(engine, slices))
        return out

    # Fast paths: what `place` would do with a task that finds its engine idle, while it is let in.
    # There is no lane that is made and dropped, there are no shares and rounds (27 Python calls of
    # its round trip), and no second event (13).

    def place_lone(self, run: Run, now: float) -> bool:
        """Place a task that any engine may run, if nothing else waits and an engine has nothing."""
        state = self._state
        if state.waiting.n_tasks or not state.open:
            return False
        engine = self._scheme.rank(state.open, now)[0]
        if engine.n_tasks:
            return False
        self._place(engine, run, ANYWHERE, now)
        return True

    def place_lone_direct(self, engine: EngineQueue, run: Run, now: float) -> bool:
        """Place a task that one engine may run, if that has nothing and can be reached."""
        if engine.n_tasks or engine.direct or engine.is_away:
            return False
        self._place(engine, run, None, now)
        return True

    def _place_direct(self, engine: EngineQueue, now: float) -> None:
        while engine.direct and not engine.is_leaving and not engine.is_away:
            run = engine.direct[0]
            count = min(len(run), DIRECT_MAX_TASKS - engine.n_tasks)
            if run.group.task_bytes:
                left_bytes = HELD_MAX_BYTES - engine.n_bytes
                count = min(count, max(left_bytes // run.group.task_bytes, not engine.n_tasks))
            if count <= 0:
                return
            if count == len(run):
                engine.direct.popleft()
                part = run
            else:
                part = Run(run.group, run.start, run.start + count, run.attempt)
                run.start += count
            engine.n_direct -= count
            self._place(engine, part, None, now)
        if not engine.direct:
            self._state.direct.discard(engine)

    def _place_balanced(self, now: float) -> None:
        state = self._state
        ranked = self._scheme.rank(state.open, now)
        if len(ranked) == 1:
            [engine] = ranked
            while state.waiting.n_ready and self._place_share(engine, state.waiting.n_ready, now):
                pass
            return
        while ranked and state.waiting.n_ready:
            # Fill up to an equal level, so that work taken back from one engine does not return
            # to it.
            n_tasks = state.waiting.n_ready + sum(engine.n_tasks for engine in ranked)
            level = -(-n_tasks // len(ranked))
            ranked = [
                engine
                for engine in ranked
                if engine.n_tasks >= level or self._place_share(engine, level - engine.n_tasks, now)
            ]

    def _place_share(self, engine: EngineQueue, share: int, now: float) -> bool:
        """Give an engine up to `share` tasks; False if it can have no more for now."""
        state = self._state
        for lane in state.waiting.lanes_in_turn():
            constraint = lane.constraint
            if constraint is not ANYWHERE and not state.may_run(constraint, engine):
                continue
            count = min(share, self._room(engine, lane, now))
            if count > 0:
                self._place_from(lane, count, engine, now)
                return True
            # It is full for the task whose turn it is. It gets no others until it has room for
            # that: a client whose tasks it knows would be served for ever before one that is new.
            state.open.discard(engine)
            return False
        # An engine that no waiting task may use stays open for the tasks to come.
        return False

    def _place_from(self, lane: Lane, count: int, engine: EngineQueue, now: float) -> None:
        """Place the first `count` tasks of a lane, or fewer if they are of more than one kind.

        They are often of many groups, one for each call: going on here saves a round for each.
        """
        state = self._state
        estimate = state.estimates.of(lane.head().group)
        while True:
            run = state.waiting.take(lane, count)
            self._place(engine, run, lane.constraint, now)
            count -= run.stop - run.start
            if not count or not lane.n_tasks or not state.waiting.has_one_lane(run.group.client):
                return
            following = lane.head()
            n_bytes = min(count, len(following)) * following.group.task_bytes
            if (
                state.estimates.of(following.group) is not estimate
                or engine.n_bytes + n_bytes > HELD_MAX_BYTES
            ):
                return

    def _room(self, engine: EngineQueue, lane: Lane, now: float) -> int:
        if engine.is_stuck and engine.n_tasks:
            return 0
        group = lane.head().group
        room = self._state.estimates.of(group).room(engine.n_tasks, engine.load_s(now))
        if self._state.hwm:
            room = min(room, self._state.hwm - engine.n_tasks)
        if group.task_bytes and room > 0:
            left_bytes = HELD_MAX_BYTES - engine.n_bytes
            room = min(room, max(left_bytes // group.task_bytes, not engine.n_tasks))
        return room

    def _place(
        self, engine: EngineQueue, run: Run, constraint: Constraint | None, now: float
    ) -> None:
        state, group = self._state, run.group
        group.move(run.start, run.stop, State.QUEUED, State.PLACED)
        estimate = group.estimate or state.estimates.of(group)
        piece = engine.place(run, estimate.cost_s, constraint, now)
        if engine.n_tasks > 1:
            state.stealable.add(engine)
        first, count = group.first + run.start, run.stop - run.start
        state.story.note(now, group.client, first, count, "placed at engine ", engine.engine_id)
        sent = self.sent
        if engine in sent:
            sent[engine].append(piece)
        else:
            sent[engine] = [piece]

    def _send(self, engine: EngineQueue, slices: list[Slice]) -> SendTasks:
        pieces = []
        frames: list[Frame] = []
        for piece in slices:
            group = piece.group
            options, function = group.options, group.function
            if function is not None:
                function, body = self._state.functions.attach(engine.engine_id, function)
                frames += body
            columns, part = group.part(piece.start, piece.start + piece.n_tasks)
            frames += part
            pieces.append(
                TaskSlice(
                    client=group.client,
                    first=group.first + piece.start,
                    count=piece.n_tasks,
                    attempt=piece.attempt,
                    ordinal=piece.ordinal,
                    method=options.method,
                    silent=options.silent,
                    shared=options.shared,
                    host=options.host,
                    function=function,
                    columns=columns,
                    balanced=options.placement == "balanced",
                )
            )
        return SendTasks(engine.peer, pieces, frames)


__all__ = ["DIRECT_MAX_TASKS", "HELD_MAX_BYTES", "Placer"]
