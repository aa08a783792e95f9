"""Any engine first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..engine_queue import EngineQueue

if TYPE_CHECKING:
    from . import Draw


class PlainRandom:
    """Shuffles."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def rank(self, engines: Iterable[EngineQueue], now: float) -> list[EngineQueue]:
        """Return the engines in random order."""
        # A set's order is not repeatable.
        ranked = sorted(engines, key=lambda engine: engine.engine_id)
        for end in range(len(ranked), 1, -1):
            chosen = self._draw(end)
            ranked[end - 1], ranked[chosen] = ranked[chosen], ranked[end - 1]
        return ranked


def make(draw: Draw) -> PlainRandom:
    """Return the scheme."""
    return PlainRandom(draw)


__all__ = ["PlainRandom", "make"]
