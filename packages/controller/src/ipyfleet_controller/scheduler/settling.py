"""What engines say of tasks: results, tasks turned down, tasks given back.

What lives here: `Settler`. It ends tasks, or lets them wait again. What must not: what engines are
given.

The usual message, in which all tasks have ended, costs the same whatever their number but for the
copying of status bytes; it is forwarded as it came.
"""

from __future__ import annotations

from typing import NamedTuple

from ipyfleet_protocol.codec import decode_part, split
from ipyfleet_protocol.columns import Payloads, sum_float64
from ipyfleet_protocol.errors import ProtocolError
from ipyfleet_protocol.messages import FAILED, UNMET, ErrorInfo, ResultSlice

from . import events as ev
from .cancelling import cancelled_error, final_status, split_cancelled
from .dependencies import is_hopeless, is_turned_down
from .endings import keep_parts
from .engine_queue import EngineQueue, Slice
from .group import IllegalTransition, State
from .instructions import DeliverResults, Instruction, WakeAt
from .runs import Constraint, Run
from .state import SchedulerState
from .stealing import BACKOFF_S
from .wording import engine_error, no_engine_left

_FAILED, _UNMET = bytes((FAILED,)), bytes((UNMET,))

LAST_WORDS_MAX = 500
"""Characters of what an engine has said that go into an error of ours."""


class _Refusal(NamedTuple):
    """Tasks that an engine has turned down.

    Attributes:
        run: the tasks, which are still in state `PLACED`.
        constraint: under which they had waited.
        slice_number, position: where in the message the first of them is.
        is_cancelled: their client has taken them back.
    """

    run: Run
    constraint: Constraint
    slice_number: int
    position: int
    is_cancelled: bool


