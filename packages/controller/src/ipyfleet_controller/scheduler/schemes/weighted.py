"""Of two engines drawn by lot the less loaded one first; lots favour those with little to do."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import TYPE_CHECKING

from ..engine_queue import EngineQueue

if TYPE_CHECKING:
    from . import Draw

LOTS = 8
"""For so many places in front lots are drawn; behind them engines come by their load."""

IDLE_S = 0.001
"""Added to each load, so that an idle engine has a finite weight."""

_FINENESS = 1 << 53


class Weighted:
    """Draws two with weights inverse to their loads and takes the less loaded one."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def rank(self, engines: Iterable[EngineQueue], now: float) -> list[EngineQueue]:
        """Return the engines, the winner of the first lot in front."""
        loads = sorted((engine.load_s(now), engine.engine_id, engine) for engine in engines)
        ranked: list[EngineQueue] = []
        while len(loads) > 1 and len(ranked) < LOTS:
            sums = list(accumulate(1 / (IDLE_S + load) for load, _, _ in loads))
            # They are sorted by load.
            ranked.append(loads.pop(min(self._lot(sums), self._lot(sums)))[2])
        return ranked + [engine for _, _, engine in loads]

    def _lot(self, sums: list[float]) -> int:
        """Return a random index; `sums` are those of the weights up to each."""
        mark = sums[-1] * (self._draw(_FINENESS) / _FINENESS)
        return next((index for index, each in enumerate(sums) if mark < each), len(sums) - 1)


def make(draw: Draw) -> Weighted:
    """Return the scheme."""
    return Weighted(draw)


__all__ = ["LOTS", "Weighted", "make"]
