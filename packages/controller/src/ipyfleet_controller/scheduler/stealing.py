"""When an engine has nothing to do and another has too much: what to ask back.

What lives here: `Stealer`. An engine that hangs in a long task is asked for everything behind
that task; one that makes progress is asked for a part of its tail. Engines with less than
`WORTH_S` of work are left alone: they are done before the answer is here.
"""

from __future__ import annotations

from .engine_queue import EngineQueue, Slice
from .instructions import SendRecall, WakeAt
from .state import SchedulerState

WORTH_S = 0.002
"""Seconds of work, or of silence, from which an engine is asked to give tasks back."""

BACKOFF_S = 0.010
"""How long an engine that gave nothing back is left alone."""


class Stealer:
    """Decides on recalls. Stateless: what is asked is kept in the engine's queue."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

    def recall(self, now: float) -> list[SendRecall | WakeAt]:
        """Return recalls for engines that are idle; to be called after placing."""
        state = self._state
        if not state.stealable:
            return []
        idle = [engine for engine in state.open if not engine.n_tasks]
        if not idle:
            return []
        out: list[SendRecall | WakeAt] = []
        look_again: list[float] = []
        for victim in sorted(state.stealable, key=lambda engine: -engine.load_s(now)):
            if not idle:
                break
            if victim.recall is not None or victim.is_leaving or victim.is_away:
                continue
            if victim.recall_not_before > now or victim.load_s(now) < WORTH_S:
                look_again.append(
                    max(victim.recall_not_before, victim.progress_at + 1.05 * WORTH_S)
                )
                continue
            wanted = self._range(victim, idle, now)
            if wanted is not None:
                victim.recall = wanted
                out.append(SendRecall(victim.peer, *wanted))
                del idle[: wanted[1] - wanted[0] + 1]
        if look_again and idle:
            out.append(WakeAt(min(look_again)))
        return out

    def _range(
        self, victim: EngineQueue, idle: list[EngineQueue], now: float
    ) -> tuple[int, int] | None:
        block = victim.last_recallable()
        if block is None:
            return None
        first, last = block
        tail = _slice_with(victim, last)
        constraint = tail.constraint
        if constraint is None or not any(self._state.may_run(constraint, e) for e in idle):
            return None
        if victim.silence_s(now) < WORTH_S + 2 * tail.cost_s:
            # It makes progress: leave it its part of what it has.
            kept = victim.n_tasks // (len(idle) + 1)
            first = max(first, victim.next_ordinal - max(1, victim.n_tasks - kept))
        elif first <= last:
            victim.is_stuck = True
        return (first, last) if first <= last else None


def _slice_with(engine: EngineQueue, ordinal: int) -> Slice:
    return next(piece for piece in engine.slices if piece.ordinal <= ordinal < piece.end_ordinal)


__all__ = ["BACKOFF_S", "WORTH_S", "Stealer"]
