"""Which task an engine is running, readable by its agent even when the engine is dead.

What lives here: `RunningMark`, one number in memory that agent and engine share. An engine's
results leave some milliseconds after their tasks have ended; when it dies, this tells the task
that was at fault from one whose result was lost on the way.
"""

from __future__ import annotations

import mmap
import os

IDLE = -1


class RunningMark:
    """One ordinal in shared memory.

    Attributes:
        cell: assign ``cell[0]`` the ordinal of the task that begins, or `IDLE`.
    """

    def __init__(self, fd: int = -1) -> None:
        """Make one that forked processes share, or map that of a file descriptor."""
        self._map = mmap.mmap(fd, 8)
        self.cell = memoryview(self._map).cast("q")
        if fd == -1:
            self.cell[0] = IDLE

    def close(self) -> None:
        """Give the memory back."""
        self.cell.release()
        self._map.close()


def make_mark_file() -> int:
    """Return the file descriptor of a mark that can be passed to a program; Linux only, else -1."""
    if not hasattr(os, "memfd_create"):
        return -1
    fd = os.memfd_create("ipyfleet-mark")
    os.write(fd, IDLE.to_bytes(8, "little", signed=True))
    return fd
