"""The two doors through which messages come and go: for peers of this host, and of other hosts.

What lives here: `Doors`, which waits at both and knows who came through which. What must not: what
messages mean, and how a door works: that is `ipyfleet_protocol.local`'s for this host, and `tcp`'s
for others.

Descriptors tell of a state, again each time until it is dealt with. Those of zmq sockets tell of
changes instead, once: `tcp` looks into its sockets by itself and needs to be woken only.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.local import LocalRouter

if TYPE_CHECKING:
    from .tcp import TcpDoor

_IN = 1  # EPOLLIN and POLLIN

DEAF_S = 0.1
"""How often it is looked whether there are descriptors again: nobody tells when others than peers
have given some back."""


class Doors:
    """One or two of them, as one.

    Attributes:
        inbox: messages that have arrived, each with its sender's identity as first frame; behind
            the last of a connection that has ended the identity alone.
        send: sends frames to an identity. Returns False if there is no room: nothing was sent then,
            and `when_room`'s function is called when there is some. Raises
            `ipyfleet_protocol.local.Unreachable` if there is no such connection.
    """

    def __init__(self, path: Path) -> None:
        """Open the door for peers of this host.

        Args:
            path: of the socket; its directory is private to the user.

        Raises:
            OSError: one cannot listen there.
        """
        # Only Linux has the first, to which it does not matter how many wait.
        has_epoll = hasattr(select, "epoll")
        self._poller: Any = select.epoll() if has_epoll else select.poll()
        self._unit = 1.0 if has_epoll else 1000.0
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._tcp: TcpDoor | None = None
        try:
            self._local = LocalRouter(path, self._poller)
        except BaseException:
            self._close_poller()
            raise
        self.inbox = self._local.inbox
        self.send: Callable[[bytes, Sequence[Frame]], bool] = self._local.send

    def add_tcp(self, tcp: TcpDoor) -> None:
        """Take the door for peers of other hosts too; before anything is sent."""
        self._tcp = tcp
        tcp.inbox = self.inbox
        tcp.on_room = self._local.on_room
        tcp.join(self.add_reader)
        self.send = self._send

    @property
    def n_refused(self) -> int:
        """How often somebody was turned away at a door."""
        return self._local.n_refused + (self._tcp.n_refused if self._tcp is not None else 0)

    def when_room(self, call: Callable[[bytes], object]) -> None:
        """Have a function called with each identity for which there is room again."""
        self._local.on_room = call
        if self._tcp is not None:
            self._tcp.on_room = call

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        """Have `callback` called whenever a file descriptor can be read."""
        self._callbacks[fd] = callback
        self._poller.register(fd, _IN)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for messages and for what else can be read, at most so long.

        Nothing is taken in while something is left in `inbox`: one that floods is read no faster
        than it is served.

        Returns:
            Whether anything has come.
        """
        is_behind = bool(self.inbox)
        tcp = self._tcp
        is_deaf = self._local.is_deaf
        if is_deaf:
            timeout_s = DEAF_S if timeout_s is None else min(timeout_s, DEAF_S)
        if is_behind:
            timeout_s = 0.0
        elif tcp is not None:
            timeout_s = tcp.patience_s(timeout_s)
        ready = self._poller.poll(timeout_s if timeout_s is None else timeout_s * self._unit)
        for fd, events in ready:
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
            elif not is_behind:
                self._local.on_ready(fd, events)
        if tcp is not None and not is_behind:
            tcp.take_in()
        if is_deaf:
            self._local.listen_again()
        return bool(ready or self.inbox)

    def disconnect(self, identity: bytes) -> None:
        """End a peer's connection, if it is one of this host; what was received before counts."""
        self._local.disconnect(identity)

    def close(self, linger_s: float) -> None:
        """Close; what was sent last has a moment to leave. Idempotent."""
        self._local.close(linger_s)
        if self._tcp is not None:
            self._tcp.close(linger_s)
        self._close_poller()

    def _send(self, identity: bytes, frames: Sequence[Frame]) -> bool:
        if identity in self._local:
            return self._local.send(identity, frames)
        assert self._tcp is not None
        return self._tcp.send(identity, frames)

    def _close_poller(self) -> None:
        if hasattr(self._poller, "close"):
            self._poller.close()


__all__ = ["Doors"]
