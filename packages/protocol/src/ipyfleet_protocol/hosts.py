"""Which host this is, and whether a process of it still lives.

What lives here: two facts that the operating system knows, put so that they can be written into a
file and compared later. What must not: files and messages.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import sys
from pathlib import Path


@functools.cache
def host_id() -> str:
    """Return what all processes of this running host share, and no others: 32 hex digits.

    Containers are hosts of their own where they have their own ``/dev/shm`` or process ids; a
    restarted host is another one.
    """
    try:
        parts = [Path("/proc/sys/kernel/random/boot_id").read_text().strip()]
    except OSError:
        import platform
        import uuid

        parts = [platform.node(), f"{uuid.getnode():x}"]
    with contextlib.suppress(OSError):
        shm = os.stat("/dev/shm")
        parts.append(f"{shm.st_dev}:{shm.st_ino}")
    with contextlib.suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def process_start(pid: int) -> float:
    """Return when a process started, in seconds since the host did; 0 where that is not known.

    Raises:
        ProcessLookupError: if there is no such process, or only what is left of a dead one.
    """
    if sys.platform == "linux":
        try:
            fields = _status(pid)
        except (FileNotFoundError, ProcessLookupError):
            raise ProcessLookupError(errno.ESRCH, f"no process {pid}") from None
        if fields[0] in "ZX":
            raise ProcessLookupError(errno.ESRCH, f"process {pid} is dead")
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    try:
        os.kill(pid, 0)
    except PermissionError:
        # It is there, and somebody else's.
        return 0.0
    return 0.0


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal; False where that is not known."""
    if sys.platform != "linux":
        return False
    try:
        return _status(pid)[0] == "T"
    except (OSError, IndexError):
        return False


def _status(pid: int) -> list[str]:
    """Return what the system says of a process, from its state on."""
    # The name, in parentheses, may hold anything, parentheses and spaces too.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
