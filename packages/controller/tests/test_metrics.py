"""Counters, and what they are made of."""

from __future__ import annotations

from ipyfleet_controller.metrics import RATE_SPAN_S, Rate, resident_bytes


def test_the_rate_is_the_mean_of_the_last_whole_seconds() -> None:
    """The second that is under way does not count, what is long ago neither."""
    rate = Rate()
    for second in range(100, 105):
        rate.note(second + 0.5, 30)
    assert rate.per_s(104.9) == 4 * 30 / RATE_SPAN_S
    assert rate.per_s(105.0) == 5 * 30 / RATE_SPAN_S
    assert rate.per_s(112.0) == 3 * 30 / RATE_SPAN_S
    assert rate.per_s(200.0) == 0
    assert rate.total == 150


def test_a_clock_that_jumps_does_no_harm() -> None:
    """Backwards or far forwards: the rate starts anew, the total stays."""
    rate = Rate()
    rate.note(1e9, 5)
    rate.note(10.0, 7)
    rate.note(2e9, 1)
    assert rate.per_s(2e9 + 1) == 1 / RATE_SPAN_S
    assert rate.total == 13


def test_resident_memory_is_that_of_this_process() -> None:
    """It is more than a few MiB for a Python with test tools."""
    assert resident_bytes() > 8 << 20
