"""Tasks that have waited for as long as they may.

What lives here: `Expiry`. What must not: the queue of deadlines; that is `timeouts`'.
"""

from __future__ import annotations

from ipyfleet_protocol.messages import ErrorInfo

from .dependencies import Dependencies
from .group import State
from .instructions import Instruction
from .runs import Run
from .state import SchedulerState
from .wording import timed_out, why_blocked, why_busy, why_no_engine


class Expiry:
    """Ends what has waited too long."""

    def __init__(self, state: SchedulerState, dependencies: Dependencies) -> None:
        self._state = state
        self._dependencies = dependencies

    def end_late(self, now: float) -> list[Instruction]:
        """End the tasks whose deadline has come and that still wait."""
        state = self._state
        if not len(state.timeouts):
            return []
        state.has_news = True  # there are further deadlines
        endings: list[tuple[Run, ErrorInfo]] = []
        for late in state.timeouts.due(now):
            group = late.group
            timeout_s = group.options.timeout_s
            first, end = late.first_seq, group.seq(late.stop)
            if group.blocked is not None:
                reason = why_blocked(group.blocked)
                for run in self._dependencies.remove(group.client, first, end, now):
                    endings.append((run, timed_out(timeout_s, reason, group)))
            for constraint, run in state.waiting.remove(group.client, first, end, now):
                reason = why_no_engine(state, constraint) or why_busy(state, constraint)
                endings.append((run, timed_out(timeout_s, reason, group)))
        return [*state.end(endings, State.QUEUED, now)]


__all__ = ["Expiry"]
