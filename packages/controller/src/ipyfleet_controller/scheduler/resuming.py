"""Engines that are away, and what is put together again after the controller was started anew.

What lives here: `Resumer`. What must not: decisions about where tasks run.

An engine that is away keeps its tasks, and gets none. Nothing is taken back from it either: it
could not say whether it has begun them.

Theory of operation
-------------------
A controller that takes the place of one that died knows nothing of tasks. Clients submit again
what has not ended; engines **claim** what they hold (`HeldTasks`). While the hub gathers both,
nothing is placed, and what comes in is kept. Then submissions are let in as ever, in an order in
which each finds the tasks that it depends on, and each claim takes its tasks out of where they
wait, to the engine that has them. So neither a task is lost that only its client knows, nor run
twice that an engine has.

Some claims find no tasks, since their client is not back, or left before. Such tasks become a
`ClaimedGroup`, without options and payloads, which is dissolved if the client submits them after
all. A client that has submitted all it has, ends its tasks that it did not submit: whoever claims
these drops them. Where two engines claim a task, the later attempt counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from ipyfleet_protocol.codec import SliceFrames
from ipyfleet_protocol.columns import uint32_column
from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import (
    Columns,
    Dependency,
    EndedRange,
    Group,
    Options,
    PlacedRange,
)

from . import events as ev
from .admitting import Admission, constraint_of
from .cancelling import Canceller
from .departing import PATIENCE_S
from .dependencies import Dependencies
from .ended import with_gaps
from .engine_queue import EngineQueue, Slice
from .group import STATE_OF_STATUS, STATUS_OF_STATE, GroupIndex, State, TaskGroup
from .instructions import Instruction, SendDrop, WakeAt
from .prefetch import Estimate
from .runs import Constraint, Run
from .state import SchedulerState
from .tracker import UNSURE

# What `Group.ended` says of tasks that have.
_ENDED_MARKS = tuple(1 + status for status in STATE_OF_STATUS)

_Drops = dict[tuple[EngineId, PeerId], list[PlacedRange]]


class ClaimedGroup(TaskGroup):
    """Tasks that an engine has, and of which nobody has said more."""

    __slots__ = ()

    def __init__(self, client: PeerId, first: int, count: int) -> None:
        options = Options(placement="direct", shared=True)
        columns = Columns(sizes=uint32_column([0]))
        super().__init__(client, Group(first, count, options, None, columns), [b""])
        self.estimate = Estimate()


class Resumer:
    """Puts the state together again.

    Attributes:
        is_gathering: what comes is kept for `gathered`, and nothing is to be placed.
    """

    def __init__(
        self,
        state: SchedulerState,
        admission: Admission,
        canceller: Canceller,
        dependencies: Dependencies,
    ) -> None:
        self.is_gathering = False
        self._state = state
        self._admission = admission
        self._canceller = canceller
        self._dependencies = dependencies
        self._kept: list[ev.SubmitEvent | ev.CancelEvent | ev.EngineHoldsEvent] = []
        self._complete: set[PeerId] = set()
        self._missing: set[PeerId] = set()
        self._detached: dict[PeerId, ev.SubmitEvent] = {}
        # Clients whose submissions wait for those of missing ones, on which they depend.
        self._behind: set[PeerId] = set()
        self._claimed: dict[PeerId, list[ClaimedGroup]] = {}
        self._ended: dict[PeerId, list[tuple[int, int, State]]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nothing of an earlier run of the controller is left to be put together."""
        return not (
            self.is_gathering
            or self._kept
            or self._missing
            or self._detached
            or self._behind
            or self._claimed
            or self._ended
        )

    # -- engines that are away ----------------------------------------------------------------

    def note_away(self, engine_id: EngineId) -> None:
        """Place nothing at an engine for now."""
        engine = self._state.engines.get(engine_id)
        if engine is not None:
            engine.is_away = True
            self._state.open.discard(engine)
            self._state.stealable.discard(engine)

    def note_back(self, engine_id: EngineId, now: float) -> None:
        """Let an engine have tasks again."""
        engine = self._state.engines.get(engine_id)
        if engine is None or not engine.is_away:
            return
        engine.is_away = False
        # Silence while it was away says nothing of its task.
        engine.progress_at = now
        self._note_more(engine)

    def note_lost(self, engine_id: EngineId, now: float) -> list[Instruction]:
        """Forget what only a lost engine knew of; its client may still submit it."""
        engine = self._state.engines.get(engine_id)
        if engine is None or not self._claimed:
            return []
        drops: _Drops = {}
        for group in dict.fromkeys(piece.group for piece in engine.slices):
            if isinstance(group, ClaimedGroup):
                held = [each for each in self._dissolve(group) if each[0] is not engine]
                self._claim_again(held, drops)
        return self._tell(drops)

    # -- after a restart ----------------------------------------------------------------------

    def begin(self, now: float) -> list[Instruction]:
        """Gather from now on."""
        self.is_gathering = True
        # There may have been engines, which were lost just then.
        self._state.patience_until = now + PATIENCE_S
        return [WakeAt(self._state.patience_until)]

    def take(self, event: ev.SubmitEvent | ev.CancelEvent, now: float) -> list[Instruction]:
        """Deal with what a client says, now or when what it may depend on is there."""
        has_to_wait = self.is_gathering or event.client in self._behind
        if has_to_wait or (self._missing and isinstance(event, ev.SubmitEvent)):
            self._kept.append(event)
            return [] if has_to_wait else self._let_in(now)
        if isinstance(event, ev.SubmitEvent):
            return self._submit(event, now)
        return self._canceller.cancel(event, now)

    def gathered(self, missing: Iterable[PeerId], now: float) -> list[Instruction]:
        """Put together what was gathered.

        Args:
            missing: clients that may still come, and submit again what they had.
            now: the time.
        """
        self.is_gathering = False
        self._missing.update(missing)
        holds = [event for event in self._kept if isinstance(event, ev.EngineHoldsEvent)]
        self._kept = [event for event in self._kept if not isinstance(event, ev.EngineHoldsEvent)]
        for client in [*self._detached]:
            if client in self._complete:
                del self._detached[client]
            elif client not in self._missing:
                self._kept.append(self._detached.pop(client))
        out = self._let_in(now)
        for event in holds:
            out += self.holds(event, now)
        return [*out, *self._cancel(now)]

    def detached(self, event: ev.DetachedEvent, now: float) -> list[Instruction]:
        """Take in what is recorded of a client's work, for the case that it does not come."""
        submit = ev.SubmitEvent(event.client, event.groups, event.frames)
        if self.is_gathering or event.client in self._missing:
            self._detached[event.client] = submit
        elif event.client not in self._complete:
            return self.take(submit, now)
        return []

    def _let_in(self, now: float) -> list[Instruction]:
        """Let in what was kept, but for what depends on tasks that are still missing."""
        submits = [event for event in self._kept if isinstance(event, ev.SubmitEvent)]
        self._kept = [event for event in self._kept if isinstance(event, ev.CancelEvent)]
        out: list[Instruction] = []
        self._behind = set()
        for event in _in_order(self._state, submits, self._missing):
            if isinstance(event, list):
                self._kept = [*event, *self._kept]
                self._behind = {kept.client for kept in event}
                break
            self._note_gaps(event)
            out += self._submit(event, now)
        return out

    def _cancel(self, now: float) -> list[Instruction]:
        cancels = [event for event in self._kept if isinstance(event, ev.CancelEvent)]
        out: list[Instruction] = []
        for event in cancels:
            if event.client not in self._behind:
                self._kept.remove(event)
                out += self._canceller.cancel(event, now)
        return out

    def _note_found(self, client: PeerId, now: float) -> list[Instruction]:
        """Take in that nothing more is missing of a client; others may have waited for that."""
        if client not in self._missing:
            return []
        self._missing.discard(client)
        if not self._behind:
            return []
        waited = self._behind
        out = [*self._let_in(now), *self._cancel(now)]
        for each in waited - self._behind:
            if each in self._complete:
                out += self._drop_claims(each)
        return out

    def _submit(self, event: ev.SubmitEvent, now: float) -> list[Instruction]:
        """Let groups in, of which some tasks may have ended or be at engines."""
        client = event.client
        is_again = bool(self._claimed.get(client) or self._ended.get(client))
        if not is_again and not any(group.ended for group in event.groups):
            return self._admission.submit(event, now)
        held: list[tuple[EngineQueue, Slice]] = []
        for claimed in list(self._claimed.get(client, ())):
            if any(g.first < claimed.end and claimed.first < _end(g) for g in event.groups):
                held += self._dissolve(claimed)
        out = self._admission.submit(event, now)
        for group in event.groups:
            for start, stop, mark in _stretches(group.ended, 0, len(group.ended), _ENDED_MARKS):
                self._end(client, group.first + start, group.first + stop, mark - 1, now)
        for first, end, state in self._ended.get(client, ()):
            self._end(client, first, end, STATUS_OF_STATE[state], now)
        drops: _Drops = {}
        self._claim_again(held, drops)
        return [*out, *self._tell(drops)]

    def _note_gaps(self, event: ev.SubmitEvent) -> None:
        """Note the tasks that a client does not submit again: they have ended, well unless it says
        otherwise. Others may depend on them.
        """
        client, ended = event.client, self._state.ended
        at = self._state.groups.setdefault(client, GroupIndex()).next_seq
        for group in event.groups:
            for first, end, known in with_gaps(
                ended.find(client, at, group.first), at, group.first
            ):
                if known is None:
                    ended.note(_gap(client, first, end, group.failed_before), UNSURE)
            at = _end(group)

    def holds(self, event: ev.EngineHoldsEvent, now: float) -> list[Instruction]:
        """Take in what an engine says that it has."""
        if self.is_gathering:
            self._kept.append(event)
            return []
        engine = self._state.engines.get(event.engine_id)
        if engine is None:
            return []
        engine.next_ordinal = max(engine.next_ordinal, event.next_ordinal)
        drops: _Drops = {}
        for piece in event.held:
            self._claim(
                engine, PeerId(piece.client), piece.first, piece.count, piece.ordinal,
                piece.attempt, drops,
            )  # fmt: skip
        self._note_more(engine)
        return self._tell(drops)

    def complete(self, client: PeerId, now: float) -> list[Instruction]:
        """Take in that a client has submitted all that has not ended."""
        self._complete.add(client)
        self._detached.pop(client, None)
        if self.is_gathering:
            return []
        out = [] if client in self._behind else self._drop_claims(client)
        return [*out, *self._note_found(client, now)]

    def _drop_claims(self, client: PeerId) -> list[Instruction]:
        """Have engines drop what a client has not submitted again: it has ended."""
        drops: _Drops = {}
        for claimed in list(self._claimed.get(client, ())):
            self._claim_again(self._dissolve(claimed), drops)
        self._claimed.pop(client, None)
        self._ended.pop(client, None)
        return self._tell(drops)

    def note_client_left(self, client: PeerId, now: float) -> list[Instruction]:
        """Forget what would matter if a client came back; its tasks go on."""
        self._complete.discard(client)
        self._claimed.pop(client, None)
        self._ended.pop(client, None)
        detached = self._detached.pop(client, None)
        out = self._submit(detached, now) if detached is not None else []
        return [*out, *self._note_found(client, now)]

    # -- claims -------------------------------------------------------------------------------

    def _claim(
        self,
        engine: EngineQueue,
        client: PeerId,
        first: int,
        count: int,
        ordinal: int,
        attempt: int,
        drops: _Drops,
    ) -> None:
        """Give tasks to the engine that has them, or have it drop them."""
        index = self._state.groups.setdefault(client, GroupIndex())
        engine.next_ordinal = max(engine.next_ordinal, ordinal + count)
        end = first + count
        # What is not in a live group has ended, or has yet to be submitted.
        cuts = [(group.first, group.end, group) for group in index.overlapping(first, end)]
        at = first
        for low, high, group in [*cuts, (end, end, None)]:
            low, high = max(low, at), min(high, end)
            if at < low:
                claim = PlacedRange(at, low - at, ordinal + at - first, attempt)
                self._claim_unknown(engine, client, index, claim, drops)
            if group is not None:
                claim = PlacedRange(low, high - low, ordinal + low - first, attempt)
                self._claim_in(engine, group, claim, drops)
            at = high

    def _claim_unknown(
        self,
        engine: EngineQueue,
        client: PeerId,
        index: GroupIndex,
        claim: PlacedRange,
        drops: _Drops,
    ) -> None:
        end = claim.first + claim.count
        known = min(max(index.next_seq, claim.first), end)
        if client in self._complete and client not in self._behind:
            known = end
        if claim.first < known:
            _drop(drops, engine, client, _part(claim, claim.first, known))
        if known == end:
            return
        rest = _part(claim, known, end)
        group = ClaimedGroup(client, rest.first, rest.count)
        index.insert(group)
        self._claimed.setdefault(client, []).append(group)
        group.move(0, group.count, State.QUEUED, State.PLACED)
        engine.adopt(Slice(group, 0, group.count, rest.attempt, rest.ordinal, 0.0, None))

    def _claim_in(
        self, engine: EngineQueue, group: TaskGroup, claim: PlacedRange, drops: _Drops
    ) -> None:
        start = claim.first - group.first
        states = tuple(State)
        for low, high, state in [*_stretches(group.states, start, start + claim.count, states)]:
            part = _part(claim, group.seq(low), group.seq(high))
            if state == State.QUEUED:
                for constraint, run in self._take_queued(group.client, part.first, _end(part)):
                    group.move(run.start, run.stop, State.QUEUED, State.PLACED)
                    self._adopt(
                        engine, group, _part(part, run.first_seq, group.seq(run.stop)), constraint
                    )
            elif state == State.PLACED:
                self._contend(engine, group, part, drops)
            else:
                _drop(drops, engine, group.client, part)

    def _contend(
        self, engine: EngineQueue, group: TaskGroup, claim: PlacedRange, drops: _Drops
    ) -> None:
        """Settle who has tasks that are placed already."""
        for holder, piece in self._slices_of(group, claim.first, _end(claim)):
            first = group.seq(piece.start)
            part = _part(claim, first, first + piece.n_tasks)
            if holder is engine and piece.ordinal == part.ordinal:
                continue
            if piece.attempt >= claim.attempt:
                _drop(drops, engine, group.client, part)
                continue
            holder.take(piece.ordinal, piece.n_tasks)
            self._state.note_engine(holder)
            lost = PlacedRange(first, piece.n_tasks, piece.ordinal, piece.attempt)
            _drop(drops, holder, group.client, lost)
            self._adopt(engine, group, part, piece.constraint)

    def _adopt(
        self,
        engine: EngineQueue,
        group: TaskGroup,
        claim: PlacedRange,
        constraint: Constraint | None,
    ) -> None:
        cost_s = self._state.estimates.of(group).cost_s
        start = claim.first - group.first
        engine.adopt(
            Slice(group, start, claim.count, claim.attempt, claim.ordinal, cost_s, constraint)
        )

    def _claim_again(self, held: Iterable[tuple[EngineQueue, Slice]], drops: _Drops) -> None:
        for engine, piece in held:
            group = piece.group
            self._claim(
                engine, group.client, group.seq(piece.start), piece.n_tasks, piece.ordinal,
                piece.attempt, drops,
            )  # fmt: skip
            self._note_more(engine)

    def _dissolve(self, claimed: ClaimedGroup) -> list[tuple[EngineQueue, Slice]]:
        """Take a claimed group off the list; return what engines had of it."""
        client = claimed.client
        self._state.groups[client].discard(claimed)
        groups = self._claimed.get(client, [])
        if claimed in groups:
            groups.remove(claimed)
        final = (State.OK, State.FAILED, State.ABORTED)
        for start, stop, state in _stretches(claimed.states, 0, claimed.count, final):
            ended = (claimed.seq(start), claimed.seq(stop), State(state))
            self._ended.setdefault(client, []).append(ended)
        held = list(self._slices_of(claimed, claimed.first, claimed.end))
        for engine, piece in held:
            engine.take(piece.ordinal, piece.n_tasks)
            self._state.note_engine(engine)
        return held

    # -- tasks --------------------------------------------------------------------------------

    def _slices_of(self, group: TaskGroup, first: int, end: int) -> list[tuple[EngineQueue, Slice]]:
        """Return what engines have of a group's tasks ``first … end-1``."""
        found = []
        for engine in self._state.engines.values():
            for piece in engine.slices:
                if piece.group is group:
                    begin = group.seq(piece.start)
                    low, high = max(begin, first), min(begin + piece.n_tasks, end)
                    if low < high:
                        at = piece.ordinal - begin
                        found.append((engine, piece.part(at + low, at + high)))
        return found

    def _take_queued(
        self, client: PeerId, first: int, end: int
    ) -> list[tuple[Constraint | None, Run]]:
        """Take tasks out of where they wait; with the terms under which they did, None for direct
        tasks.
        """
        state = self._state
        found: list[tuple[Constraint | None, Run]] = [*state.waiting.remove(client, first, end)]
        for run in self._dependencies.remove(client, first, end):
            found.append((constraint_of(run.group.options), run))
        for engine in list(state.direct):
            found += [(None, run) for run in engine.remove_direct(client, first, end)]
            if not engine.direct:
                state.direct.discard(engine)
        return found

    def _end(self, client: PeerId, first: int, end: int, status: int, now: float) -> None:
        """End waiting tasks whose client has their results already."""
        for _, run in self._take_queued(client, first, end):
            group, n_tasks = run.group, len(run)
            group.move(run.start, run.stop, State.QUEUED, State.PLACED)
            group.finish(run.start, run.stop, bytes((status,)) * n_tasks)
            self._state.story.note(now, client, run.first_seq, n_tasks, "had ended before")
            self._state.note_ended(group, run.start, run.stop)

    def _note_more(self, engine: EngineQueue) -> None:
        """Keep `open` and `stealable` right after an engine's tasks became more."""
        if engine.is_away or engine.is_leaving:
            return
        self._state.open.add(engine)
        if engine.n_tasks > 1:
            self._state.stealable.add(engine)

    def _tell(self, drops: _Drops) -> list[Instruction]:
        engines = self._state.engines
        return [
            SendDrop(engines[engine_id].peer, client, ranges)
            for (engine_id, client), ranges in drops.items()
            if engine_id in engines
        ]


