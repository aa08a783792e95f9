"""What an engine's threads are doing, as text.

What lives here: `format_stacks`, for a second thread that looks at the others without stopping
them, and the signal that makes a process write its stacks while C code holds the GIL. What must
not: sockets.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
import traceback

STACKS_SIGNAL: int | None = signal.SIGRTMAX - 2 if hasattr(signal, "SIGRTMAX") else None
"""What an agent sends so that an engine writes its stacks into their common file."""

_SETTLED_S = 0.02
_PATIENCE_S = 1.0


def format_stacks() -> str:
    """Return the Python stacks of all threads of this process but the one that asks."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    own = threading.get_ident()
    parts = []
    for ident, frame in sys._current_frames().items():
        if ident == own:
            continue
        lines = "".join(traceback.format_stack(frame)).rstrip()
        parts.append(f"Thread {names.get(ident, '?')} ({ident:#x}), innermost last:\n{lines}\n")
    # The main thread, which runs user code, is what people want to see.
    parts.sort(key=lambda part: not part.startswith("Thread MainThread"))
    return "\n".join(parts)


def make_stacks_file() -> int:
    """Return a file descriptor that an agent and its engine share; -1 where there are none."""
    if STACKS_SIGNAL is None or not hasattr(os, "memfd_create"):
        return -1
    return os.memfd_create("ipyfleet-stacks")


def write_on_signal(fd: int) -> None:
    """Have this process write its stacks to `fd` whenever `STACKS_SIGNAL` comes."""
    if STACKS_SIGNAL is not None and fd >= 0:
        faulthandler.register(STACKS_SIGNAL, fd, all_threads=True, chain=False)


def ask_for_stacks(pid: int, fd: int) -> str:
    """Have a process that has called `write_on_signal` write its stacks, and return them.

    Raises:
        OSError: the process is gone, or does not write for a second (it is stopped, say).
    """
    assert STACKS_SIGNAL is not None
    os.ftruncate(fd, 0)
    with contextlib.suppress(OSError):
        os.lseek(fd, 0, os.SEEK_SET)
    os.kill(pid, STACKS_SIGNAL)
    give_up = time.monotonic() + _PATIENCE_S
    size, since = 0, time.monotonic()
    while time.monotonic() < give_up:
        # The writer is a signal handler: it cannot say when it is done.
        time.sleep(0.002)
        now_size = os.fstat(fd).st_size
        if now_size != size:
            size, since = now_size, time.monotonic()
        elif size and time.monotonic() - since > _SETTLED_S:
            break
    if not size:
        raise TimeoutError(f"process {pid} does not write its stacks; is it stopped?")
    return os.pread(fd, size, 0).decode("utf-8", "replace")
