import threading
import time

import pytest

from ipyfleet_testing.waiting import wait_until


def test_returns_the_value_of_the_condition() -> None:
    """What the condition returned when it became true is handed on."""
    values = iter([0, "", None, "ready"])
    assert wait_until(lambda: next(values), 5) == "ready"


def test_sees_a_change_made_by_another_thread() -> None:
    """A condition that another thread makes true ends the wait long before the timeout."""
    event = threading.Event()
    timer = threading.Timer(0.05, event.set)
    timer.start()
    begin = time.monotonic()
    wait_until(event.is_set, 30, "the event")
    assert time.monotonic() - begin < 10
    timer.join()


def test_a_timeout_says_what_was_awaited() -> None:
    """The error names what was awaited, and the message is made only then."""
    with pytest.raises(TimeoutError, match=r"after 0\.01 s waiting for state stuck"):
        wait_until(lambda: False, 0.01, lambda: "state stuck")


def test_looks_once_more_when_the_time_is_up() -> None:
    """With no time at all the condition is still looked at."""
    assert wait_until(lambda: 7, 0) == 7


def test_errors_of_the_condition_are_not_caught() -> None:
    """An exception in the condition is a failure of the test, not a reason to go on."""
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 // 0, 5)
