"""Engines that are away, and what is put together again after the controller was started anew.

What lives here: `Resumer`. What must not: decisions about where tasks run.

An engine that is away keeps its tasks, and gets none. Nothing is taken back from it either: it
could not say whether it has begun them.
"""

from __future__ import annotations

from ipyfleet_protocol.ids import EngineId

from .state import SchedulerState


class Resumer:
    """Deals with engines that were away."""

    def __init__(self, state: SchedulerState) -> None:
        self._state = state

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
        if not engine.is_leaving:
            self._state.open.add(engine)
            if engine.n_tasks > 1:
                self._state.stealable.add(engine)


__all__ = ["Resumer"]
