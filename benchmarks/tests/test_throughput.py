"""How many items a slow peer is given."""

from __future__ import annotations

import pytest

from benchmarks.figures.throughput import affordable


@pytest.mark.parametrize(
    ("rate", "budget_s", "wanted", "count"),
    [
        (7_000, 8, 50_000, 50_000),
        (1_120, 8, 50_000, 5_000),
        (262, 8, 50_000, 2_000),
        (1, 8, 50_000, 1_000),
        (1, 8, 500, 500),
        (1_000, 4, 5_000, 2_000),
    ],
)
def test_a_slow_peer_gets_what_fits_into_the_budget(
    rate: float, budget_s: float, wanted: int, count: int
) -> None:
    """All items, or a round number of them that takes about the budget, at least 1,000."""
    assert affordable(rate, budget_s, wanted) == count
