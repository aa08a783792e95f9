"""Ctrl-C, held back for a few microseconds.

What lives here: `hold_interrupts`, a context manager around the few places where an exception
    between two
bytecodes would lose half a message: a user thread that sends or receives for itself. What must
    not: anything
that waits for long without a `wake`.

Python runs signal handlers between bytecodes of the main thread. In the main thread SIGINT's
handler is replaced for the duration of the block by one that takes a note and calls `wake`; when
the block ends the handler that was there is put back and called, so that ``KeyboardInterrupt`` (or
whatever the program made of it) is raised at once, from a consistent state. Other threads are not
affected.
"""

from __future__ import annotations

# The C module behind `signal`: the wrappers there convert to enums and back, ten times the cost.
import _signal  # type: ignore[import-not-found]
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, ClassVar

import msgspec

_SIGINT = int(signal.SIGINT)


class hold_interrupts(msgspec.Struct, eq=False):
    """Hold back SIGINT's handler while the block runs; only the main thread needs it.

    Attributes:
        wake: called when SIGINT comes.
        noted: SIGINT came; the block should end soon.
    """

    wake: Callable[[], object] | None = None
    noted: bool = False
    _active: bool = False
    _previous: Any = None

    _holder: ClassVar[hold_interrupts | None] = None

    def __enter__(self) -> hold_interrupts:
        if threading.get_ident() != _main_thread:
            return self
        if hold_interrupts._holder is not None:
            return hold_interrupts._holder
        previous = _signal.getsignal(_SIGINT)
        if callable(previous):
            # SIG_DFL and SIG_IGN raise nothing; None is a handler not made in Python: leave it.
            # First of all: an interrupt before this finds nothing changed, one after it is held.
            _signal.signal(_SIGINT, self._note)
            self._previous = previous
            self._active = True
            hold_interrupts._holder = self
        return self

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.noted = True
        if self.wake is not None:
            self.wake()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._active:
            return
        self._active = False
        hold_interrupts._holder = None
        previous, self._previous = self._previous, None
        _signal.signal(_SIGINT, previous)
        if self.noted:
            previous(_SIGINT, None)


_main_thread = threading.main_thread().ident


def _after_fork() -> None:
    global _main_thread
    _main_thread = threading.main_thread().ident
    hold_interrupts._holder = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
