"""A clock that moves only when the test says so."""

from __future__ import annotations


class MockClock:
    """Stands in for `time.monotonic` wherever the time is an argument or a callable.

    Call it to read it: ``MockClock()()``. It never goes backwards.

    Args:
        start_s: what it shows at first. Not zero by default, so that a forgotten "0 means never"
            shows.
    """

    def __init__(self, start_s: float = 1000.0) -> None:
        self._now_s = float(start_s)

    def __call__(self) -> float:
        """Return what the clock shows, in seconds."""
        return self._now_s

    @property
    def now(self) -> float:
        """What the clock shows, in seconds."""
        return self._now_s

    def advance(self, seconds: float) -> float:
        """Move on by so many seconds; return what the clock shows then.

        Raises:
            ValueError: the step is negative.
        """
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        self._now_s += seconds
        return self._now_s

    def advance_to(self, time_s: float) -> float:
        """Move on to a given time; return it.

        Raises:
            ValueError: that time is past.
        """
        if time_s < self._now_s:
            raise ValueError(f"a monotonic clock cannot go back from {self._now_s} to {time_s}")
        self._now_s = float(time_s)
        return self._now_s
