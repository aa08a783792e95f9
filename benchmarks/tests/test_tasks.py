"""The pool without overhead, against which tasks that sleep are measured."""

from __future__ import annotations

from benchmarks.figures.tasks import LONG_NAPS, ideal_s, mixed_naps


def test_the_next_task_goes_to_the_first_free_worker() -> None:
    """Two workers: 3 s beside 1 + 1 + 1, and the last one behind either."""
    assert ideal_s([3, 1, 1, 1, 2], 2) == 5
    assert ideal_s([1] * 10, 2) == 5


def test_the_mixed_order_is_always_the_same() -> None:
    """Else runs could not be compared."""
    naps = mixed_naps(1000, 2.0)
    assert naps == mixed_naps(1000, 2.0)
    assert naps.count(2.0) == LONG_NAPS
    assert len(naps) == 1000 + LONG_NAPS
