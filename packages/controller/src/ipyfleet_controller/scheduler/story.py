"""What happened to tasks, for people: the last steps of the scheduler, told per task.

What lives here: `StoryLog`, bounded. What must not: anything that decisions depend on.
"""

from __future__ import annotations

from collections import deque

from ipyfleet_protocol.ids import EngineId, PeerId

STORY_STEPS = 4096
"""Steps that are remembered, of all tasks together; one step may be about thousands of tasks."""


class StoryLog:
    """The last steps, each about a range of one client's tasks."""

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        # The parts of a step; its text is put together when somebody asks.
        self._steps: deque[tuple[float, PeerId, int, int, str, EngineId | str]]
        self._steps = deque(maxlen=STORY_STEPS)

    def note(
        self,
        now: float,
        client: PeerId,
        first: int,
        count: int,
        what: str,
        engine: EngineId | str = "",
    ) -> None:
        """Note a step of tasks ``first … first+count-1``: `what`, and behind it at which engine."""
        self._steps.append((now, client, first, count, what, engine))

    def tell(self, client: PeerId, seq: int) -> list[str]:
        """Return the steps of one task that are remembered, oldest first."""
        return [
            f"{at:.6f} {what}{engine}"
            for at, owner, first, count, what, engine in self._steps
            if owner == client and first <= seq < first + count
        ]
