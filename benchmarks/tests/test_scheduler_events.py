"""The bench of the pure scheduler."""

from __future__ import annotations

import pytest

from benchmarks.scheduler_events import KINDS, Bench, bytes_per_task, measure
from ipyfleet_controller.scheduler import events as ev


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_measured(kind: str) -> None:
    """Events and tasks per second come out for each kind of work."""
    events, tasks = measure(kind, 100, 300)
    assert events > 0
    assert tasks > 0


def test_the_queue_keeps_its_length() -> None:
    """For each task that ends another is submitted, so what is measured is a steady state."""
    bench = Bench(1.0)
    bench.submit(500)
    bench.feed(ev.PlaceEvent())
    before = bench.core.state.waiting.n_tasks
    bench.run(200)
    assert bench.core.state.waiting.n_tasks == before
    assert bench.n_tasks >= 60


def test_a_queued_task_costs_few_bytes() -> None:
    """A queued task of a map is a byte of state and four of size."""
    assert 1 < bytes_per_task(100_000) < 10
