"""Reads an engine's captured output in its place while the engine cannot.

What lives here: `Relief`, which the agent asks now and then. What must not: the engine's side,
which is `capture`.

C code that prints while it holds the GIL stops the thread that would read what it prints. When the
pipe is full it waits for that thread, and so for itself. The agent notices that a pipe has been
full for a while and the engine has read nothing, and empties it; the engine says later, in the
output, how much that was. Linux only: pipes are reached through ``/proc``.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import stat
import termios
from collections.abc import Iterable

from .mark import IDLE, RunningMark

LOOK_S = 0.5
"""Time between two looks; a pipe that is full at two of them is stuck."""

STUCK_LOOK_S = 0.002
"""Time between two looks while an engine is stuck."""

_FULL_SHARE = 3 / 8
"""What of its size a full pipe holds at least: a write that does not fit begins a new page."""

_READ_BYTES = 1 << 20
_READS = 64


class Relief:
    """See the module docstring.

    Attributes:
        is_stuck: an engine was stuck at the last look; the next is to be soon.
    """

    def __init__(self) -> None:
        self.is_stuck = False
        self._full: dict[int, int] = {}
        """What engines with a full pipe had read at the last look, by pid."""

    def look(self, engines: Iterable[tuple[int, RunningMark | None]]) -> None:
        """Empty the pipes of the engines that cannot.

        Args:
            engines: pid and mark of each.
        """
        full: dict[int, int] = {}
        self.is_stuck = False
        for pid, mark in engines:
            if mark is None or mark.cell[0] == IDLE:
                continue
            reads = mark.cell[2]
            was_full = self._full.get(pid) == reads
            for fd in (1, 2):
                # The file may be gone, or be no pipe.
                with contextlib.suppress(OSError):
                    if was_full:
                        _empty(pid, fd, mark)
                        self.is_stuck = True
                        full[pid] = reads
                    elif _is_full(pid, fd):
                        full[pid] = reads
        self._full = full


def _open(pid: int, fd: int) -> int:
    """Open the other end of the pipe that a process has as `fd`."""
    path = f"/proc/{pid}/fd/{fd}"
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        raise OSError(f"{path} is no pipe")
    return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _is_full(pid: int, fd: int) -> bool:
    pipe = _open(pid, fd)
    try:
        waiting = array.array("i", [0])
        fcntl.ioctl(pipe, termios.FIONREAD, waiting)
        return waiting[0] >= fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) * _FULL_SHARE
    finally:
        os.close(pipe)


def _empty(pid: int, fd: int, mark: RunningMark) -> None:
    """Throw away what is in a pipe, and what comes until the engine reads again; note how much."""
    cell = mark.cell
    reads = cell[2]
    pipe = _open(pid, fd)
    # What is taken and not counted yet would be missing in the count of a task that ends now.
    cell[3] += 1
    try:
        for _ in range(_READS):
            cell[4] += len(os.read(pipe, _READ_BYTES))
            if cell[2] != reads:
                break
    except BlockingIOError:
        # It is empty.
        return
    finally:
        cell[3] += 1
        os.close(pipe)
