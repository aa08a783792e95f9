"""Processes of this host, named so that a reused process id is not mistaken for the old process.

What lives here: `ProcessRef`, and waiting for a process to end. Nothing here knows of clusters.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from ipyfleet_protocol.hosts import process_start

_POLL_S = 0.02


class ProcessRef(NamedTuple):
    """A process id together with when the process was started.

    Attributes:
        pid: the process id.
        started: a number that no later process with the same pid has (`hosts.process_start`).
    """

    pid: int
    started: float

    @classmethod
    def of(cls, pid: int) -> ProcessRef:
        """Return the reference of a process that runs now.

        Raises:
            ProcessLookupError: there is no such process, or it has ended (a zombie is no process).
        """
        started = _start_of(pid)
        if started is None:
            raise ProcessLookupError(f"no process {pid} is running")
        return cls(pid, started)

    @classmethod
    def from_dict(cls, fields: Any) -> ProcessRef:
        """Return what `to_dict` was made from.

        Raises:
            ValueError: `fields` has another form.
        """
        try:
            return cls(int(fields["pid"]), float(fields["started"]))
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"not a process: {fields!r}") from None

    def to_dict(self) -> dict[str, float]:
        """Return a JSON-able form."""
        return {"pid": self.pid, "started": self.started}

    def is_alive(self) -> bool:
        """Whether this very process is still running."""
        return _start_of(self.pid) == self.started

    def signal(self, signum: int) -> bool:
        """Send a signal; return whether the process was there to get it."""
        if not self.is_alive():
            return False
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            return False
        return True

    def children(self) -> list[ProcessRef]:
        """Return the direct child processes."""
        import psutil

        try:
            pids = [child.pid for child in psutil.Process(self.pid).children()]
        except psutil.NoSuchProcess:
            return []
        found = ((pid, _start_of(pid)) for pid in pids)
        return [ProcessRef(pid, started) for pid, started in found if started is not None]


def _start_of(pid: int) -> float | None:
    """When the process was started, or None if it does not run."""
    try:
        return process_start(pid)
    except ProcessLookupError:
        return None


async def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Wait until a cheap condition holds; return whether it did in time. Looks every few ms."""
    deadline = time.monotonic() + timeout_s
    pause_s = 0.002
    while not condition():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            return False
        await asyncio.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, _POLL_S)
    return True


async def wait_exit(process: ProcessRef, timeout_s: float | None) -> bool:
    """Wait until a process has ended; return whether it did in time. None: however long it
    takes.
    """
    if not process.is_alive():
        return True
    try:
        fd = os.pidfd_open(process.pid)
    except (AttributeError, OSError):
        return await wait_until(
            lambda: not process.is_alive(), float("inf") if timeout_s is None else timeout_s
        )
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    try:
        # The pid may have been reused between the first look and pidfd_open.
        if not process.is_alive():
            return True
        loop.add_reader(fd, ended.set)
        try:
            await asyncio.wait_for(ended.wait(), timeout_s)
        except TimeoutError:
            return not process.is_alive()
        finally:
            loop.remove_reader(fd)
        return True
    finally:
        os.close(fd)
