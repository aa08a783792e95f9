"""The scheduler: which task runs where, as a pure state machine.

What lives here: `SchedulerCore` with its one door, `handle`. What must not: sockets, clocks,
threads, randomness. Time is an argument (`now`, seconds of a clock that only grows).

Theory of operation
-------------------
Groups come in with `SubmitEvent` and are cut into runs. A run of balanced tasks waits in `waiting`
until `PlaceEvent` hands (parts of) it to engines; a run of direct tasks waits at its engine.
`ResultsEvent` ends tasks, or makes them wait again when they have attempts left. `EngineLostEvent`
is the one place where an engine's death is dealt with. Nothing here costs time in proportion to
the number of waiting tasks.

Each event is handled by the method in `_HANDLERS`, which returns instructions; no handler calls
another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar

from ipyfleet_protocol.columns import read_float64
from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import FAILED, ErrorInfo, Group, Options, ResultSlice

from . import events as ev
from .cancelling import Canceller, cancelled_error, final_status, split_cancelled
from .endings import keep_parts, own_error
from .engine_queue import EngineQueue, Slice
from .group import GroupIndex, IllegalTransition, State, TaskGroup
from .instructions import DeliverResults, Instruction, RecordGroup, Refuse, WakeAt
from .merging import merge_groups
from .placing import Placer
from .resuming import Resumer
from .schemes import Scheme, load_scheme
from .state import SchedulerState
from .stealing import BACKOFF_S, Stealer
from .waiting import ANYWHERE, Constraint, Run

ORPHANED_S = 5.0
"""How long balanced tasks wait for a new engine after the last one was lost."""


class SchedulerCore:
    """Places tasks at engines and sees that each ends exactly once."""

    def __init__(self, *, hwm: int = 0, scheme: Scheme | None = None) -> None:
        """Start with no engines and no tasks.

        Args:
            hwm: tasks that an engine may hold at most, 0 for "about 10 ms of work".
            scheme: ranks engines; default `leastload`.
        """
        self.state = SchedulerState(hwm)
        self._placer = Placer(self.state, scheme or load_scheme("leastload"))
        self._stealer = Stealer(self.state)
        self._canceller = Canceller(self.state)
        self._resumer = Resumer(self.state)
        self._orphaned_until: float | None = None
        self._last_loss = ""

    def handle(self, event: ev.SchedulerEvent, now: float) -> list[Instruction]:
        """Take in one event and return what is to be done.

        Raises:
            IllegalTransition: a bug; the message tells the story of the tasks concerned.
        """
        return self._HANDLERS[type(event)](self, event, now)

    def story(self, client: PeerId, seq: int) -> list[str]:
        """Return what is remembered of one task's way, oldest first, then where it is now."""
        steps = self.state.story.tell(client, seq)
        index = self.state.groups.get(client)
        for group in index.overlapping(seq, seq + 1) if index else ():
            steps.append(f"now {State(group.states[seq - group.first]).name}")
        return steps

    # -- engines ------------------------------------------------------------------------------

    def _handle_engine_joined(self, event: ev.EngineJoinedEvent, now: float) -> list[Instruction]:
        engine = EngineQueue(event.engine_id, event.peer, now)
        self.state.engines[event.engine_id] = engine
        self.state.open.add(engine)
        self._orphaned_until = None
        return []

    def _handle_engine_leaving(self, event: ev.EngineLeavingEvent, now: float) -> list[Instruction]:
        engine = self.state.engines.get(event.engine_id)
        if engine is not None:
            engine.is_leaving = True
            self.state.open.discard(engine)
            self.state.stealable.discard(engine)
        return []

    def _handle_engine_away(self, event: ev.EngineAwayEvent, now: float) -> list[Instruction]:
        self._resumer.note_away(event.engine_id)
        return []

    def _handle_engine_back(self, event: ev.EngineBackEvent, now: float) -> list[Instruction]:
        self._resumer.note_back(event.engine_id, now)
        return []

    def _handle_engine_lost(self, event: ev.EngineLostEvent, now: float) -> list[Instruction]:
        state = self.state
        engine = state.engines.pop(event.engine_id, None)
        if engine is None:
            return []
        for engines in (state.open, state.stealable, state.direct):
            engines.discard(engine)
        state.functions.drop_engine(event.engine_id)
        self._last_loss = f"engine {event.engine_id} died: {event.reason}"

        failed: list[tuple[Run, ErrorInfo]] = []
        running = event.running
        if running < 0 and engine.head is not None:
            running = engine.head.ordinal
        pieces = [
            (piece, is_cancelled)
            for whole in engine.take(0, engine.next_ordinal)
            for part, is_cancelled in split_cancelled(engine.cancelled, whole)
            for piece in _cut_out(part, running)
        ]
        for piece, is_cancelled in pieces:
            run = Run(piece.group, piece.start, piece.start + piece.n_tasks, piece.attempt)
            ran = piece.ordinal == running
            if is_cancelled:
                failed.append((run, cancelled_error(event.engine_id, event.reason)))
            elif piece.constraint is None or (ran and not _has_attempts_left(run)):
                failed.append((run, _engine_error(engine, event.reason, run.group)))
            elif ran:
                run.attempt += 1
                avoid = piece.constraint.avoid | {event.engine_id}
                state.wait_again(run, piece.constraint._replace(avoid=avoid))
            else:
                state.wait_again(run, piece.constraint)
        out: list[Instruction] = [*state.end(failed, State.PLACED, now)]

        stranded = [(run, _engine_error(engine, event.reason, run.group)) for run in engine.direct]
        for constraint, run in state.waiting.remove_where_impossible(state.live_ids()):
            stranded.append((run, self._no_target_left(constraint, run.group)))
        out += state.end(stranded, State.QUEUED, now)
        if not state.engines:
            self._orphaned_until = now + ORPHANED_S
            out.append(WakeAt(self._orphaned_until))
        return out

    # -- clients ------------------------------------------------------------------------------

    def _handle_client_left(self, event: ev.ClientLeftEvent, now: float) -> list[Instruction]:
        self.state.functions.drop_client(event.client)
        return []

    def _handle_submit(self, event: ev.SubmitEvent, now: float) -> list[Instruction]:
        index = self.state.groups.get(event.client)
        if index is None:
            index = self.state.groups[event.client] = GroupIndex()
        out: list[Instruction] = []
        endings: list[tuple[Run, ErrorInfo]] = []
        for group, frames in merge_groups(event.groups, event.frames):
            if group.first < index.next_seq:
                reason = f"tasks {group.first} … are submitted after {index.next_seq - 1}"
                out.append(Refuse(event.client, reason))
                continue
            tasks = TaskGroup(event.client, group, frames.payload)
            index.add(tasks)
            out.append(RecordGroup(tasks))
            self.state.story.note(now, event.client, group.first, group.count, "submitted")
            endings += self._admit(tasks, group, frames.function)
        if endings:
            out += self.state.end(endings, State.QUEUED, now)
        return out

    def _admit(
        self, tasks: TaskGroup, group: Group, body: Sequence[Any]
    ) -> list[tuple[Run, ErrorInfo]]:
        """Let a new group's tasks wait; return those that cannot run."""
        options = group.options
        if tasks.function is not None and not self.state.functions.acquire(
            tasks.client, tasks.function, body
        ):
            error = own_error("KernelError", "the function's body is not known to the controller")
            tasks.function = None
            return [(Run(tasks, 0, tasks.count), error)]
        if options.placement == "direct":
            return self._admit_direct(tasks, options.targets or [])
        if not self.state.engines and self._orphaned_until is None:
            return [(Run(tasks, 0, tasks.count), own_error("NoEnginesRegistered"))]
        constraint = ANYWHERE
        if options.targets is not None:
            constraint = _targets(options)
            if not self.state.live_ids().intersection(options.targets):
                return [(Run(tasks, 0, tasks.count), self._no_target_left(constraint, tasks))]
        self.state.waiting.push(Run(tasks, 0, tasks.count), constraint)
        return []

    def _admit_direct(
        self, tasks: TaskGroup, targets: Sequence[int]
    ) -> list[tuple[Run, ErrorInfo]]:
        impossible = []
        start = 0
        while start < len(targets):
            target = targets[start]
            stop = start + 1
            while stop < len(targets) and targets[stop] == target:
                stop += 1
            run = Run(tasks, start, stop)
            engine = self.state.engines.get(EngineId(target))
            if engine is None or engine.is_leaving:
                impossible.append((run, self._no_such_engine(target, tasks)))
            else:
                engine.direct.append(run)
                engine.n_direct += len(run)
                self.state.direct.add(engine)
            start = stop
        return impossible

    def _handle_cancel(self, event: ev.CancelEvent, now: float) -> list[Instruction]:
        return self._canceller.cancel(event, now)

    # -- results ------------------------------------------------------------------------------

    def _handle_results(self, event: ev.ResultsEvent, now: float) -> list[Instruction]:
        engine = self.state.engines.get(event.engine_id)
        message = event.message
        if engine is None:
            return []
        kept: list[tuple[int, int, int]] = []
        n_all = n_kept = 0
        out: list[Instruction] = []
        for number, piece in enumerate(message.slices):
            n_all += piece.count
            for part in engine.answer(piece.ordinal, piece.count, now):
                offset = part.ordinal - piece.ordinal
                group = part.group
                if message.client != group.client or piece.first + offset != group.seq(part.start):
                    # The engine is wrong about what it ran. Its word is worth nothing for these
                    # tasks.
                    run = Run(group, part.start, part.start + part.n_tasks, part.attempt)
                    error = _engine_error(engine, "it answered for another task", group)
                    out += self.state.end([(run, error)], State.PLACED, now)
                    continue
                for start, stop in self._settle(engine, part, piece, offset, now):
                    kept.append((number, start, stop))
                    n_kept += stop - start
        self.state.note_engine(engine)
        if n_kept == n_all:
            out.append(DeliverResults(message, event.frames, untouched=True))
        elif kept:
            out.append(DeliverResults(*keep_parts(message, event.frames, kept)))
        return out

    def _settle(
        self, engine: EngineQueue, part: Slice, piece: ResultSlice, offset: int, now: float
    ) -> list[tuple[int, int]]:
        """End the tasks of a slice, or let them run again; return what the client is to see of
        `piece`.
        """
        group, count = part.group, part.n_tasks
        status, started, completed = piece.status, piece.started, piece.completed
        if count != piece.count:
            end = offset + count
            status = status[offset:end]
            started, completed = started[8 * offset : 8 * end], completed[8 * offset : 8 * end]
        total_s = sum(read_float64(completed)) - sum(read_float64(started))
        self.state.estimates.of(group).learn(count, total_s)
        if part.attempt < group.options.retries and FAILED in status:
            return self._settle_some(engine, part, status, offset, now)
        group.finish(part.start, part.start + count, status)
        self.state.story.note(
            now, group.client, group.seq(part.start), count, f"ended at engine {engine.engine_id}"
        )
        self.state.note_ended(group)
        return [(offset, offset + count)]

    def _settle_some(
        self, engine: EngineQueue, part: Slice, status: bytes, offset: int, now: float
    ) -> list[tuple[int, int]]:
        """As `_settle`, where some tasks failed and have attempts left."""
        group, client = part.group, part.group.client
        kept = []
        again = final_status(engine.cancelled, part, status)
        for start, stop in _stretches(again):
            low, high = part.start + start, part.start + stop
            if again[start] == FAILED and part.constraint is not None:
                avoid = part.constraint.avoid | {engine.engine_id}
                self.state.wait_again(
                    Run(group, low, high, part.attempt + 1), part.constraint._replace(avoid=avoid)
                )
                what = f"failed at engine {engine.engine_id}, attempt {part.attempt + 1} follows"
            else:
                group.finish(low, high, status[start:stop])
                kept.append((offset + start, offset + stop))
                what = f"ended at engine {engine.engine_id}"
            self.state.story.note(now, client, group.seq(low), high - low, what)
        self.state.note_ended(group)
        return kept

    def _handle_recalled(self, event: ev.RecalledEvent, now: float) -> list[Instruction]:
        engine = self.state.engines.get(event.engine_id)
        if engine is None or engine.recall is None:
            return []
        first, last = max(event.first, engine.recall[0]), min(event.last, engine.recall[1])
        engine.recall = None
        taken = engine.take(first, last - first + 1) if first <= last else []
        cancelled: list[tuple[Run, ErrorInfo]] = []
        for piece, is_cancelled in (
            each for whole in taken for each in split_cancelled(engine.cancelled, whole)
        ):
            run = Run(piece.group, piece.start, piece.start + piece.n_tasks, piece.attempt)
            if is_cancelled:
                cancelled.append((run, cancelled_error(engine.engine_id, "gave it back")))
                continue
            if piece.constraint is None:
                raise IllegalTransition(f"direct tasks were recalled: {run!r}")
            self.state.wait_again(run, piece.constraint)
            self.state.story.note(
                now, run.group.client, run.first_seq, len(run), f"recalled from {event.engine_id}"
            )
        if not taken:
            engine.recall_not_before = now + BACKOFF_S
        self.state.note_engine(engine)
        return [*self.state.end(cancelled, State.PLACED, now)]

    # -- time ---------------------------------------------------------------------------------

    def _handle_place(self, event: ev.PlaceEvent, now: float) -> list[Instruction]:
        return [*self._placer.place(now), *self._stealer.recall(now)]

    def _handle_tick(self, event: ev.TickEvent, now: float) -> list[Instruction]:
        out = self._canceller.insist(now)
        if self._orphaned_until is None or now < self._orphaned_until:
            return out
        self._orphaned_until = None
        error = own_error(
            "NoEnginesRegistered", f"no engine is left, and none came back; {self._last_loss}"
        )
        endings = [(run, error) for _, run in self.state.waiting.remove_all()]
        return [*out, *self.state.end(endings, State.QUEUED, now)]

    # -- errors -------------------------------------------------------------------------------

    def _no_such_engine(self, target: int, tasks: TaskGroup) -> ErrorInfo:
        ids = sorted(self.state.live_ids())
        there = f"the engines are {', '.join(map(str, ids))}" if ids else "there are no engines"
        return own_error(
            "EngineError",
            f"there is no engine {target}: it is gone or never was; {there}",
            engine_id=target,
            method=tasks.options.method,
        )

    def _no_target_left(self, constraint: Constraint, tasks: TaskGroup) -> ErrorInfo:
        targets = ", ".join(map(str, sorted(constraint.targets or ())))
        reason = f"; {self._last_loss}" if self._last_loss else ""
        return own_error(
            "EngineError",
            f"no engine is left that may run the task, its targets are {targets}{reason}",
            method=tasks.options.method,
        )

    _HANDLERS: ClassVar[dict[type, Callable[[Any, Any, float], list[Instruction]]]] = {
        ev.EngineJoinedEvent: _handle_engine_joined,
        ev.EngineLeavingEvent: _handle_engine_leaving,
        ev.EngineAwayEvent: _handle_engine_away,
        ev.EngineBackEvent: _handle_engine_back,
        ev.EngineLostEvent: _handle_engine_lost,
        ev.ClientLeftEvent: _handle_client_left,
        ev.SubmitEvent: _handle_submit,
        ev.CancelEvent: _handle_cancel,
        ev.ResultsEvent: _handle_results,
        ev.RecalledEvent: _handle_recalled,
        ev.PlaceEvent: _handle_place,
        ev.TickEvent: _handle_tick,
    }


