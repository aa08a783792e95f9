"""Ctrl-C at a moment that a test chooses."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable

from .waiting import wait_until


def interrupt_when(condition: Callable[[], object], timeout_s: float = 30.0) -> threading.Thread:
    """Send SIGINT to this process as soon as a condition holds, or when the time is up.

    Returns:
        The thread that does it, to be joined.
    """

    def run() -> None:
        with contextlib.suppress(TimeoutError):  # then the test shall not hang, but fail
            wait_until(condition, timeout_s)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=run)
    thread.start()
    return thread
