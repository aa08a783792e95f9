"""One connection to the controller: a DEALER and the monitor that tells of its end.

What lives here: `Dealer`. What must not: when to connect again, what is sent.

zmq would connect again by itself, and send what was in its queue before anybody has said Hello:
what was lost would not be the last of what was sent. So it may not; a connection that is over is
thrown away with its queue and another one is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import zmq

from ipyfleet_protocol.connection import ConnectionInfo
from ipyfleet_protocol.ids import Channel, PeerId, new_secret, socket_identity
from ipyfleet_protocol.tunnel import Tunnel

CONNECT_TIMEOUT_MS = 3000
HEARTBEAT_MS = 5000
"""Over TCP: a link that has been silent for three times as long is taken for dead."""

LINGER_MS = 500

NEVER_MS = 3_600_000
"""Longer than a broken connection is left alone. With "never" zmq would also throw away what has
arrived and was not read, such as a `Closing`."""

_OVER = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class Dealer:
    """A socket that connects once.

    Attributes:
        socket: of type DEALER.
    """

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        """Take a socket that is not connected yet."""
        self.socket = socket
        self._monitor = socket.get_monitor_socket(_OVER)
        self.fd = int(socket.getsockopt(zmq.FD))
        self.monitor_fd = int(self._monitor.getsockopt(zmq.FD))

    def is_over(self) -> bool:
        """Whether the connection has ended, or could not be made. Reads all that the monitor says.

        Called by one thread only.
        """
        over = False
        while True:
            try:
                self._monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return over
            over = True

    def close(self, linger_ms: int) -> None:
        """Close the sockets."""
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(linger_ms)


Connect: TypeAlias = Callable[[], Dealer]


def make_connect(
    context: zmq.Context[zmq.Socket[bytes]],
    url: str,
    info: ConnectionInfo,
    peer: PeerId,
    tunnel: Tunnel | None = None,
) -> Connect:
    """Return a function that makes connections, each with the same identity.

    Args:
        context: of the sockets.
        url: where to connect to.
        info: has the keys.
        peer: this client.
        tunnel: what `url` is the near end of; it is started again when it has ended.
    """
    identity = socket_identity(peer, Channel.CLIENT, new_secret())
    is_remote = url.startswith("tcp://") or tunnel is not None
    is_encrypted = url.startswith("tcp://") if tunnel is None else tunnel.encrypted

    def connect() -> Dealer:
        socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, identity)
        socket.setsockopt(zmq.RECONNECT_IVL, NEVER_MS)
        socket.setsockopt(zmq.LINGER, LINGER_MS)
        # What we are sent is bounded by what we ask for; the controller must never have to wait.
        socket.setsockopt(zmq.RCVHWM, 0)
        if is_remote:
            socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_TIMEOUT_MS)
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * HEARTBEAT_MS)
        if is_encrypted:
            socket.curve_serverkey = info.server_public.encode()
            socket.curve_publickey = info.public.encode()
            socket.curve_secretkey = info.secret.encode()
        if tunnel is not None:
            tunnel.revive()
        dealer = Dealer(socket)
        socket.connect(url)
        return dealer

    return connect
