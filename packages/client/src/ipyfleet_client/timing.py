"""How long the tasks of a result took.

What lives here: the part of `AsyncResult` about time. Times come from the received columns.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ipyfleet_protocol.columns import read_float64

if TYPE_CHECKING:
    from ipyfleet_client.pending import Work


class ResultTiming:
    """Durations of a result, in seconds."""

    _work: Work

    if TYPE_CHECKING:

        def ready(self) -> bool:
            """As `AsyncResult.ready`."""

    @property
    def progress(self) -> int:
        """How many tasks have ended."""
        return self._work.arrived

    @property
    def elapsed(self) -> float:
        """Seconds since the call; once all have ended, until the last result was here."""
        work = self._work
        if self.ready():
            return max((a[2].received for a in work.arrivals), default=work.submitted) - (
                work.submitted
            )
        return time.time() - work.submitted

    @property
    def serial_time(self) -> float:
        """The sum of the tasks' own durations: what they would have taken one after the other.

        Raises:
            TimeoutError: not all have ended.
        """
        self._require_ready()
        total = 0.0
        for _, count, segment, start in self._work.arrivals:
            started = read_float64(segment.piece.started)
            completed = read_float64(segment.piece.completed)
            for k in range(start, start + count):
                spent = completed[k] - started[k]
                if not math.isnan(spent):
                    total += spent
        return total

    @property
    def wall_time(self) -> float:
        """Seconds from the call until the last result was here.

        Raises:
            TimeoutError: not all have ended.
        """
        self._require_ready()
        return self.elapsed

    def timedelta(
        self,
        start: datetime | list[datetime],
        end: datetime | list[datetime],
        start_key: Callable[[Any], datetime] = min,
        end_key: Callable[[Any], datetime] = max,
    ) -> float:
        """Return the seconds between two stamps, or between the first and last of two lists.

        Example:
            >>> ar.timedelta(ar.submitted, ar.received)  # doctest: +SKIP
        """
        first = start if isinstance(start, datetime) else start_key(start)
        last = end if isinstance(end, datetime) else end_key(end)
        return (last - first).total_seconds()

    def _require_ready(self) -> None:
        if not self.ready():
            raise TimeoutError("not all results are here yet; ar.wait() waits for them")
