"""What an engine's process needs from the operating system.

What lives here: dying with one's parent, waking on time, words for the way a process ended, the
tail of a log file, fresh random state after a fork, caps for native threads. What must not:
sockets, tasks, anything of IPython.
"""

from __future__ import annotations

import ctypes
import os
import random
import signal
import sys
from collections.abc import MutableMapping
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_TIMER_SLACK_NS = 1000

_CRASH = "Fatal Python error"

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
"""Environment variables that bound the threads of native libraries."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent dies; Linux only, elsewhere a no-op.

    Args:
        parent: pid of the parent that is meant. If it has died already the process ends here.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        # It died between the fork and the call above: no signal will come.
        os._exit(1)


def wake_on_time() -> None:
    """Have sleeps and timeouts of this thread, and of those it starts, end when they should.

    Linux lets them end up to 50 µs late, to wake a processor less often. In a task that asks once a
    millisecond whether something has happened that is a twentieth of its time. Elsewhere a no-op.
    """
    if sys.platform == "linux":
        # A sandbox may forbid it: then they end as late as everybody's.
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK_NS, 0, 0, 0)


def describe_exit(exit_code: int) -> str:
    """Return words for an exit code, or for minus a signal's number."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        name = signal.Signals(-exit_code).name
    except ValueError:
        name = f"signal {-exit_code}"
    hint = " (the kernel's out-of-memory killer sends it too)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def log_tail(path: Path, lines: int = 10, max_bytes: int = 32768) -> str:
    """Return the last lines of a log file, or "" if there are none or it cannot be read.

    Where Python has written the stack of a crash, the lines from there on: the innermost frames
    come first. Of several threads the one that crashed is shown.
    """
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - max_bytes))
            text = file.read(max_bytes).decode("utf-8", "replace")
    except OSError:
        return ""
    found = text.splitlines()
    for position in range(len(found) - 1, -1, -1):
        if found[position].startswith(_CRASH):
            stack = found[position:]
            for start, line in enumerate(stack):
                if line.startswith("Current thread"):
                    return "\n".join([stack[0], *stack[start : start + lines - 1]])
            return "\n".join(stack[:lines])
    return "\n".join(found[-lines:])


def death_notice(exit_code: int, peak_kib: int, log: Path | None) -> str:
    """Return the sentence that users read about an engine's death.

    Args:
        exit_code: as in `describe_exit`.
        peak_kib: the most memory that it had resident, in KiB; 0 for "not known".
        log: its log file; the last lines are quoted.
    """
    notice = describe_exit(exit_code)
    if peak_kib:
        notice += f"; peak memory {peak_kib / 1024:.0f} MiB"
    tail = log_tail(log) if log is not None else ""
    if tail:
        notice += f"; the last lines of its log ({log}):\n{tail}"
    return notice


def reseed() -> None:
    """Give a forked process random numbers of its own."""
    random.seed(os.urandom(32))
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed(int.from_bytes(os.urandom(4), "little"))


def cap_native_threads(
    engines: int, cores: int | None, environ: MutableMapping[str, str]
) -> int | None:
    """Bound the threads of native libraries so that engines do not crowd one another out.

    Nothing is changed if the user has set any of the variables.

    Returns:
        The bound, or None if nothing was set.
    """
    if any(name in environ for name in THREAD_VARIABLES):
        return None
    cap = max(1, (cores or 1) // max(1, engines))
    for name in THREAD_VARIABLES:
        environ[name] = str(cap)
    return cap


def redirect_output(path: Path) -> None:
    """Make `path` what this process writes to file descriptors 1 and 2 (appending), 0600."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def close_input() -> None:
    """Make file descriptor 0 read nothing."""
    fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(fd, 0)
    os.close(fd)
