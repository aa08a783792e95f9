"""The engine that was given a task longest ago first, whatever it has to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..engine_queue import EngineQueue

if TYPE_CHECKING:
    from . import Draw


class LeastRecentlyUsed:
    """Ranks by the time of the last task."""

    def rank(self, engines: Iterable[EngineQueue], now: float) -> list[EngineQueue]:
        """Return the engines, the one unused for longest in front."""
        return sorted(engines, key=lambda engine: (engine.used_at, engine.engine_id))


def make(draw: Draw) -> LeastRecentlyUsed:
    """Return the scheme; it draws no lots."""
    return LeastRecentlyUsed()


__all__ = ["LeastRecentlyUsed", "make"]