class Settler:
    """Takes in what engines say."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def results(self, event: ev.ResultsEvent, now: float) -> list[Instruction]:
        """End tasks as an engine says, or let them run again."""
        engine = self._state.engines.get(event.engine_id)
        message = event.message
        if engine is None:
            return []
        kept: list[tuple[int, int, int]] = []
        refusals: list[_Refusal] = []
        n_all = n_kept = 0
        out: list[Instruction] = []
        is_changed = False
        for number, piece in enumerate(message.slices):
            n_all += piece.count
            for part in engine.answer(piece.ordinal, piece.count, now):
                offset = part.ordinal - piece.ordinal
                group = part.group
                first = group.first + part.start
                if message.client != group.client or piece.first + offset != first:
                    # The engine is wrong about what it ran. Its word is worth nothing for these
                    # tasks.
                    run = Run(group, part.start, part.start + part.n_tasks, part.attempt)
                    error = engine_error(engine, "it answered for another task", group)
                    out += self._state.end([(run, error)], State.PLACED, now)
                    continue
                if part.constraint is None and UNMET in piece.status:
                    # There is no other place for it, and clients know of no such end.
                    piece.status = piece.status.replace(_UNMET, _FAILED)
                    is_changed = True
                for start, stop in self._settle(engine, part, piece, number, offset, refusals, now):
                    kept.append((number, start, stop))
                    n_kept += stop - start
        if refusals:
            out += self._settle_refusals(engine, refusals, event, now)
        self._state.note_engine(engine)
        if n_kept == n_all:
            out.append(DeliverResults(message, event.frames, untouched=not is_changed))
        elif kept:
            out.append(DeliverResults(*keep_parts(message, event.frames, kept)))
        return out

    def _settle(
        self,
        engine: EngineQueue,
        part: Slice,
        piece: ResultSlice,
        number: int,
        offset: int,
        refusals: list[_Refusal],
        now: float,
    ) -> list[tuple[int, int]]:
        """End the tasks of a slice, or let them run again; return what the client is to see of
        `piece`, and add to `refusals` what has to go elsewhere.
        """
        group, count = part.group, part.n_tasks
        status, started, completed = piece.status, piece.started, piece.completed
        if count != piece.count:
            end = offset + count
            status = status[offset:end]
            started, completed = started[8 * offset : 8 * end], completed[8 * offset : 8 * end]
        is_simple = part.attempt >= group.options.retries or FAILED not in status
        if UNMET in status:
            is_simple = False
        else:
            total_s = sum_float64(completed) - sum_float64(started)
            estimate = group.estimate or self._state.estimates.of(group)
            estimate.learn(count, total_s)
        if not is_simple:
            return self._settle_some(engine, part, status, number, offset, refusals, now)
        start, stop = part.start, part.start + count
        group.finish(start, stop, status)
        first = group.first + start
        self._state.story.note(
            now, group.client, first, count, "ended at engine ", engine.engine_id
        )
        self._state.note_ended(group, start, stop, engine.engine_id)
        return [(offset, offset + count)]

    def _settle_some(
        self,
        engine: EngineQueue,
        part: Slice,
        status: bytes,
        number: int,
        offset: int,
        refusals: list[_Refusal],
        now: float,
    ) -> list[tuple[int, int]]:
        """As `_settle`, where some tasks failed and have attempts left, or were turned down."""
        state, group, client = self._state, part.group, part.group.client
        has_attempts_left = part.attempt < group.options.retries
        kept = []
        again = final_status(engine.cancelled, part, status)
        for start, stop in _stretches(again, status):
            low, high = part.start + start, part.start + stop
            what = f"ended at engine {engine.engine_id}"
            if status[start] == UNMET and part.constraint is not None:
                run = Run(group, low, high, part.attempt)
                is_cancelled = again[start] != UNMET
                refusals.append(
                    _Refusal(run, part.constraint, number, offset + start, is_cancelled)
                )
                what = f"turned down by engine {engine.engine_id}"
            elif again[start] == FAILED and has_attempts_left and part.constraint is not None:
                run = Run(group, low, high, part.attempt + 1)
                avoid = part.constraint.avoid | {engine.engine_id}
                state.wait_again(run, part.constraint._replace(avoid=avoid), now)
                what = f"failed at engine {engine.engine_id}, attempt {part.attempt + 1} follows"
            else:
                group.finish(low, high, status[start:stop])
                state.note_ended(group, low, high, engine.engine_id)
                kept.append((offset + start, offset + stop))
            state.story.note(now, client, group.seq(low), high - low, what)
        return kept

    def _settle_refusals(
        self, engine: EngineQueue, refusals: list[_Refusal], event: ev.ResultsEvent, now: float
    ) -> list[Instruction]:
        """Let tasks that an engine turned down wait for others, at no charge; end those for which
        there are no others.
        """
        state = self._state
        endings: list[tuple[Run, ErrorInfo]] = []
        out: list[Instruction] = []
        for refusal in refusals:
            run = refusal.run
            refused = refusal.constraint.refused | {engine.engine_id}
            constraint = refusal.constraint._replace(refused=refused)
            if refusal.is_cancelled:
                endings.append((run, cancelled_error(engine.engine_id, "it turned it down")))
            elif is_hopeless(state, constraint) or self._is_given_up(run, constraint, now):
                words = _last_words(event, refusal.slice_number, refusal.position)
                endings.append((run, no_engine_left(state, constraint, run.group, words)))
            else:
                state.wait_again(run, constraint, now)
                if state.patience_until is not None:
                    out.append(WakeAt(state.patience_until))
        return [*out, *state.end(endings, State.PLACED, now)]

    def _is_given_up(self, run: Run, constraint: Constraint, now: float) -> bool:
        """Whether a task does not wait for engines that may come."""
        state = self._state
        if run.group.options.timeout_s or state.patience_until is not None:
            return False
        if any(engine.is_leaving for engine in state.engines.values()):
            return False  # one may come in its place
        return is_turned_down(state, constraint)

    # -- given back ---------------------------------------------------------------------------

    def recalled(self, event: ev.RecalledEvent, now: float) -> list[Instruction]:
        """Let tasks wait again that an engine gives back."""
        engine = self._state.engines.get(event.engine_id)
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
            self._state.wait_again(run, piece.constraint, now)
            self._state.story.note(
                now, run.group.client, run.first_seq, len(run), f"recalled from {event.engine_id}"
            )
        if not taken:
            engine.recall_not_before = now + BACKOFF_S
        self._state.note_engine(engine)
        return [*self._state.end(cancelled, State.PLACED, now)]


def _stretches(again: bytes, status: bytes) -> list[tuple[int, int]]:
    """Return start and stop of the stretches in which neither column changes."""
    out = []
    start = 0
    for position in range(1, len(status) + 1):
        if (
            position == len(status)
            or status[position] != status[start]
            or again[position] != again[start]
        ):
            out.append((start, position))
            start = position
    return out


def _last_words(event: ev.ResultsEvent, slice_number: int, index: int) -> str:
    """Return what an engine has said of a task that it turned down."""
    piece = event.message.slices[slice_number]
    frames = split(event.message, event.frames)[slice_number].payload
    try:
        info = decode_part(Payloads(piece.columns, frames).pickle(index), ErrorInfo)
    except ProtocolError:
        return ""
    words = f"{info.ename}: {info.evalue}" if info.evalue else info.ename
    return words if len(words) <= LAST_WORDS_MAX else f"{words[:LAST_WORDS_MAX]}…"


__all__ = ["Settler"]
