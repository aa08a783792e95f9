"""What an agent does for its engines, for one that has none: a process of its own, started by it.

What lives here: `Guard`, with which an engine starts and ends its guard, and `watch`, which is what
that does. What must not: sockets. Linux only, as what it does is.

C code that prints while it holds the GIL fills a pipe that nobody in its process can empty; and an
engine that is killed cannot remove the connection file of its bound kernel. Both need somebody
else. The guard is small (it imports nothing but `relief`), and looks twice a second.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from .mark import RunningMark, make_mark_file
from .relief import LOOK_S, STUCK_LOOK_S, Relief

_STOP_S = 2.0


class Guard:
    """The guard of this process, for as long as the context lasts; it gives what both share."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RunningMark:
        """Start the guard, where there can be one."""
        fd = make_mark_file() if sys.platform == "linux" else -1
        if fd >= 0:
            command = [sys.executable, "-P", "-m", __name__, str(os.getpid()), str(fd)]
            nowhere = subprocess.DEVNULL
            # In a session of its own: Ctrl-C in a terminal reaches every process there.
            self._process = subprocess.Popen(
                command,
                stdin=nowhere,
                stdout=nowhere,
                stderr=nowhere,
                pass_fds=[fd],
                start_new_session=True,
            )
        mark = RunningMark(fd)
        if fd >= 0:
            os.close(fd)
        return mark

    def __exit__(self, *exc_info: object) -> None:
        """End the guard."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_STOP_S)
            self._process = None


def watch(pid: int, mark: RunningMark) -> None:
    """Guard the parent process until it has ended; then remove the file that it has noted."""
    relief = Relief()
    while os.getppid() == pid:
        relief.look([(pid, mark)])
        time.sleep(STUCK_LOOK_S if relief.is_stuck else LOOK_S)
    path = mark.noted_file()
    if path is not None:
        path.unlink(missing_ok=True)


def main() -> None:
    """Be a guard; the arguments are the engine's pid and the descriptor of the mark."""
    # A batch system's signal reaches all of a job; what ends the engine ends the guard a moment
    # later.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    pid, fd = map(int, sys.argv[1:])
    watch(pid, RunningMark(fd))


if __name__ == "__main__":
    main()
