"""Tasks that take time, and tasks that fail."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Sequence

from benchmarks.figures.base import Figure, Goal, Sample, Session, WrongResult

NAP_S, SHORT_NAP_S = 0.010, 0.001
LONG_NAPS = 4
_SEED = 7


def ideal_s(seconds: Sequence[float], workers: int) -> float:
    """Return how long a pool without any overhead takes: the next task to the first free worker."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def mixed_naps(short: int, long_nap_s: float) -> list[float]:
    """Return a few long tasks among many short ones, in an order that is always the same."""
    seconds = [SHORT_NAP_S] * short + [long_nap_s] * LONG_NAPS
    random.Random(_SEED).shuffle(seconds)
    return seconds


def _share_of_ideal(session: Session, seconds: Sequence[float]) -> Sample:
    session.peer.nap_all([SHORT_NAP_S] * 20)
    begin = time.perf_counter()
    session.peer.nap_all(seconds)
    taken = time.perf_counter() - begin
    return Sample(100 * ideal_s(seconds, session.sizes.workers) / taken)


def _naps(session: Session) -> Sample:
    return _share_of_ideal(session, [NAP_S] * session.sizes.naps)


def _mixed(session: Session) -> Sample:
    sizes = session.sizes
    return _share_of_ideal(session, mixed_naps(sizes.short_naps, sizes.long_nap_s))


def _failures(session: Session) -> Sample:
    count = session.sizes.failures
    session.peer.fail_all(20)
    begin = time.perf_counter()
    n_failed = session.peer.fail_all(count)
    taken = time.perf_counter() - begin
    if n_failed != count:
        raise WrongResult(f"{n_failed} of {count} failing tasks have failed")
    return Sample(count / taken)


_NAPPERS = ("ipyfleet", "ipyparallel", "multiprocessing_pool")

FIGURES = (
    Figure(
        "failures",
        "{failures} failing tasks",
        "/s",
        "higher",
        _failures,
        (Goal(10, "ipyparallel"),),
    ),
    Figure(
        "naps",
        "{naps} tasks that sleep 10 ms: speed, of the ideal",
        "%",
        "higher",
        _naps,
        (Goal(97),),
        _NAPPERS,
    ),
    Figure(
        "mixed",
        "{short_naps} tasks that sleep 1 ms, 4 that sleep {long_nap_s} s: speed, of the ideal",
        "%",
        "higher",
        _mixed,
        (Goal(100 / 1.05),),
        _NAPPERS,
    ),
)
