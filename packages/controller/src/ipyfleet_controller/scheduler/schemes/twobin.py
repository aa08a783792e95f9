"""Of two engines drawn by lot the one that was used longest ago first.

Two lots spread work almost as evenly as looking at all engines does (Mitzenmacher, *The Power of
Two Choices in Randomized Load Balancing*, 2001).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..engine_queue import EngineQueue

if TYPE_CHECKING:
    from . import Draw

LOTS = 8
"""For so many places in front lots are drawn; behind them engines come as they are."""


class TwoBin:
    """Draws two and takes the one that was used longest ago, again and again."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def rank(self, engines: Iterable[EngineQueue], now: float) -> list[EngineQueue]:
        """Return the engines, the winner of the first lot in front."""
        rest = sorted(engines, key=lambda engine: (engine.used_at, engine.engine_id))
        ranked: list[EngineQueue] = []
        while len(rest) > 1 and len(ranked) < LOTS:
            ranked.append(rest.pop(min(self._draw(len(rest)), self._draw(len(rest)))))
        return ranked + rest


def make(draw: Draw) -> TwoBin:
    """Return the scheme."""
    return TwoBin(draw)


__all__ = ["LOTS", "TwoBin", "make"]
