"""What makes the controller end: signals, and the lease of whoever started it.

What lives here: `SignalPipe` and `read_lease`. A lease is the read end of a pipe whose write end
the owner holds and never writes to: when the owner is gone, whatever way it went, reading says
so.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import Any


class SignalPipe:
    """Turns SIGINT and SIGTERM into something that a poller can wait for.

    Example:
        >>> with SignalPipe() as pipe:
        ...     os.kill(os.getpid(), signal.SIGTERM)
        ...     pipe.read()
        'SIGTERM'
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.fd = -1
        self._write_fd = -1
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1

    def __enter__(self) -> SignalPipe:
        """Take over the signals; main thread only."""
        self.fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup_before = signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in self.SIGNALS:
            self._before[number] = signal.signal(number, _ignore)
        return self

    def __exit__(self, *exc: object) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        os.close(self.fd)
        os.close(self._write_fd)

    def read(self) -> str:
        """Return the name of the first signal that came; empty if none did."""
        try:
            data = os.read(self.fd, 64)
        except BlockingIOError:
            return ""
        return signal.Signals(data[0]).name if data else ""


def read_lease(fd: int) -> bool:
    """Whether the lease still holds; to be asked when the descriptor can be read."""
    try:
        return bool(os.read(fd, 64))
    except BlockingIOError:
        return True
    except OSError:
        return False


def _ignore(number: int, frame: FrameType | None) -> None:
    """Let the wake-up descriptor do the work; the handler must only not be the default one."""
