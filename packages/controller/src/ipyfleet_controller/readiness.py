"""How the loop waits: for connections of this host and for other file descriptors, all at once.

What lives here: `Readiness`. What must not: what is read.

Descriptors tell of a state, again each time until it is dealt with. Those of zmq sockets tell of
changes instead, once: `tcp` looks into its sockets by itself and needs to be woken only.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any

_IN = 1  # EPOLLIN and POLLIN


class Readiness:
    """Waits, and calls whoever reads what is ready.

    Attributes:
        poller: for those who register descriptors by themselves.
        on_message: called with a descriptor and its news; returns whether it was one of those.
    """

    def __init__(self) -> None:
        self._callbacks: dict[int, Callable[[], object]] = {}
        self.on_message: Callable[[int, int], bool] = _is_not_mine
        # Only Linux has the first, to which it does not matter how many wait.
        self.poller: Any = select.epoll() if hasattr(select, "epoll") else select.poll()
        self._unit = 1.0 if hasattr(select, "epoll") else 1000.0

    def add(self, fd: int, callback: Callable[[], object]) -> None:
        """Have `callback` called whenever a file descriptor can be read."""
        self._callbacks[fd] = callback
        self.poller.register(fd, _IN)

    def wait(self, timeout_s: float | None, *, reads_messages: bool = True) -> bool:
        """Wait until something can be read, at most so long; call whoever reads it.

        Args:
            timeout_s: None for "until there is something".
            reads_messages: whether `on_message` is called. What is not read is told again.

        Returns:
            Whether anything was ready.
        """
        ready = self.poller.poll(timeout_s if timeout_s is None else timeout_s * self._unit)
        for fd, events in ready:
            if reads_messages and self.on_message(fd, events):
                continue
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
        return bool(ready)

    def close(self) -> None:
        """Wait for nothing any more. Idempotent."""
        if hasattr(self.poller, "close"):
            self.poller.close()


def _is_not_mine(fd: int, events: int) -> bool:
    return False


__all__ = ["Readiness"]
