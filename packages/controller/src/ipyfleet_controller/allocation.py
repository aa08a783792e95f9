"""Large blocks of memory go back to the system when they are freed.

What lives here: one setting of the C library's allocator. What must not: anything that depends on
it.

glibc learns from what is freed: after the first message of a few MiB it takes such blocks from the
heap, where one small block that lives on keeps everything below it. A controller that has passed on
a gigabyte of results then looks as if it held a fifth of it.
"""

from __future__ import annotations

import ctypes
import sys

LARGE_BYTES = 256 * 1024
"""From here on a block is a mapping of its own; a page fault for each 4 KiB is the price."""

_M_MMAP_THRESHOLD = -3


def give_back_large_blocks() -> bool:
    """Set it, where the allocator is glibc's; return whether it is."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(set_option(_M_MMAP_THRESHOLD, LARGE_BYTES))
