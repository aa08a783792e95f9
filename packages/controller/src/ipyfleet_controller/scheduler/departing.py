"""Engines come and go, and what becomes of their tasks.

What lives here: `Departures`. An engine's death is dealt with here and nowhere else, whoever brings
the news. What must not: results.
"""

from __future__ import annotations

from itertools import pairwise

from ipyfleet_protocol.messages import ErrorInfo

from . import events as ev
from .cancelling import cancelled_error, split_cancelled
from .dependencies import is_hopeless, is_turned_down
from .endings import own_error
from .engine_queue import EngineQueue, Slice
from .group import State
from .instructions import Instruction, WakeAt
from .runs import Run
from .state import SchedulerState
from .wording import engine_error, no_engine_left

PATIENCE_S = 5.0
"""How long tasks that no engine may run wait for a new one after an engine was lost."""


class Departures:
    """Engines join, leave and die."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def joined(self, event: ev.EngineJoinedEvent, now: float) -> list[Instruction]:
        """Take in an engine."""
        engine = EngineQueue(event.engine_id, event.peer, now, event.resources)
        self._state.engines[event.engine_id] = engine
        self._state.open.add(engine)
        self._state.waiting.note_engine_joined(engine)
        return []

    def leaving(self, event: ev.EngineLeavingEvent, now: float) -> list[Instruction]:
        """Give an engine nothing any more."""
        engine = self._state.engines.get(event.engine_id)
        if engine is not None:
            engine.is_leaving = True
            self._state.open.discard(engine)
            self._state.stealable.discard(engine)
            self._state.waiting.note_engine_gone()
        return []

    def lost(self, event: ev.EngineLostEvent, now: float) -> list[Instruction]:
        """Fail what ran at an engine, or let it run again; let what waited there run elsewhere."""
        state = self._state
        engine = state.engines.pop(event.engine_id, None)
        if engine is None:
            return []
        for engines in (state.open, state.stealable, state.direct):
            engines.discard(engine)
        state.functions.drop_engine(event.engine_id)
        state.last_loss = f"engine {event.engine_id} died: {event.reason}"
        state.patience_until = now + PATIENCE_S
        failed = self._take_over(engine, event, now)
        out: list[Instruction] = [*state.end(failed, State.PLACED, now)]

        state.waiting.note_engine_gone()
        stranded = [(run, engine_error(engine, event.reason, run.group)) for run in engine.direct]
        for constraint, run in state.waiting.remove_where(
            lambda lane: lane.is_dormant and is_hopeless(state, lane.constraint)
        ):
            stranded.append((run, no_engine_left(state, constraint, run.group)))
        out += state.end(stranded, State.QUEUED, now)
        if not state.engines or state.waiting.n_dormant:
            out.append(WakeAt(state.patience_until))
        return out

    def _take_over(
        self, engine: EngineQueue, event: ev.EngineLostEvent, now: float
    ) -> list[tuple[Run, ErrorInfo]]:
        """Let the tasks of a dead engine wait again; return those that end with it."""
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
            elif piece.constraint is None or (ran and run.attempt >= run.group.options.retries):
                failed.append((run, engine_error(engine, event.reason, run.group)))
            else:
                # The engine need not be avoided: its number will not be given again.
                run.attempt += ran
                self._state.wait_again(run, piece.constraint, now)
        return failed

    def tick(self, now: float) -> list[Instruction]:
        """End what has waited in vain for engines in place of those that were lost."""
        state = self._state
        if state.patience_until is None or now < state.patience_until:
            return []
        state.patience_until = None
        if not state.engines:
            error = own_error(
                "NoEnginesRegistered", f"no engine is left, and none came back; {state.last_loss}"
            )
            everything = state.waiting.remove_where(lambda lane: True)
            return [*state.end([(run, error) for _, run in everything], State.QUEUED, now)]
        vain = state.waiting.remove_where(
            lambda lane: lane.is_dormant and is_turned_down(state, lane.constraint),
            lambda run: not run.group.options.timeout_s,
        )
        endings = [(run, no_engine_left(state, terms, run.group)) for terms, run in vain]
        return [*state.end(endings, State.QUEUED, now)]


def _cut_out(piece: Slice, ordinal: int) -> list[Slice]:
    """Return a slice in up to three parts, so that the task with this ordinal is by itself."""
    if not piece.ordinal <= ordinal < piece.end_ordinal:
        return [piece]
    cuts = (piece.ordinal, ordinal, ordinal + 1, piece.end_ordinal)
    return [piece.part(a, b) for a, b in pairwise(cuts) if a < b]


__all__ = ["PATIENCE_S", "Departures"]
