"""The two doors through which messages come and go: for peers of this host, and of other hosts.

What lives here: `Doors`, which knows who came through which. What must not: what messages mean, and
how a door works: that is `ipyfleet_protocol.local`'s for this host, and `tcp`'s for others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.local import LocalRouter

from .readiness import Readiness

if TYPE_CHECKING:
    from .tcp import TcpDoor


class Doors:
    """One or two of them, as one.

    Attributes:
        inbox: messages that have arrived, each with its sender's identity as first frame; behind
            the last of a connection that has ended the identity alone.
        send: sends frames to an identity. Returns False if there is no room: nothing was sent then,
            and `when_room`'s function is called when there is some. Raises
            `ipyfleet_protocol.local.Unreachable` if there is no such connection.
    """

    def __init__(self, readiness: Readiness, local: LocalRouter) -> None:
        """Take the door for peers of this host.

        Args:
            readiness: what doors wait with.
            local: the door.
        """
        self._readiness = readiness
        self._local = local
        self._tcp: TcpDoor | None = None
        self.inbox = local.inbox
        self.send: Callable[[bytes, Sequence[Frame]], bool] = local.send
        readiness.on_message = local.on_ready

    def add_tcp(self, tcp: TcpDoor) -> None:
        """Take the door for peers of other hosts too; before anything is sent."""
        self._tcp = tcp
        tcp.inbox = self.inbox
        tcp.on_room = self._local.on_room
        tcp.join(self._readiness)
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
        self._readiness.add(fd, callback)

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for messages and for what else can be read, at most so long.

        Nothing is taken in while something is left in `inbox`: one that floods is read no faster
        than it is served.

        Returns:
            Whether anything has come.
        """
        is_behind = bool(self.inbox)
        if is_behind:
            timeout_s = 0.0
        elif self._tcp is not None:
            timeout_s = self._tcp.patience_s(timeout_s)
        has_come = self._readiness.wait(timeout_s, reads_messages=not is_behind)
        if self._tcp is not None and not is_behind:
            self._tcp.take_in()
        return has_come or bool(self.inbox)

    def disconnect(self, identity: bytes) -> None:
        """End a peer's connection, if it is one of this host; what was received before counts."""
        self._local.disconnect(identity)

    def close(self, linger_s: float) -> None:
        """Close; what was sent last has a moment to leave. Idempotent."""
        self._local.close(linger_s)
        if self._tcp is not None:
            self._tcp.close(linger_s)
        self._readiness.close()

    def _send(self, identity: bytes, frames: Sequence[Frame]) -> bool:
        if identity in self._local:
            return self._local.send(identity, frames)
        assert self._tcp is not None
        return self._tcp.send(identity, frames)


__all__ = ["Doors"]
