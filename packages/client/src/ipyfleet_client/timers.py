"""What one thread is to do later.

What lives here: `Timers`, a handful of calls by name. What must not: threads, waiting.
"""

from __future__ import annotations

import time
from collections.abc import Callable


class Timers:
    """Calls that are due at some time; for one thread."""

    def __init__(self) -> None:
        self._at: dict[str, tuple[float, Callable[[], None]]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._at

    def set(self, name: str, delay_s: float, function: Callable[[], None]) -> None:
        """Have a function called once in some seconds, instead of what had this name."""
        self._at[name] = (time.monotonic() + delay_s, function)

    def left(self) -> float | None:
        """Return the seconds until the next is due; None for "none"."""
        if not self._at:
            return None
        return max(0.0, min(at for at, _ in self._at.values()) - time.monotonic())

    def pop_due(self) -> list[Callable[[], None]]:
        """Return what is due, and forget it."""
        if not self._at:
            return []
        now = time.monotonic()
        names = [name for name, (at, _) in self._at.items() if at <= now]
        return [self._at.pop(name)[1] for name in names]
