"""What happened to tasks, for people: the last steps of the scheduler, told per task.

What lives here: `StoryLog`, bounded. What must not: anything that decisions depend on.
"""

from __future__ import annotations

from collections import deque

from ipyfleet_protocol.ids import PeerId

STORY_STEPS = 4096
"""Steps that are remembered, of all tasks together; one step may be about thousands of tasks."""


class StoryLog:
    """The last steps, each about a range of one client's tasks."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: deque[tuple[float, PeerId, int, int, str]] = deque(maxlen=STORY_STEPS)

    def note(self, now: float, client: PeerId, first: int, count: int, what: str) -> None:
        """Note a step of tasks ``first … first+count-1``."""
        self._steps.append((now, client, first, count, what))

    def tell(self, client: PeerId, seq: int) -> list[str]:
        """Return the steps of one task that are remembered, oldest first."""
        return [
            f"{at:.6f} {what}"
            for at, owner, first, count, what in self._steps
            if owner == client and first <= seq < first + count
        ]
