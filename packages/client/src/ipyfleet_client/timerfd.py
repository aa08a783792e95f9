"""A timer that is a file descriptor, which can be set without waking who waits for it.

What lives here: Linux's timerfd; Python has it from 3.13 on. What must not: what it is used for.
"""

from __future__ import annotations

import contextlib
import functools
import os
import struct
from typing import Any

_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC
_MONOTONIC = 1
_SPEC = struct.Struct("@qqqq")


@functools.cache
def _libc() -> Any:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.timerfd_create.argtypes = [ctypes.c_int, ctypes.c_int]
    libc.timerfd_settime.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    return libc


def make_timer() -> int:
    """Return the descriptor of a timer that is not set; the caller closes it.

    Raises:
        OSError: there is none to be had.
    """
    if hasattr(os, "timerfd_create"):
        return int(os.timerfd_create(_MONOTONIC, flags=_FLAGS))
    fd = int(_libc().timerfd_create(_MONOTONIC, _FLAGS))
    if fd < 0:
        raise OSError("cannot make a timer")
    return fd


def set_timer(fd: int, delay_s: float) -> None:
    """Make the descriptor readable after some time, once; replaces what was set before."""
    delay_s = max(delay_s, 1e-6)
    if hasattr(os, "timerfd_settime"):
        os.timerfd_settime(fd, initial=delay_s)
        return
    seconds = int(delay_s)
    _libc().timerfd_settime(fd, 0, _SPEC.pack(0, 0, seconds, int((delay_s - seconds) * 1e9)), None)


def clear_timer(fd: int) -> None:
    """Take note that the timer has rung: its descriptor is not readable any more."""
    with contextlib.suppress(BlockingIOError):
        os.read(fd, 8)
