"""The lease: how a child process learns that its owner is gone, whatever way it went.

A lease is a pipe. The child holds the read end and exits when it reads end-of-file; the write end
is held by the owner alone, so the kernel closes it when the owner dies, also of SIGKILL. Nothing is
ever written.

Hazard: a copy of the write end in any other process keeps the lease alive. Descriptors made by
`os.pipe` are not inherited across exec; a plain fork (multiprocessing's, for one) does copy them,
so the copies are closed in the forked child.
"""

from __future__ import annotations

import os
import weakref
from types import TracebackType

_held: weakref.WeakSet[Lease] = weakref.WeakSet()


class Lease:
    """One lease, held by this process for one child.

    Use as a context manager around the start of the child: leaving it closes the read end, which
    the child has by then. The lease itself lasts until `release` or until this process ends.
    """

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        _held.add(self)

    @property
    def read_fd(self) -> int:
        """The descriptor to pass to the child; -1 once it has been passed on."""
        return self._read_fd

    @property
    def is_held(self) -> bool:
        """Whether the child may go on."""
        return self._write_fd >= 0

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_read_end()
        if error is not None:
            self.release()

    def release(self) -> None:
        """End the lease: the child exits. Does nothing the second time."""
        self._close_read_end()
        # Swapped first: two threads may stop a cluster at the same time.
        fd, self._write_fd = self._write_fd, -1
        if fd >= 0:
            os.close(fd)

    def _close_read_end(self) -> None:
        if self._read_fd >= 0:
            os.close(self._read_fd)
            self._read_fd = -1


def _close_copies() -> None:
    for lease in list(_held):
        lease.release()


os.register_at_fork(after_in_child=_close_copies)
