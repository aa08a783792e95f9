"""How the loop waits: for its ROUTER, for other zmq sockets and for file descriptors, all at once.

What lives here: `Readiness`. What must not: what is read.

Fast path: descriptors are polled, not sockets. `zmq.Poller` looks at each socket before and after
it sleeps: 16 of the 72 system calls that the round trip of a lone task took. A zmq descriptor tells
of news once, and whoever uses the socket may take the news away; so the ROUTER is looked at right
before each sleep, and the callbacks of other sockets read until nothing is left.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from typing import Any, cast

import zmq

_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)


class Readiness:
    """Waits, and calls whoever reads what is ready."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        """Take the ROUTER, which is the caller's to read."""
        self._socket = socket
        self._callbacks: dict[int, Callable[[], None]] = {}
        self.poller: Any = select.poll()
        self.on_other: Callable[[int, int], object] = _ignore
        self.poller.register(_descriptor(socket), _POLLIN)

    def add(self, source: Any, callback: Callable[[], None]) -> None:
        """Have `callback` called whenever a zmq socket or a file descriptor can be read.

        It has to read until nothing is left.
        """
        fd = _descriptor(source)
        self._callbacks[fd] = callback
        self.poller.register(fd, _POLLIN)
        if isinstance(source, zmq.Socket) and int(source.get(_EVENTS)) & _POLLIN:
            # Only who has looked and found nothing is told of news.
            callback()

    @property
    def has_message(self) -> bool:
        """Whether the ROUTER can be read."""
        events: Any = self._socket.get(_EVENTS)
        return bool(events & _POLLIN)

    def wait(self, timeout_ms: int | None) -> bool:
        """Wait until something can be read, at most so long; call the callbacks.

        Returns:
            Whether anything was ready. The ROUTER may have nothing, and something else news.
        """
        if self.has_message:
            timeout_ms = 0
        ready = self.poller.poll(timeout_ms)
        for fd, events in ready:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
            else:
                self.on_other(fd, events)
        return bool(ready) or self.has_message


def _ignore(fd: int, events: int) -> None:
    return


def _descriptor(source: Any) -> int:
    return cast("int", source.get(zmq.FD)) if isinstance(source, zmq.Socket) else int(source)


__all__ = ["Readiness"]
