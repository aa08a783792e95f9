"""How many no-ops per second."""

from __future__ import annotations

import time
from collections.abc import Callable

from benchmarks.figures.base import Figure, Goal, Sample, Session, WrongResult

PROBE_ITEMS = 300
"""Items mapped first: they warm the peer up and tell how many it can do in the time given."""

_LADDER = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000)


def _timed_map(run: Callable[[int], list[int]], count: int) -> float:
    """Return items per second; the results are checked off the clock."""
    start = time.perf_counter()
    results = run(count)
    taken = time.perf_counter() - start
    if results != list(range(count)):
        raise WrongResult(f"a map over {count} items returned other items, or another order")
    return count / taken


def affordable(rate: float, budget_s: float, wanted: int) -> int:
    """Return how many items fit into ``budget_s``: ``wanted``, or fewer in round numbers.

    Never fewer than 1,000 (or ``wanted``): the start of a map would weigh too much.
    """
    if rate * budget_s >= wanted:
        return wanted
    fitting = [step for step in _LADDER if step <= rate * budget_s]
    return min(wanted, max(fitting, default=_LADDER[0]))


def _single(session: Session, run: Callable[[int], list[int]]) -> Sample:
    wanted = session.sizes.tasks_large
    rate = _timed_map(run, min(PROBE_ITEMS, wanted))
    count = affordable(rate, session.sizes.task_budget_s, wanted)
    return Sample(_timed_map(run, count), None if count == wanted else count)


def _large(session: Session) -> Sample:
    return _single(session, session.peer.map_single)


def _separate(session: Session) -> Sample:
    return _single(session, session.peer.separate)


def _chunked(session: Session) -> Sample:
    run = session.peer.map_chunked
    _timed_map(run, min(PROBE_ITEMS, session.sizes.chunked_items))
    return Sample(_timed_map(run, session.sizes.chunked_items))


FIGURES = (
    Figure(
        "map_large",
        "no-op tasks, {tasks_large} items, one task each",
        "/s",
        "higher",
        _large,
        (
            Goal(100, "ipyparallel"),
            Goal(1.3, "multiprocessing_pool"),
            Goal(10, "dask"),
            Goal(10, "ray"),
        ),
    ),
    Figure(
        "separate",
        "the same by {tasks_large} separate calls",
        "/s",
        "higher",
        _separate,
        (Goal(50, "ipyparallel"),),
    ),
    Figure(
        "map_chunked",
        "chunked map, {chunked_items} items",
        "/s",
        "higher",
        _chunked,
        (Goal(1, "ipyparallel"), Goal(1, "multiprocessing_pool")),
    ),
)
