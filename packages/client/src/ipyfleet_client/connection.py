"""One connection to the controller, whichever way its messages travel.

What lives here: `Connection`, what the wire needs of one, `LocalConnection`, which is one over a
Unix socket, and `make_connector`, which chooses. What must not: zmq, which is imported only for
connections over TCP (`dealer.py`); when to connect again, what is sent.

A connection connects once. What was lost with it must be the end of what was sent, so one that is
over is thrown away with all that it holds and another one is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ipyfleet_protocol.columns import Frame
from ipyfleet_protocol.connection import ConnectionInfo
from ipyfleet_protocol.ids import Channel, PeerId, new_secret, socket_identity
from ipyfleet_protocol.local import LocalStream, socket_path

if TYPE_CHECKING:
    from ipyfleet_protocol.tunnel import Tunnel


class Connection(Protocol):
    """What the wire needs. Used by one thread at a time; waiting for its descriptors is no use.

    Attributes:
        is_over: it has ended, or could not be made. What has arrived can be received still.
        unsent_bytes: not 0 while the system has not taken all that was sent.
        fds: descriptors; after a `receive_all` they tell that there is more, or something to
            `flush`, or that the connection is over: as long as one of them can be read.
        write_fd: the one of them that can be written when `flush` has something to do; -1 where it
            can be read then.
    """

    is_over: bool
    unsent_bytes: int

    @property
    def fds(self) -> tuple[int, ...]:
        """See above."""

    @property
    def write_fd(self) -> int:
        """See above."""

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send a message; return whether the system has taken all of it.

        What it has not taken waits for `flush`, the next message behind it. Once the connection is
        over messages go nowhere: who keeps them sends them again.
        """

    def flush(self) -> bool:
        """Go on with what waits; return whether nothing does any more."""

    def receive_all(self) -> list[list[Frame]]:
        """Return messages that are there, in order; none if no whole one is there."""

    def close(self, linger_s: float = 0.0) -> None:
        """Close, once what waits has left, or after some time. Idempotent."""


class Connector(Protocol):
    """Makes connections, each with the same identity."""

    def connect(self) -> Connection:
        """Make a connection.

        Raises:
            OSError: nobody listens there.
        """

    def close(self) -> None:
        """Free what connections had in common; they are closed."""


class LocalConnection(LocalStream):
    """A connection over a Unix socket."""

    __slots__ = ()

    @property
    def fds(self) -> tuple[int, ...]:
        """The socket's descriptor."""
        return (self.fileno(),)

    @property
    def write_fd(self) -> int:
        """The same."""
        return self.fileno()


class LocalConnector:
    """Makes connections over a Unix socket."""

    def __init__(self, path: str, identity: bytes, tunnel: Tunnel | None) -> None:
        """For the arguments see `make_connector`."""
        self._path = path
        self._identity = identity
        self._tunnel = tunnel

    def connect(self) -> LocalConnection:
        """Make a connection.

        Raises:
            OSError: nobody listens there.
        """
        if self._tunnel is not None:
            self._tunnel.revive()
        return LocalConnection.connect(self._path, self._identity)

    def close(self) -> None:
        """Do nothing."""


def make_connector(
    url: str, info: ConnectionInfo, peer: PeerId, tunnel: Tunnel | None = None
) -> Connector:
    """Return what makes a client's connections.

    Args:
        url: where to connect to.
        info: has the keys.
        peer: this client.
        tunnel: what `url` is the near end of; it is started again when it has ended.
    """
    identity = socket_identity(peer, Channel.CLIENT, new_secret())
    path = socket_path(url)
    if path is not None:
        return LocalConnector(path, identity, tunnel)
    from ipyfleet_client.dealer import DealerConnector

    return DealerConnector(url, identity, info, tunnel)