def _in_order(
    state: SchedulerState, events: list[ev.SubmitEvent], missing: Collection[PeerId]
) -> Iterator[ev.SubmitEvent | list[ev.SubmitEvent]]:
    """Yield the groups of some events, those of a client in its order, so that each comes after
    those that it depends on; at last a list of those that depend on tasks of missing clients.
    """
    queues: dict[PeerId, list[tuple[Group, SliceFrames]]] = {}
    for event in events:
        queue = queues.setdefault(event.client, [])
        queue += zip(event.groups, event.frames, strict=True)

    def is_known(dependency: Dependency | None) -> bool:
        for piece in dependency.tasks if dependency is not None else ():
            client = PeerId(piece.client)
            index = state.groups.get(client)
            next_seq = index.next_seq if index is not None else 0
            if (client in queues or client in missing) and next_seq < piece.first + piece.count:
                return False
        return True

    def n_ready(queue: list[tuple[Group, SliceFrames]]) -> int:
        for count, (group, _) in enumerate(queue):
            options = group.options
            if options.after is not None or options.follow is not None:
                # By itself: it may depend on one of those before.
                return count or int(is_known(options.after) and is_known(options.follow))
        return len(queue)

    while queues:
        is_stuck = True
        for client, queue in list(queues.items()):
            count = n_ready(queue)
            if count:
                is_stuck = False
                yield _submit_event(client, queue[:count])
                del queue[:count]
            if not queue:
                del queues[client]
        if is_stuck and missing:
            yield [_submit_event(client, queue) for client, queue in queues.items()]
            return
        if is_stuck:
            # They depend on what nobody knows. Each is told so.
            yield from (_submit_event(client, queue) for client, queue in queues.items())
            return


