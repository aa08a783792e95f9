"""The engine with the least work first; among equals the one that has waited longest for a task."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import TYPE_CHECKING

from ..engine_queue import EngineQueue

if TYPE_CHECKING:
    from . import Draw

_WAITED_LONGEST = attrgetter("used_at", "engine_id")


class LeastLoad:
    """Ranks by expected seconds of work, then by the time of the last task."""

    def rank(self, engines: Iterable[EngineQueue], now: float) -> list[EngineQueue]:
        """Return the engines, the least loaded in front."""
        idle: list[EngineQueue] = []
        busy: list[EngineQueue] = []
        for engine in engines:
            (busy if engine.n_tasks else idle).append(engine)
        # Of a lone task's engines all are idle, as a rule: no Python call for each of them.
        idle.sort(key=_WAITED_LONGEST)
        busy.sort(key=lambda engine: (engine.load_s(now), engine.used_at, engine.engine_id))
        return idle + busy


def make(draw: Draw) -> LeastLoad:
    """Return the scheme; it draws no lots."""
    return LeastLoad()


__all__ = ["LeastLoad", "make"]
