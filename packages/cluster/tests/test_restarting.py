"""When a controller is started again, and when no more."""

import pytest

from ipyfleet_cluster.restarting import RESTARTS_MAX, RESTARTS_WINDOW_S, RestartPolicy


def test_delays_double_until_it_is_given_up():
    """A controller that keeps dying is started again later and later, and then no more."""
    policy = RestartPolicy()
    delays = [policy.next_delay(100.0) for _ in range(RESTARTS_MAX)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6])
    assert policy.next_delay(100.0) is None


def test_deaths_of_long_ago_do_not_count():
    """One that dies now and then is started again each time, at once."""
    policy = RestartPolicy()
    for number in range(3 * RESTARTS_MAX):
        assert policy.next_delay(number * RESTARTS_WINDOW_S) == 0.1