def _gap(client: PeerId, first: int, end: int, failed: Sequence[EndedRange]) -> ClaimedGroup:
    """Return tasks that have ended, all but some of them well."""
    gap = ClaimedGroup(client, first, end - first)
    gap.states[:] = bytes((State.OK,)) * gap.count
    for piece in failed:
        low, high = max(piece.first, first), min(_end(piece), end)
        if low < high:
            state = STATE_OF_STATUS[piece.status]
            gap.states[low - first : high - first] = bytes((state,)) * (high - low)
    return gap


def _submit_event(client: PeerId, pairs: list[tuple[Group, SliceFrames]]) -> ev.SubmitEvent:
    return ev.SubmitEvent(client, [group for group, _ in pairs], [frames for _, frames in pairs])


def _end(piece: Group | PlacedRange | EndedRange) -> int:
    return piece.first + piece.count


def _part(claim: PlacedRange, first: int, end: int) -> PlacedRange:
    return PlacedRange(first, end - first, claim.ordinal + first - claim.first, claim.attempt)


def _drop(drops: _Drops, engine: EngineQueue, client: PeerId, claim: PlacedRange) -> None:
    drops.setdefault((engine.engine_id, client), []).append(claim)


def _stretches(
    states: bytes | bytearray, start: int, stop: int, wanted: tuple[int, ...]
) -> Iterator[tuple[int, int, int]]:
    """Yield start, stop and value of the stretches of equal bytes, of those that are wanted."""
    while start < stop:
        value = states[start]
        end = start + 1
        if states.count(value, start, stop) == stop - start:
            end = stop
        while end < stop and states[end] == value:
            end += 1
        if value in wanted:
            yield start, end, value
        start = end


__all__ = ["ClaimedGroup", "Resumer"]
