"""Sets of numbers as intervals, and groups by sequence number."""

from __future__ import annotations

from itertools import pairwise

import hypothesis
import hypothesis.strategies as st

from ipyfleet_controller.database.live import Coverage


@hypothesis.given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 8)), max_size=20))
def test_a_coverage_is_a_set(additions: list[tuple[int, int]]) -> None:
    """Whatever is added in whatever order: what is new is told, and what is in it is right."""
    coverage, model = Coverage(), set[int]()
    for start, count in additions:
        fresh = {i for a, b in coverage.add(start, start + count) for i in range(a, b)}
        added = set(range(start, start + count))
        assert fresh == added - model
        model |= added
        intervals = list(coverage.intervals())
        assert {i for a, b in intervals for i in range(a, b)} == model
        assert all(before[1] < after[0] for before, after in pairwise(intervals))
        assert coverage.n_covered == len(model)
