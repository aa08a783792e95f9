"""Connections to the controller: what a channel needs of one, and how one is made.

What lives here: `Connection`, `Connector`, and `LocalConnection`, which leads to a controller on
this host. What must not: when to connect, what is said; zmq, which whoever speaks with another host
imports and pays for (`zmq_connection`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.local import LocalStream, socket_path

if TYPE_CHECKING:
    import zmq


class QueueFull(Exception):
    """Nothing was sent, since too much waits already."""


class Connection(Protocol):
    """One connection to the controller. Belongs to one thread."""

    @property
    def is_over(self) -> bool:
        """The other end is gone; what has arrived can be received still."""

    @property
    def has_news(self) -> bool:
        """There is something that the descriptors do not tell any more: look before waiting."""

    @property
    def unsent_bytes(self) -> int:
        """While this is not 0 somebody has to call `flush` when the descriptor can be written."""

    def filenos(self) -> tuple[int, ...]:
        """Return the descriptors to wait for; none when closed."""

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send a message; False if some of it is left to `flush`.

        Raises:
            QueueFull: of a connection whose queue has a bound.
        """

    def flush(self) -> bool:
        """Send what waits, as far as that goes now; return whether nothing waits any more."""

    def receive(self) -> list[Frame] | None:
        """Return the next message; None if none is there."""

    def wait_sent(self, timeout_s: float) -> bool:
        """Wait until nothing is unsent or the other end is gone; return whether that is so."""

    def close(self, linger_s: float = 0.0) -> None:
        """Close, once what waits has left, or after some time. Idempotent."""


class LocalConnection(LocalStream):
    """A connection to a controller on this host."""

    __slots__ = ()

    has_news = False

    def filenos(self) -> tuple[int, ...]:
        """Return the descriptor."""
        fd = self.fileno()
        return () if fd < 0 else (fd,)


class BoundedConnection(LocalConnection):
    """One that takes a message only when nothing waits."""

    __slots__ = ()

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send a message; see `Connection`."""
        if self.unsent_bytes:
            raise QueueFull
        return super().send(frames)


class Nobody:
    """A connection that is over from the beginning; it takes no descriptor, of which none may be
    left.
    """

    is_over = True
    has_news = False
    unsent_bytes = 0

    def filenos(self) -> tuple[int, ...]:
        """Return none."""
        return ()

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send to nobody."""
        return True

    def flush(self) -> bool:
        """Do nothing: nothing waits."""
        return True

    def receive(self) -> list[Frame] | None:
        """Return None."""
        return None

    def wait_sent(self, timeout_s: float) -> bool:
        """Do nothing: nothing waits."""
        return True

    def close(self, linger_s: float = 0.0) -> None:
        """Do nothing."""


class Connector:
    """Makes the connections of one peer, in one process."""

    def __init__(self, url: str, keys: tuple[str, str, str] | None, heartbeat_s: float) -> None:
        """Make one that connects nothing yet.

        Args:
            url: where the controller listens.
            keys: server's public key, own public key, own secret key; None for no encryption.
            heartbeat_s: silence after which a host that is reached over TCP is taken for dead; 0
                for never.
        """
        self._path = socket_path(url)
        self._url = url
        self._keys = keys
        self._heartbeat_s = heartbeat_s
        self._context: zmq.Context[Any] | None = None

    @property
    def has_threads(self) -> bool:
        """Whether zmq is in use, and with it threads: the process must not fork."""
        return self._context is not None

    def connect(self, identity: bytes, *, is_bounded: bool = False) -> Connection:
        """Connect; where nobody listens this is a connection that is over.

        Args:
            identity: what it is called over there.
            is_bounded: `send` shall raise `QueueFull` when the controller does not read.
        """
        if self._path is not None:
            kind = BoundedConnection if is_bounded else LocalConnection
            try:
                return kind.connect(self._path, identity)
            except OSError:
                return Nobody()
        import zmq

        from .zmq_connection import ZmqConnection

        if self._context is None:
            self._context = zmq.Context()
        return ZmqConnection(
            self._context,
            self._url,
            identity,
            keys=self._keys,
            heartbeat_s=self._heartbeat_s,
            is_bounded=is_bounded,
        )

    def close(self) -> None:
        """End zmq's threads, if there are any; all connections have been closed. Idempotent."""
        if self._context is not None:
            self._context.term()
            self._context = None
