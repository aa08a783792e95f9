"""SIGINT: KeyboardInterrupt for the task that runs, nothing for an idle engine.

What lives here: the signal handler and the code objects that mark user code in a stack. What must
not: tasks' bookkeeping.

A handler that looked at a "busy" flag could raise between the end of user code and the flag's
reset, in the middle of the engine's own work. This one looks at the stack instead: only if the
function `interruptible` marks is on it, the exception is raised, and whoever called that function
catches it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

log = logging.getLogger("ipyfleet.engine")

F = TypeVar("F", bound=Callable[..., Any])

_interruptible: set[CodeType] = set()


def interruptible(function: F) -> F:
    """Mark a function (or coroutine function) whose callers catch KeyboardInterrupt."""
    _interruptible.add(function.__code__)
    return function


def in_user_code(frame: FrameType | None) -> bool:
    """Tell whether what is raised in this frame would end up with an interruptible's caller."""
    while frame is not None:
        if frame.f_code in _interruptible:
            return True
        frame = frame.f_back
    return False


class InterruptHandler:
    """The engine's handler of SIGINT.

    Attributes:
        awaiting: the asyncio task that waits for an async task's result, while there is one.
        cancelled: that task was cancelled by SIGINT, not by user code.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.awaiting: asyncio.Task[Any] | None = None
        self.cancelled = False

    def install(self) -> None:
        """Handle SIGINT from now on; in the main thread."""
        signal.signal(signal.SIGINT, self)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt in user code, or cancel what is awaited, or do nothing."""
        if in_user_code(frame):
            raise KeyboardInterrupt
        if self.awaiting is not None and not self.awaiting.done():
            self.cancelled = True
            self._loop.call_soon_threadsafe(self.awaiting.cancel)
        else:
            log.info("SIGINT ignored: no task is running")
