"""SIGINT: KeyboardInterrupt for the task that runs, nothing for an idle engine.

What lives here: the signal handler, its aim at one task, and the code objects that mark user code
in a stack. What must not: tasks' bookkeeping.

A handler that looked at a "busy" flag could raise between the end of user code and the flag's
reset, in the middle of the engine's own work. This one looks at the stack instead: only if the
function `interruptible` marks is on it, the exception is raised, and whoever called that function
catches it.

When a task is cancelled, SIGINT is meant for that task and no other, and comes from another thread,
which cannot know what runs when the handler does. So it *aims* first: as long as the aim holds, the
handler compares the ordinal of the running task with the one that is meant.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, TypeVar

log = logging.getLogger("ipyfleet.engine")

F = TypeVar("F", bound=Callable[..., Any])

_interruptible: set[CodeType] = set()

_SIGINT = int(signal.SIGINT)
_set_handler: Callable[..., Any] = getattr(sys.modules.get("_signal"), "signal", signal.signal)
"""What `signal.signal` calls, without enumerations on the way: those take ten times as long, and
every batch of tasks would pay for them."""

AIM_INTERVAL_S = 0.02
"""How often `InterruptHandler.follow_up` wants to be called while the aim holds."""

_AGAIN_S = 0.1
_BEGINS_S = 0.5
_SETTLED_S = 0.04
_NOBODY = -1


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
        aim: ordinal of the task that SIGINT is meant for now; -1 for "whichever runs".
        hit: ordinal of the last task that was interrupted because it was aimed at.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, running: memoryview) -> None:
        """Make a handler for an engine.

        Args:
            loop: the main thread's.
            running: its first element is the ordinal of the task that runs.
        """
        self._loop = loop
        self._running = running
        self._sent_at = 0.0
        self._begins_until = 0.0
        self.awaiting: asyncio.Task[Any] | None = None
        self.cancelled = False
        self.aim = _NOBODY
        self.hit = _NOBODY

    def install(self) -> None:
        """Handle SIGINT from now on; in the main thread."""
        _set_handler(_SIGINT, self)

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Raise KeyboardInterrupt in user code, or cancel what is awaited, or do nothing."""
        aim = self.aim
        if aim != _NOBODY and (self._running[0] != aim or self.hit == aim):
            return
        if in_user_code(frame):
            self.hit = aim
            raise KeyboardInterrupt
        if self.awaiting is not None and not self.awaiting.done():
            self.hit = aim
            self.cancelled = True
            self._loop.call_soon_threadsafe(self.awaiting.cancel)
        elif aim == _NOBODY:
            log.info("SIGINT ignored: no task is running")

    # -- called by the second thread ----------------------------------------------------------

    def interrupt(self, ordinal: int) -> None:
        """Interrupt the task with this ordinal, if it runs; `follow_up` has to be called then."""
        if self.hit == ordinal:
            self.hit = _NOBODY
        self.aim = ordinal
        self._begins_until = time.monotonic() + _BEGINS_S
        self._send()

    def follow_up(self, last_claimed: int) -> None:
        """See the aim through: the task may not have begun, or be deaf to the first signal.

        Args:
            last_claimed: ordinal of the task that the main thread has taken up last.
        """
        now = time.monotonic()
        has_begun = self._running[0] == self.aim
        if has_begun:
            self._begins_until = 0.0
        is_over = last_claimed != self.aim or not (has_begun or now < self._begins_until)
        if self.hit == self.aim or is_over:
            # A signal sent just now must not find the aim gone.
            if now - self._sent_at > _SETTLED_S:
                self.aim = _NOBODY
        elif not has_begun or now - self._sent_at > _AGAIN_S:
            self._send()

    def _send(self) -> None:
        self._sent_at = time.monotonic()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
