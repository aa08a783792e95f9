"""Waiting for a condition, never for a time.

A test that sleeps is slow when the machine is fast and wrong when it is slow. What lives here waits
until something is true and fails with a sentence when that takes too long.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.02


def wait_until(
    condition: Callable[[], T],
    timeout_s: float = 30.0,
    message: str | Callable[[], str] = "the condition to hold",
) -> T:
    """Poll a condition until it is true, and return what it returned.

    The first polls follow each other closely, so what is fast stays fast; then 20 ms apart.

    Args:
        condition: called until its value is truthy. What it raises is not caught.
        timeout_s: how long to wait; the default is ample, since only a test that fails waits for
            so long. The condition is looked at once more when the time is up, so a machine that
            stood still meanwhile does not fail the test.
        message: what is awaited, for the error: "timed out after 30 s waiting for <message>". A
            callable is called only then, and can tell the state in which things got stuck.

    Raises:
        TimeoutError: the condition was still not true when the time was up.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = _FIRST_PAUSE_S
    while True:
        is_last = time.monotonic() >= deadline
        value = condition()
        if value:
            return value
        if is_last:
            awaited = message() if callable(message) else message
            raise TimeoutError(f"timed out after {timeout_s:g} s waiting for {awaited}")
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
