"""A snapshot of the controller's counters, for people and for programs that watch.

What lives here: `Rate` and `snapshot`. What must not: anything on the hot path but `Rate.note`.
Counters only grow, so that whoever watches can make rates of his own.
"""

from __future__ import annotations

import math
import os
from typing import Any

from .database.keeper import RecordKeeper
from .hub.peers import Registry
from .scheduler.engine_queue import EngineQueue
from .scheduler.state import SchedulerState

RATE_SPAN_S = 10
"""Seconds over which `Rate.per_s` is the mean."""


class Rate:
    """How many tasks end per second.

    Attributes:
        total: all so far.
    """

    __slots__ = ("_by_second", "_second", "total")

    def __init__(self) -> None:
        self.total = 0
        self._second = 0
        self._by_second = [0] * (RATE_SPAN_S + 1)

    def note(self, now: float, count: int) -> None:
        """Count tasks that ended at a time."""
        self.total += count
        second = int(now)
        if second != self._second:
            self._move_to(second)
        self._by_second[second % len(self._by_second)] += count

    def per_s(self, now: float) -> float:
        """Return the mean of the last whole seconds."""
        second = int(now)
        if second != self._second:
            self._move_to(second)
        # The second that is under way is not over, so it does not count.
        current = self._by_second[second % len(self._by_second)]
        return (sum(self._by_second) - current) / RATE_SPAN_S

    def _move_to(self, second: int) -> None:
        n_slots = len(self._by_second)
        if not 0 <= second - self._second < n_slots:
            self._by_second = [0] * n_slots
        else:
            for passed in range(self._second + 1, second + 1):
                self._by_second[passed % n_slots] = 0
        self._second = second


def snapshot(
    registry: Registry,
    state: SchedulerState,
    keeper: RecordKeeper,
    rate: Rate,
    wall: float,
    now: float,
) -> dict[str, Any]:
    """Return the part of the metrics that the hub, the scheduler and the records know.

    Args:
        registry, state, keeper, rate: what is looked at.
        wall: seconds since the epoch.
        now: the scheduler's clock.
    """
    groups = [group for index in state.groups.values() for group in index.live()]
    roles = [peer.role for peer in registry.peers.values()]
    engines = state.engines.values()
    return {
        "peers": {f"{role}s": roles.count(role) for role in ("client", "engine", "agent")},
        "tasks": {
            "unassigned": state.n_unplaced,
            "queued_direct": sum(engine.n_direct for engine in engines),
            "at_engines": sum(engine.n_tasks for engine in engines),
            "not_ended": sum(group.remaining for group in groups),
            "ended": rate.total,
            "per_s": rate.per_s(wall),
        },
        "engines": {int(engine.engine_id): _of_engine(engine, now) for engine in engines},
        "bytes": {
            "payloads": sum(map(len, (f for group in groups for f in group.frames or ()))),
            "resident": resident_bytes(),
        },
        "database": keeper.status(),
    }


def _of_engine(engine: EngineQueue, now: float) -> dict[str, Any]:
    # A slice's cost may be NaN-like for kinds never seen; people want a number.
    load_s = engine.load_s(now)
    return {
        "tasks": engine.n_tasks,
        "queued_direct": engine.n_direct,
        "completed": engine.n_completed,
        "prefetched_s": 0.0 if math.isnan(load_s) else load_s,
        "silence_s": engine.silence_s(now),
        "bytes": engine.n_bytes,
        "leaving": engine.is_leaving,
    }


def resident_bytes() -> int:
    """Return the memory that this process has; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        return 0


__all__ = ["RATE_SPAN_S", "Rate", "resident_bytes", "snapshot"]
