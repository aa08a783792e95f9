"""Copying large buffers with more than one thread.

What lives here: copies between memory and files, in steps, and what runs several of them at once.
What must not: which files those are, and what their content means.

Theory of operation. What a large copy costs is the kernel's work: new pages, and the bytes. Who is
in ``write`` or ``preadv`` does not hold the interpreter's lock, so two threads take half the time.
Writers of one file exclude one another, so each has a file of its own.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence

THREADS_MAX = 4
"""Memory is no faster for more of them."""

SHARE_MIN_BYTES = 2 << 20
"""A thread for less than this costs more than it saves."""

STEP_BYTES = 16 << 20
"""What is copied between two looks at whether to go on."""


def threads_for(size: int) -> int:
    """Return how many threads are to copy so many bytes."""
    cpus = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    return max(1, min(THREADS_MAX, cpus, size // SHARE_MIN_BYTES))


def cut(size: int, parts: int, unit: int) -> list[tuple[int, int]]:
    """Return where ``parts`` pieces of a buffer begin and end; all but the last are multiples of a
    unit, and as long as one another.
    """
    step = -(-size // parts)
    step += -step % unit
    return [(min(size, k * step), min(size, (k + 1) * step)) for k in range(parts)]


def run_together(jobs: Sequence[Iterator[object]]) -> None:
    """Exhaust iterators, the first in this thread and each other one in a thread of its own.

    When one raises, or this thread is interrupted, the others end after their step. All have ended
    when this returns.

    Raises:
        BaseException: What one of them raised.
    """
    failures: list[BaseException] = []

    def run(job: Iterator[object]) -> None:
        try:
            for _ in job:
                if failures:
                    return
        except BaseException as failure:  # noqa: BLE001 - raised below, in the thread that asked
            failures.append(failure)

    threads = []
    for job in jobs[1:]:
        thread = threading.Thread(target=run, args=(job,), name="ipyfleet-copy", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            # No more threads to be had, or the interpreter is ending.
            run(job)
        else:
            threads.append(thread)
    run(jobs[0])
    for thread in threads:
        # A step is over in milliseconds, and until then the thread uses what is the caller's.
        while thread.is_alive():
            try:
                thread.join()
            except BaseException as failure:  # noqa: BLE001 - a second Ctrl-C; raised below
                failures.append(failure)
    if failures:
        raise failures[0]


def write_file(fd: int, view: memoryview) -> Iterator[int]:
    """Write bytes to a file, a step at a time.

    Raises:
        OSError: they cannot be written; some of them may have been.
    """
    position = 0
    while position < view.nbytes:
        position += os.write(fd, view[position : position + STEP_BYTES])
        yield position


def read_file(fd: int, view: memoryview, offset: int = 0) -> Iterator[int]:
    """Fill a buffer from a file, a step at a time.

    Raises:
        EOFError: the file ends before the buffer does.
        OSError: it cannot be read.
    """
    position = 0
    while position < view.nbytes:
        count = os.preadv(fd, [view[position : position + STEP_BYTES]], offset + position)
        if not count:
            raise EOFError
        position += count
        yield position