def _targets(options: Options) -> Constraint:
    return Constraint(frozenset(EngineId(target) for target in options.targets or ()))


def _has_attempts_left(run: Run) -> bool:
    return run.attempt < run.group.options.retries


def _engine_error(engine: EngineQueue, reason: str, group: TaskGroup) -> ErrorInfo:
    return own_error(
        "EngineError",
        f"engine {engine.engine_id}: {reason}",
        engine_id=engine.engine_id,
        uuid=engine.peer.hex(),
        method=group.options.method,
    )


def _cut_out(piece: Slice, ordinal: int) -> list[Slice]:
    """Return a slice in up to three parts, so that the task with this ordinal is by itself."""
    if not piece.ordinal <= ordinal < piece.end_ordinal:
        return [piece]
    cuts = (piece.ordinal, ordinal, ordinal + 1, piece.end_ordinal)
    return [piece.part(a, b) for a, b in pairwise(cuts) if a < b]


def _stretches(status: bytes) -> list[tuple[int, int]]:
    """Return start and stop of the stretches of equal bytes."""
    out = []
    start = 0
    for position in range(1, len(status) + 1):
        if position == len(status) or status[position] != status[start]:
            out.append((start, position))
            start = position
    return out


__all__ = ["ORPHANED_S", "SchedulerCore"]
