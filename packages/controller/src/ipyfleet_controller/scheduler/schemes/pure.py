"""Engines in turn, by their numbers, without a look at what they have to do.

Unlike elsewhere a scheme of this name has no limits here: dependencies, targets, retries and
timeouts work with it as with any other, since it only gives the order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..engine_queue import EngineQueue

if TYPE_CHECKING:
    from . import Draw


class RoundRobin:
    """Begins with the engine after the one that it began with last time."""

    def __init__(self) -> None:
        self._last = -1

    def rank(self, engines: Iterable[EngineQueue], now: float) -> list[EngineQueue]:
        """Return the engines, the next one in turn in front."""
        last = self._last
        ranked = sorted(engines, key=lambda engine: (engine.engine_id <= last, engine.engine_id))
        if ranked:
            self._last = ranked[0].engine_id
        return ranked


def make(draw: Draw) -> RoundRobin:
    """Return the scheme; it draws no lots."""
    return RoundRobin()


__all__ = ["RoundRobin", "make"]
