"""C's `stdout` of this process, seen from Python.

What lives here: `CStdout`, which tells cheaply whether C code has left text in its buffer. What
must not: file descriptors.

Asking costs every task something, so it must not cost a call: the buffer's ends are read from
glibc's `FILE`, whose layout is fixed (inlined `putc` has relied on it for ever) and verified with a
file of our own first. Where that is not so, `stdout` is made unbuffered, and there is nothing to
ask.
"""

from __future__ import annotations

import ctypes
import os

_IOLBF = 1
_IONBF = 2
_WRITE_BASE_OFFSET = 32
"""Of ``_IO_write_base`` in a `FILE`; ``_IO_write_ptr`` follows it."""


class CStdout:
    """C's `stdout`, made line-buffered as on a terminal.

    Attributes:
        ends: where what has not been written begins, and where it ends: two addresses, the same
            when there is nothing.
    """

    def __init__(self) -> None:
        self.ends = memoryview(bytes(16)).cast("Q")
        self._stdout: ctypes.c_void_p | None = None
        try:
            self._libc = ctypes.CDLL(None)
            stdout = ctypes.c_void_p.in_dll(self._libc, "stdout")
            setvbuf = self._libc.setvbuf
        except (OSError, AttributeError, ValueError):
            # No C library to be found, or its stdout is no variable.
            return
        if stdout.value and _layout_is_known(self._libc):
            setvbuf(stdout, None, _IOLBF, ctypes.c_size_t(0))
            self.ends = _ends(stdout.value)
            self._stdout = stdout
        else:
            setvbuf(stdout, None, _IONBF, ctypes.c_size_t(0))

    def flush(self) -> None:
        """Write what is in the buffer. Releases the GIL: somebody may have to read it first."""
        if self._stdout is not None:
            self._libc.fflush(self._stdout)


def _ends(file: int) -> memoryview:
    """Return the view of a `FILE` that `CStdout.ends` is."""
    words = (ctypes.c_uint64 * 2).from_address(file + _WRITE_BASE_OFFSET)
    return memoryview(words).cast("B").cast("Q")


def _layout_is_known(libc: ctypes.CDLL) -> bool:
    """Tell whether the ends of a buffer are where we look for them."""
    if ctypes.sizeof(ctypes.c_void_p) != 8 or not hasattr(libc, "gnu_get_libc_version"):
        return False
    libc.fopen.restype = ctypes.c_void_p
    file = libc.fopen(os.devnull.encode(), b"w")
    if not file:
        return False
    try:
        libc.fputs(b"12345", ctypes.c_void_p(file))
        ends = _ends(file)
        return bool(ends[1] - ends[0] == 5)
    finally:
        libc.fclose(ctypes.c_void_p(file))
