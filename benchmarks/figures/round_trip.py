"""How long one caller waits for one no-op."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from benchmarks.figures.base import Figure, Goal, Sample, Session, WrongResult


def _median_s(call: Callable[[], int], times: int) -> Sample:
    """Time calls one by one, after a tenth as many that are not counted."""
    for _ in range(max(3, times // 10)):
        if call() != 0:
            raise WrongResult("a no-op returned something else than its default argument")
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return Sample(median(taken))


def _call_one(session: Session) -> Sample:
    return _median_s(session.peer.call_one, session.sizes.calls)


def _call(session: Session) -> Sample:
    return _median_s(session.peer.call, session.sizes.calls)


def _call_all(session: Session) -> Sample:
    return _median_s(lambda: sum(session.peer.call_all()), session.sizes.calls)


FIGURES = (
    Figure(
        "call_one",
        "sync no-op to one engine",
        "s",
        "lower",
        _call_one,
        (Goal(8, "ipyparallel"), Goal(0.5, "concurrent_futures")),
    ),
    Figure("call", "sync no-op, load-balanced", "s", "lower", _call, (Goal(10, "ipyparallel"),)),
    Figure(
        "call_all",
        "sync no-op on all {workers} engines",
        "s",
        "lower",
        _call_all,
        (Goal(6, "ipyparallel"),),
    ),
)
