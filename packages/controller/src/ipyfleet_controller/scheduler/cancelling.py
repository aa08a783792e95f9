"""Taking tasks back: those that wait, those at engines, those that run.

What lives here: `Canceller`, and what its word means for tasks at engines (`split_cancelled`). What
must not: signals; those are the engine's and the agent's.

Tasks that wait end at once. An engine is told which of its tasks shall not run, and answers for
those; until it has, they are noted at the engine by ordinal (`EngineQueue.cancelled`), so that none
is placed again or tried again, whatever becomes of the engine. By force, an engine that still holds
such a task after the grace is killed if that is what it runs, and is asked again as long as it
holds one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from ipyfleet_protocol.ids import EngineId, PeerId
from ipyfleet_protocol.messages import ErrorInfo, PlacedRange, SeqRange

from .dependencies import Dependencies
from .endings import own_error
from .engine_queue import EngineQueue, Slice
from .events import CancelEvent
from .group import State
from .instructions import Instruction, KillRunning, SendDrop, WakeAt
from .runs import Run
from .state import SchedulerState

AGAIN_S = 0.25
"""How long until an engine that still holds a task cancelled by force is looked at again."""


class Forced(msgspec.Struct):
    """Tasks at an engine that are to end by force: their ordinals, and when."""

    at: float
    engine_id: EngineId
    ordinals: list[tuple[int, int]]


class Canceller:
    """Takes tasks back."""

    def __init__(self, state: SchedulerState, dependencies: Dependencies) -> None:
        self._state = state
        self._dependencies = dependencies
        self._forced: list[Forced] = []

    def cancel(self, event: CancelEvent, now: float) -> list[Instruction]:
        """End the tasks that wait, and have engines end the others."""
        state = self._state
        endings: list[tuple[Run, ErrorInfo]] = []
        aborted = own_error("TaskAborted", "the task was cancelled before it started")
        for piece in event.ranges:
            first, end = piece.first, piece.first + piece.count
            for _, run in state.waiting.remove(event.client, first, end):
                endings.append((run, aborted))
            for run in self._dependencies.remove(event.client, first, end):
                endings.append((run, aborted))
            for engine in list(state.direct):
                for run in engine.remove_direct(event.client, first, end):
                    endings.append((run, aborted))
                if not engine.direct:
                    state.direct.discard(engine)
        out: list[Instruction] = [*state.end(endings, State.QUEUED, now)]
        for engine in state.engines.values():
            placed = _placed_at(engine, event.client, event.ranges)
            if not placed:
                continue
            out.append(SendDrop(engine.peer, event.client, placed, event.interrupt))
            ordinals = [(piece.ordinal, piece.ordinal + piece.count) for piece in placed]
            engine.cancelled = [*engine.cancelled, *ordinals]
            if event.force:
                self._forced.append(Forced(now + event.grace_s, engine.engine_id, ordinals))
                out.append(WakeAt(now + event.grace_s))
        return out

    def insist(self, now: float) -> list[Instruction]:
        """Have engines killed that still hold tasks cancelled by force, and whose time is up."""
        out: list[Instruction] = []
        waiting, self._forced = self._forced, []
        for forced in waiting:
            engine = self._state.engines.get(forced.engine_id)
            held = [] if engine is None else _held(engine, forced.ordinals)
            if engine is None or not held:
                continue
            if forced.at <= now:
                out.append(KillRunning(engine.engine_id, held))
                forced.at = now + AGAIN_S
                out.append(WakeAt(forced.at))
            self._forced.append(forced)
        return out


def split_cancelled(
    cancelled: Sequence[tuple[int, int]], piece: Slice
) -> Iterator[tuple[Slice, bool]]:
    """Yield the parts of a slice, in order, and of each whether its tasks have been cancelled.

    Args:
        cancelled: `EngineQueue.cancelled` of the slice's engine.
        piece: the slice.
    """
    at = piece.ordinal
    for first, end in sorted(cancelled):
        low, high = max(at, first), min(piece.end_ordinal, end)
        if low >= high:
            continue
        if at < low:
            yield piece.part(at, low), False
        yield piece.part(low, high), True
        at = high
    if at < piece.end_ordinal:
        yield piece.part(at, piece.end_ordinal), False


def final_status(cancelled: Sequence[tuple[int, int]], part: Slice, status: bytes) -> bytes:
    """Return status bytes, with 0 for tasks that have been cancelled: they are not tried again."""
    out = bytearray(status)
    for piece, is_cancelled in split_cancelled(cancelled, part):
        if is_cancelled:
            start = piece.ordinal - part.ordinal
            out[start : start + piece.n_tasks] = bytes(piece.n_tasks)
    return bytes(out)


def cancelled_error(engine_id: EngineId, reason: str) -> ErrorInfo:
    """Return the error of a cancelled task whose engine has ended."""
    return own_error(
        "TaskAborted", f"the task was cancelled; engine {engine_id}: {reason}", engine_id=engine_id
    )


def _placed_at(
    engine: EngineQueue, client: PeerId, ranges: Sequence[SeqRange]
) -> list[PlacedRange]:
    """Return the tasks of a client's ranges that an engine holds."""
    out = []
    for piece in engine.slices:
        if piece.group.client != client:
            continue
        first = piece.group.seq(piece.start)
        for wanted in ranges:
            low = max(first, wanted.first)
            high = min(first + piece.n_tasks, wanted.first + wanted.count)
            if low < high:
                out.append(PlacedRange(low, high - low, piece.ordinal + low - first, piece.attempt))
    return out


def _held(engine: EngineQueue, ordinals: Iterable[tuple[int, int]]) -> list[PlacedRange]:
    """Return the tasks with these ordinals that an engine holds."""
    wanted = list(ordinals)
    return [
        PlacedRange(part.group.seq(part.start), part.n_tasks, part.ordinal, part.attempt)
        for piece in engine.slices
        for part, is_wanted in split_cancelled(wanted, piece)
        if is_wanted
    ]


__all__ = ["AGAIN_S", "Canceller", "cancelled_error", "final_status", "split_cancelled"]
