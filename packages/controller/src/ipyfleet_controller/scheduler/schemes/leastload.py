"""The engine with the least work first; among equals the one that has waited longest for a task."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..engine_queue import EngineQueue

if TYPE_CHECKING:
    from . import Draw


class LeastLoad:
    """Ranks by expected seconds of work, then by the time of the last task."""

    def rank(self, engines: Iterable[EngineQueue], now: float) -> list[EngineQueue]:
        """Return the engines, the least loaded in front."""
        ranked = list(engines)
        if len(ranked) < 2:
            return ranked
        return sorted(
            ranked, key=lambda engine: (engine.load_s(now), engine.used_at, engine.engine_id)
        )


def make(draw: Draw) -> LeastLoad:
    """Return the scheme; it draws no lots."""
    return LeastLoad()


__all__ = ["LeastLoad", "make"]
