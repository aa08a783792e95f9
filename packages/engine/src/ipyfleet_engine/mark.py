"""Which task an engine is running, readable by its agent even when the engine is dead.

What lives here: `RunningMark`, two numbers in memory that agent and engine share. An engine's
results leave some milliseconds after their tasks have ended; when it dies, this tells the task
that was at fault from one whose result was lost on the way.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

IDLE = -1


_CELL_BYTES = 40
_BYTES = 4096


class RunningMark:
    """Some numbers and the path of a file in shared memory.

    Attributes:
        cell: assign ``cell[0]`` the ordinal of the task that begins, or `IDLE`; ``cell[1]`` 1 when
            the engine has been told to stop. ``cell[2]`` counts the engine's reads of what it has
            captured. ``cell[3]`` is odd while its agent reads in its place (`relief`), one more
            before and one more after; ``cell[4]`` the bytes that the agent has read.
    """

    def __init__(self, fd: int = -1) -> None:
        """Make one that forked processes share, or map that of a file descriptor."""
        self._map = mmap.mmap(fd, _BYTES)
        self.cell = memoryview(self._map)[:_CELL_BYTES].cast("q")
        if fd == -1:
            self.cell[0] = IDLE

    def note_file(self, path: Path) -> None:
        """Note the file that the agent is to remove should the engine not live to do it."""
        data = os.fsencode(path)
        if len(data) < _BYTES - _CELL_BYTES:
            self._map[_CELL_BYTES : _CELL_BYTES + len(data) + 1] = data + b"\0"

    def noted_file(self) -> Path | None:
        """Return what `note_file` noted; None for nothing."""
        data = self._map[_CELL_BYTES:].partition(b"\0")[0]
        return Path(os.fsdecode(data)) if data else None

    def close(self) -> None:
        """Give the memory back."""
        self.cell.release()
        self._map.close()


def make_mark_file() -> int:
    """Return the file descriptor of a mark that can be passed to a program; Linux only, else -1."""
    if not hasattr(os, "memfd_create"):
        return -1
    fd = os.memfd_create("ipyfleet-mark")
    os.ftruncate(fd, _BYTES)
    os.write(fd, IDLE.to_bytes(8, "little", signed=True))
    return fd
